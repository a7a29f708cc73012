"""Compiles grammars that nobody vouches for: the program of a process that may be killed at any time.

A line of JSON in, a line of JSON out: first a vocabulary, then one grammar after another. The answer to a grammar is
what it takes, or why the library refuses it. One that takes too long or too much memory, or breaks the library, ends
the process, and with it nothing else.

Run as a file: it imports neither torch nor the rest of tallow, and is ready in a fraction of a second.
"""

from __future__ import annotations

import base64
import json
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

STACK_BYTES = 4 << 20
"""Half of what a thread of the engine has, so that what is deeply nested breaks here, not there."""

PROOF_MASKS = 8
"""Masks that a grammar must yield within the limits."""

MAX_REASON = 200
"""Characters of an error; some repeat the whole grammar."""

LIMITS = LLParserLimits(
    step_lexer_fuel=200_000,  # what one mask may cost, in the lexer: 14,000 a millisecond
    step_max_items=50_000,  # and in the parser: 20,000 a millisecond
    max_items_in_row=2_000,
    max_lexer_states=50_000,  # 1 to 2 kB each
    verbose_errors=False,  # they would repeat the grammar and the answer
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, as llguidance wants to know them.

    Args:
        tokens: The bytes of each id, as many as the model has logits; empty for an id that is no text.
        special_token_ids: Those that text never spells.
        end_ids: Those that end an answer.
    """

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    end_ids: Sequence[int]
    bos_token_id: int | None = None

    @property
    def eos_token_id(self) -> int | None:
        return self.end_ids[0] if self.end_ids else None

    def __call__(self, _text: bytes) -> list[int]:
        """Asked for the tokens of a text that is forced; grammars here force none."""
        return []

    def tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(self), eos_token=list(self.end_ids) or None)

    def as_json(self) -> dict[str, Any]:
        return {
            "bytes": base64.b64encode(b"".join(self.tokens)).decode(),
            "lengths": [len(token) for token in self.tokens],
            "special_token_ids": list(self.special_token_ids),
            "end_ids": list(self.end_ids),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Vocabulary:
        joined, tokens, start = base64.b64decode(values["bytes"]), [], 0
        for length in values["lengths"]:
            tokens.append(joined[start : start + length])
            start += length
        return cls(tokens, values["special_token_ids"], values["end_ids"])


def compile_grammar(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """A matcher at the beginning of its text; one in its error state if the grammar is wrong."""
    return LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)


def why(matcher: LLMatcher) -> str:
    """The library's reason for an error, without its picture of the place."""
    lines = matcher.get_error().splitlines() or ["unknown"]
    if lines[0] == "NoExtensionBias":
        return "no text that fits it goes on here"
    details = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return " ".join([lines[0][:MAX_REASON], *details[:1]])


def prove(tokenizer: LLTokenizer, source: str) -> str:
    """Compile a grammar and walk a little way into it: what the engine will do with it has been done once.

    Returns:
        Why it cannot be used; empty if it can.
    """
    matcher = compile_grammar(tokenizer, source)
    for step in range(PROOF_MASKS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if step == 0 and matcher.is_error():
            return why(matcher)
        if matcher.is_stopped() or not matcher.consume_token(mask.bit_length() - 1):
            break
    return ""


def main() -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    tokenizer = Vocabulary.from_json(json.loads(sys.stdin.readline())).tokenizer()
    idle_bytes = _data_bytes()
    _answer({})
    while line := sys.stdin.readline():
        job = json.loads(line)
        if idle_bytes:
            _limit(resource.RLIMIT_DATA, idle_bytes + job["memory_bytes"])
        # processor time, which a busy machine does not use up; the signal ends the process
        signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
        error = prove(tokenizer, job["source"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer({"error": error, "data_bytes": max(0, _data_bytes() - idle_bytes)})


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _data_bytes() -> int:
    """Memory that RLIMIT_DATA counts; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[5]) * resource.getpagesize() if statm.exists() else 0


if __name__ == "__main__":
    main()
