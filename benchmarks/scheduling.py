"""Who goes first: the three policies of the engine on one mixed load, with SmolLM2-135M.

    .venv/bin/python benchmarks/scheduling.py [--precision q4|q8|bf16|fp32] [--requests N] [--max-running N] [--seed N]

Three of five requests are turns of a chat (a system prompt that many share, a short question, a short answer), one
asks a little of a long document, one wants a long answer. They arrive at random (Poisson) at 70 % and at 95 % of what
the engine can do, which is measured first, with all of them waiting from the start. Each policy gets the same requests
at the same moments and an empty cache. Chats are urgent where priorities count. Jobs that take a policy's order ill
are the longest ones: their slowdown is their time under it over that under `first-come`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tallow.engine.choices import PRECISIONS, Precision
from tallow.engine.engine import Engine
from tallow.engine.make_runner import make_runner
from tallow.engine.policies import POLICIES, PolicyName
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.runner import Runner
from tallow.models.formats import load_model
from tallow.models.store import pull

LOADS = (0.70, 0.95)
SYSTEM_PROMPTS, SYSTEM_TOKENS = 3, 192
KINDS = ("chat", "chat", "chat", "document", "long answer")


@dataclass(frozen=True)
class Job:
    """A request to come.

    Args:
        kind: What sort of work it is.
        prompt_ids: Its prompt.
        new_tokens: Length of its answer.
        wait: Until it comes after the one before, in units of the mean.
    """

    kind: str
    prompt_ids: list[int]
    new_tokens: int
    wait: float


@dataclass(frozen=True)
class Times:
    """Seconds from a request's arrival to its first token and to its last."""

    first_token: float
    completion: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, default="q8")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--max-running", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    precision: Precision = options.precision
    runner = make_runner(load_model(pull("smollm2-135m")), precision)
    jobs = list(make_jobs(options.requests, runner.config.vocab_size, random.Random(options.seed)))
    serve(runner, jobs[:8], 0.0, "first-come", options.max_running)  # to warm up
    begin = time.perf_counter()
    serve(runner, jobs, 0.0, "first-come", options.max_running)
    capacity = len(jobs) / (time.perf_counter() - begin)
    print(
        f"SmolLM2-135M, {precision}, {len(jobs)} requests, {options.max_running} at a time, "
        f"capacity {capacity:.2f} requests/s\n"
    )
    for load in LOADS:
        interval = 1.0 / (load * capacity)
        results: dict[PolicyName, list[Times]] = {
            name: serve(runner, jobs, interval, name, options.max_running) for name in POLICIES
        }
        print(f"At {load:.0%} of capacity, seconds:\n")
        show(jobs, results)


def make_jobs(count: int, vocab_size: int, generator: random.Random) -> Iterator[Job]:
    """A load; prompts are of random tokens, since only their number and what they share matters."""

    def tokens(number: int) -> list[int]:
        return generator.choices(range(3, vocab_size), k=number)

    systems = [tokens(SYSTEM_TOKENS) for _ in range(SYSTEM_PROMPTS)]
    for _ in range(count):
        kind = generator.choice(KINDS)
        wait = generator.expovariate(1.0)
        if kind == "chat":
            question = tokens(generator.randint(8, 48))
            yield Job(kind, [*generator.choice(systems), *question], generator.randint(8, 32), wait)
        elif kind == "document":
            yield Job(kind, tokens(generator.randint(700, 1600)), generator.randint(4, 16), wait)
        else:
            yield Job(kind, tokens(generator.randint(16, 64)), generator.randint(150, 300), wait)


def serve(runner: Runner, jobs: Sequence[Job], interval: float, policy: PolicyName, max_running: int) -> list[Times]:
    """What each job took, if they come `interval` seconds after each other in the mean."""
    engine = Engine(runner, None, policy=policy, max_running=max_running)
    arrivals, at = [], 0.0
    for job in jobs:
        at += job.wait * interval
        arrivals.append(at)
    requests: list[Request] = []
    begin = time.perf_counter()
    while len(requests) < len(jobs) or engine.state.waiting + engine.state.running:
        now = time.perf_counter() - begin
        while len(requests) < len(jobs) and arrivals[len(requests)] <= now:
            job = jobs[len(requests)]
            params = SamplingParams(max_new_tokens=job.new_tokens, ignore_eos=True)
            urgency = int(policy == "priority" and job.kind != "chat")
            requests.append(engine.submit(job.prompt_ids, params, priority=urgency))
        if engine.state.waiting + engine.state.running:
            engine.step()
        else:
            time.sleep(max(0.0, begin + arrivals[len(requests)] - time.perf_counter()))
    assert all(request.state is RequestState.FINISHED for request in requests)
    return [times_of(request, begin + arrival) for request, arrival in zip(requests, arrivals, strict=True)]


def times_of(request: Request, arrival: float) -> Times:
    """From the moment at which it was to come: the step that was going on then is part of its time."""
    assert request.first_token_s is not None
    assert request.finished_s is not None
    return Times(request.first_token_s - arrival, request.finished_s - arrival)


def show(jobs: Sequence[Job], results: dict[PolicyName, list[Times]]) -> None:
    """One table: a row for each policy, and who loses by it."""
    print(
        "| policy | first token: mean | median | p99 | completion: mean | median | p99 | slowdown of the longest 10 % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    plain = results["first-come"]
    longest = sorted(range(len(jobs)), key=lambda index: -(len(jobs[index].prompt_ids) + 8 * jobs[index].new_tokens))
    longest = longest[: max(1, len(jobs) // 10)]
    for name, times in results.items():
        columns = [summary([each.first_token for each in times]), summary([each.completion for each in times])]
        slowdown = statistics.mean(times[index].completion / plain[index].completion for index in longest)
        print(f"| {name} | {' | '.join(columns)} | {slowdown:.2f} × |")
    print("\n| mean completion | " + " | ".join(results) + " |\n|---|" + "---|" * len(results))
    for kind in dict.fromkeys(KINDS):
        means = [
            statistics.mean(each.completion for each, job in zip(times, jobs, strict=True) if job.kind == kind)
            for times in results.values()
        ]
        print(f"| {kind} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    mean_times = {name: statistics.mean(each.completion for each in times) for name, times in results.items()}
    for name, mean in mean_times.items():
        if name != "first-come" and mean > 0.95 * mean_times["first-come"]:
            print(f"\n`{name}` does not help here: its mean is {mean / mean_times['first-come']:.2f} × first-come's.")
    print()


def summary(seconds: Sequence[float]) -> str:
    """Mean, median and 99th percentile."""
    percentile = sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]
    return f"{statistics.mean(seconds):.2f} | {statistics.median(seconds):.2f} | {percentile:.2f}"


if __name__ == "__main__":
    main()
