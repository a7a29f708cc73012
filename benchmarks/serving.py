"""What HTTP costs: the server beside its own engine, with the same prompts, by turns.

`python benchmarks/serving.py [--model smollm2-135m] [--precision q4]`: a Markdown table. The clients are as light as
can be (they share the machine's cores with the server), and their time counts against the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

CLIENTS = 32
SHAPES = ((16, 64), (256, 64))
ROUNDS = 7
FIRST_TOKENS = 30
IDLE_CONNECTIONS = 1000
OTHERS = 4
BREATH_S = 2.0
"""Between turns: so long the side that has had its own may go on getting pages for its cache."""

ENGINE = """
import sys, json, time
import tallow
model = tallow.load(sys.argv[1], sys.argv[2])
params = lambda new: tallow.SamplingParams(max_new_tokens=new, ignore_eos=True)
model.generate_batch([[1, 2, 3]] * 4, params(8))
print("ready", flush=True)
for line in sys.stdin:
    prompts, new = json.loads(line)
    requests = [model.engine.submit(prompt, params(new)) for prompt in prompts]
    begin = time.perf_counter()
    first = None
    while model.engine.step():
        first = first or time.perf_counter()
    print(time.perf_counter() - begin, first - begin, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="q4", choices=("fp32", "bf16", "q8", "q4"))
    options = parser.parse_args()
    with _engine(options.model, options.precision) as engine, _server(options.model, options.precision) as (port, pid):
        print(
            f"| {options.precision}, tokens/s | engine | HTTP | ratio | HTTP, streamed | ratio |\n" + "|---" * 6 + "|"
        )
        for prompt_tokens, new_tokens in SHAPES:
            found: dict[str, list[float]] = {"engine": [], "whole": [], "stream": []}
            for _ in range(ROUNDS):
                time.sleep(BREATH_S)
                found["engine"].append(CLIENTS * new_tokens / _ask(engine, _prompts(prompt_tokens), new_tokens)[0])
                for way in ("whole", "stream"):
                    time.sleep(BREATH_S)
                    seconds = uvloop.run(_clients(port, _prompts(prompt_tokens), new_tokens, way == "stream"))
                    found[way].append(CLIENTS * new_tokens / seconds)
            own, whole, stream = (statistics.median(found[way]) for way in ("engine", "whole", "stream"))
            print(
                f"| {prompt_tokens}/{new_tokens}, {CLIENTS} clients | {own:.0f} | {whole:.0f} | {whole / own:.2f} | "
                f"{stream:.0f} | {stream / own:.2f} |",
                flush=True,
            )
        first: dict[str, list[float]] = {"engine": [], "HTTP": []}
        for _ in range(FIRST_TOKENS):
            first["engine"].append(_ask(engine, _prompts(16)[:1], 4)[1])
            first["HTTP"].append(uvloop.run(_first_token(port, _prompts(16)[0])))
        told = ", ".join(f"{way} {statistics.median(seconds) * 1e3:.1f} ms" for way, seconds in first.items())
        print(f"\nfirst token: {told}")
        others: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for are_read, seconds in others.items():
                time.sleep(BREATH_S)
                seconds.append(uvloop.run(_clients(port, _prompts(16), 64, True, OTHERS, are_read)))
        ratio = statistics.median(others[True]) / statistics.median(others[False])
        print(f"beside {OTHERS} streams that nobody reads: {ratio:.2f} of the speed beside as many that are read")
        before = _rss(pid)
        connections = uvloop.run(_idle(port, pid))
        print(f"{IDLE_CONNECTIONS} idle connections: {(connections - before) / 1e6:.0f} MB")


@contextmanager
def _engine(model: str, precision: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, model, precision], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def _server(model: str, precision: str) -> Iterator[tuple[int, int]]:
    arguments = [
        sys.executable,
        "-m",
        "tallow",
        "serve",
        f"--model=it={model}",
        "--precision",
        precision,
        "--port",
        "0",
    ]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = re.search(r":(\d+)\s*$", process.stderr.readline())
    assert found is not None
    port = int(found[1])
    uvloop.run(_clients(port, _prompts(16), 8, False))  # waits until it is ready
    try:
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _prompts(tokens: int) -> list[list[int]]:
    return [[random.randrange(100, 40000) for _ in range(tokens)] for _ in range(CLIENTS)]


def _ask(engine: subprocess.Popen[str], prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
    """Seconds to the end, and to the first token."""
    assert engine.stdin is not None
    assert engine.stdout is not None
    engine.stdin.write(json.dumps([prompts, new_tokens]) + "\n")
    engine.stdin.flush()
    whole, first = engine.stdout.readline().split()
    return float(whole), float(first)


async def _clients(
    port: int, prompts: list[list[int]], new_tokens: int, stream: bool, others: int = 0, are_read: bool = True
) -> float:
    """Seconds until all have been answered; beside them long streams go on, which somebody reads or nobody."""
    beside = [await _send(port, prompt, 2000, True) for prompt in _prompts(16)[:others]]
    reading = [asyncio.create_task(reader.read(-1)) for reader, _ in beside if are_read]
    begin = time.perf_counter()
    await asyncio.gather(*(_answer(port, prompt, new_tokens, stream) for prompt in prompts))
    seconds = time.perf_counter() - begin
    for task in reading:
        task.cancel()
    for _, writer in beside:
        writer.close()
    return seconds


async def _send(
    port: int, prompt: list[int], new_tokens: int, stream: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = {"prompt": prompt, "max_tokens": new_tokens, "ignore_eos": True, "temperature": 0, "stream": stream}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return reader, writer


async def _answer(port: int, prompt: list[int], new_tokens: int, stream: bool) -> None:
    reader, writer = await _send(port, prompt, new_tokens, stream)
    answer = await reader.read(-1)
    writer.close()
    assert b" 200 OK" in answer[:20], answer
    assert (answer.count(b"data: ") > 1) if stream else (b'"completion_tokens":%d' % new_tokens in answer), answer


async def _first_token(port: int, prompt: list[int]) -> float:
    begin = time.perf_counter()
    reader, writer = await _send(port, prompt, 4, True)
    await reader.readuntil(b"data: ")
    seconds = time.perf_counter() - begin
    await reader.read(-1)
    writer.close()
    return seconds


async def _idle(port: int, pid: int) -> int:
    """The server's memory while there are many connections."""
    writers = []
    for _ in range(IDLE_CONNECTIONS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"}")
        writers.append(writer)
    memory = _rss(pid)
    for writer in writers:
        writer.close()
    return memory


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
