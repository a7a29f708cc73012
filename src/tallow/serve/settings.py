"""What a server is told: the models that it serves, where it listens, who may use it, and its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tallow.recipe import Section

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ModelSettings(Section):
    """A model, and how it is loaded (as by `tallow.load`).

    Args:
        path: A model directory, a GGUF file, a run directory, or a name in the local store.
        adapters: LoRA adapters by the names under which requests ask for them.
        precision: What its weights are held in; `auto`: as stored.
        weights: Where they are; `auto`: mapped from a file if memory has no room.
        device: `auto`: a GPU if there is one.
        speculate: Who guesses next tokens: `off`, `ngram`, or the name or path of a smaller model.
        cache_precision: What keys and values are held in; `auto`: fp32 beside weights in fp32, q8
            beside weights of 4 bits, else bf16.
        cache_bytes: Memory for them; None: an eighth of the machine's, at most.
        max_running: Most answers at a time; the others wait.
        policy: Who of those that wait goes first.
        tensor_parallel: Processes that it is spread over, on CPUs (1, or as many as `torchrun` has started).
        unload_after_s: Seconds without a request after which its process ends; None: never. The next request loads it.
    """

    path: str
    adapters: dict[str, str] = Field(default_factory=dict)
    precision: Literal["auto", "fp32", "bf16", "q8", "q4"] = "auto"
    weights: Literal["auto", "memory", "mapped"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    speculate: str = "off"
    cache_precision: Literal["auto", "fp32", "bf16", "q8"] = "auto"
    cache_bytes: Count | None = None
    max_running: Count = 64
    policy: Literal["first-come", "priority", "shortest"] = "first-come"
    tensor_parallel: Count = 1
    unload_after_s: Seconds | None = None


class Limits(Section):
    """What is too much.

    Args:
        head_s: Seconds until a request's address and headers must have arrived.
        body_bytes: Of a request.
        body_s: Seconds until a request's body must have arrived.
        send_s: Seconds for which a client may read nothing of an answer that waits for it.
        requests: Unfinished ones at a time; more are refused (429).
        queued_tokens: Of the prompts whose answers have not begun, counted by their bytes before they are encoded.
        answers: `n` of a request.
        prompts: Of a completion request.
        stop_strings: Of a request.
        stop_characters: Of each of them.
        schema_bytes: Of a schema or another structure.
        schema_depth: Objects and arrays inside each other in it.
        messages: Of a conversation.
        tools: That a model may call.
        request_s: Seconds until a request must have been answered; requests may ask for less (`timeout`).
        load_s: Seconds until a model must be ready.
        stall_s: Seconds without a step after which an engine with work is taken for dead, and started again.
        drain_s: Seconds that unfinished requests have when the server is told to end.
    """

    head_s: Seconds = 30.0
    body_bytes: Count = 8 << 20
    body_s: Seconds = 30.0
    send_s: Seconds = 60.0
    requests: Count = 512
    queued_tokens: Count = 1 << 20
    answers: Count = 16
    prompts: Count = 128
    stop_strings: Count = 16
    stop_characters: Count = 256
    schema_bytes: Count = 1 << 16
    schema_depth: Count = 32
    messages: Count = 2048
    tools: Count = 128
    request_s: Seconds = 600.0
    load_s: Seconds = 600.0
    stall_s: Seconds = 120.0
    drain_s: Seconds = 30.0


class ServeSettings(Section):
    """A server.

    Args:
        models: By the names under which requests ask for them; the first is the default.
        host: Where it listens. Any but a loopback address needs keys.
        port: 0: any that is free.
        keys_file: A file with an API key a line (`name:key`, or the key alone); None: none is asked for.
        admin_key_file: A file with the key that /admin asks for; None: there is no /admin.
        limits: What is too much.
        log: An SQLite file that requests are written to; None: none is.
        log_prompts: Write prompts and answers there, too.
        log_days: Days after which what is in that file is removed; None: never.
        threads: CPU threads of each model; None: all cores.
        replicas: Servers of all models, on Ray; requests go where the beginning of their prompt is cached.
    """

    models: dict[str, ModelSettings]
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keys_file: Path | None = None
    admin_key_file: Path | None = None
    limits: Limits = Limits()
    log: Path | None = None
    log_prompts: bool = False
    log_days: Annotated[float, Field(gt=0)] | None = 30.0
    threads: Count | None = None
    replicas: Count = 1
