"""Answers held to a structure: which tokens may come next, decided by llguidance.

(An Earley parser over a lexer of regular expressions' derivatives, run along the trie of the vocabulary.)

Grammars come from strangers, and one may take for ever, or all memory, to compile. So a grammar meets the engine in
three steps:

1. A process that may be killed (`grammar_worker.py`) compiles it and computes its first masks, within limits of
   processor time, memory and stack. What goes wrong there ends the requests that asked for it, and no others.
2. Then a thread of the engine compiles it again in the engine's process, with the same library, limits and vocabulary.
   Nothing that is compiled crosses between processes, and nothing need: the work is the same, so it takes what it
   has taken there, and the library lets other threads run meanwhile. Requests that wait for it are not scheduled, and
   all others go on.
3. While an answer grows, each mask is computed under the library's own limits (fuel of the lexer, items of the
   parser, states). A request whose grammar exceeds them ends with an error, and what was compiled is forgotten.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from tallow.engine.grammar_process import GrammarProcess
from tallow.engine.grammar_worker import Vocabulary, compile_grammar, why
from tallow.engine.runner import Floats
from tallow.engine.structure import CompileLimits, Structure
from tallow.errors import TallowError, UsageError
from tallow.tokenizer.tokenizer import Tokenizer

WORKERS = 2
"""Grammars that are compiled at the same time: one that takes long does not hold up the others."""

CACHE_BYTES = 1 << 29
LEAST_BYTES = 1 << 20
"""What a compiled grammar counts for at least: its lexer grows while it is used."""


class Grammars:
    """The compiled grammars of an engine, the least recently used of them forgotten first.

    Args:
        tokenizer: Says what the tokens spell.
        vocab_size: Floats of the model.
        end_ids: Tokens that end an answer of any request.
        limits: For compiling each one.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int], limits: CompileLimits) -> None:
        self._ids = range(vocab_size)
        self._end_ids = frozenset(id for id in end_ids if id in self._ids)
        special = sorted(id for id in tokenizer.special_ids | self._end_ids if id in self._ids)
        vocabulary = Vocabulary([tokenizer.token_bytes(id) for id in self._ids], special, sorted(self._end_ids))
        self._tokenizer = vocabulary.tokenizer()
        self._cache: OrderedDict[Structure, _Compiled] = OrderedDict()
        self._jobs: deque[_Compiled] = deque()
        self._lock = threading.Lock()
        self._processes = [GrammarProcess(vocabulary, limits) for _ in range(WORKERS)]
        self._threads: dict[int, threading.Thread] = {}  # by the process that they use
        weakref.finalize(self, _end, self._jobs, self._processes, self._threads)

    def constraint(self, structure: Structure, stop_ids: Collection[int]) -> Constraint:
        """What holds one answer to a structure; compiling starts now unless it is done or under way."""
        with self._lock:
            compiled = self._cache.get(structure)
            if compiled is None:
                compiled = self._cache[structure] = _Compiled(structure, Future())
                self._jobs.append(compiled)
                free = [index for index in range(WORKERS) if index not in self._threads]
                if free:
                    thread = threading.Thread(target=self._work, args=(free[0],), name="grammars", daemon=True)
                    self._threads[free[0]] = thread
                    thread.start()
            self._cache.move_to_end(structure)
        known = [id for id in stop_ids if id in self._ids]
        return Constraint(compiled.matcher, self._end_ids, known, lambda: self._forget(compiled))

    def wait(self, seconds: float) -> None:
        """Sleep until a grammar is compiled, if one is being compiled, but not longer than so many seconds."""
        with self._lock:
            pending = [compiled.matcher for compiled in self._cache.values() if not compiled.matcher.done()]
        if pending:
            wait(pending, seconds, FIRST_COMPLETED)

    def _work(self, index: int) -> None:
        """Compile with one of the processes until there is nothing to do."""
        while True:
            with self._lock:
                if not self._jobs:
                    del self._threads[index]
                    return
                job = self._jobs.popleft()
            try:
                source = job.structure.source()
                job.bytes = max(LEAST_BYTES, self._processes[index].prove(source))
                matcher = compile_grammar(self._tokenizer, source)
            except Exception as error:  # whatever it is, the requests that wait must hear of it
                self._forget(job)
                job.matcher.set_exception(error)
            else:
                self._shrink()
                job.matcher.set_result(matcher)

    def _forget(self, compiled: _Compiled) -> None:
        with self._lock:
            if self._cache.get(compiled.structure) is compiled:
                del self._cache[compiled.structure]

    def _shrink(self) -> None:
        """Forget what has not been asked for the longest, until the rest is not too much."""
        with self._lock:
            excess = sum(compiled.bytes for compiled in self._cache.values()) - CACHE_BYTES
            for structure, compiled in list(self._cache.items()):
                if excess > 0 and compiled.matcher.done():
                    excess -= compiled.bytes
                    del self._cache[structure]


@dataclass(eq=False)
class _Compiled:
    """A grammar and what becomes of it."""

    structure: Structure
    matcher: Future[LLMatcher]
    bytes: int = 0


class Constraint:
    """Holds one answer to its structure.

    Args:
        compiled: The matcher at the beginning of a text, once it is there; shared with other answers.
        end_ids: Tokens that the matcher knows as ends.
        stop_ids: Tokens that end this answer.
        forget: Called when the matcher has exceeded a limit: its lexer is shared, and may have no room left.
    """

    def __init__(
        self,
        compiled: Future[LLMatcher],
        end_ids: Collection[int],
        stop_ids: Collection[int],
        forget: Callable[[], None],
    ) -> None:
        self._compiled = compiled
        self._own: LLMatcher | None = None
        self._stops = frozenset(stop_ids)
        self._ends = self._stops.union(end_ids)
        self._end_ids, self._stop_ids = (np.array(sorted(ids), dtype=np.int64) for ids in (end_ids, stop_ids))
        self._forget = forget

    @property
    def is_ready(self) -> bool:
        """Whether compiling has ended, well or not."""
        return self._compiled.done()

    @property
    def error(self) -> TallowError | None:
        """Why there is no grammar to hold the answer to; None while that is not known."""
        error = self._compiled.exception() if self.is_ready else None
        if error is None or isinstance(error, TallowError):
            return error
        return UsageError(f"the structure cannot be compiled: {error}", "make it simpler")

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def mask_logits(self, logits_V: Floats) -> None:
        """Set the logits of every token that may not come next to −∞.

        A token may come if some text that fits goes on with it; the model's end tokens, and others that end this
        answer, may come where the answer may end.

        Raises:
            UsageError: No token is left, or the mask would take more than it may.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed_V = np.unpackbits(bits, count=len(logits_V), bitorder="little").view(np.bool_)
        allowed_V[self._end_ids] = False
        if self._matcher.is_accepting():
            allowed_V[self._stop_ids] = True
        logits_V[~allowed_V] = -np.inf
        if logits_V.max() == -np.inf:
            raise UsageError(
                "the structure leaves no token that may come next",
                "min_new_tokens, ignore_eos or logit_bias contradict it, or its text cannot be finished",
            )

    def accept(self, token: int) -> None:
        """Take a token that has been chosen, other than one that ends the answer.

        Raises:
            UsageError: It does not fit, or finding out would take more than it may.
        """
        self._matcher.consume_token(token)
        self._check()

    def accepts(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, in their order, fit: for draft tokens. The state stays as it is.

        An end token, with which a draft is over, fits where the answer may end.
        """
        length = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        taken = self._matcher.try_consume_tokens(list(tokens[:length]))
        self._check()
        ends = taken == length < len(tokens) and tokens[length] in self._stops and self._matcher.is_accepting()
        self.rollback(taken)
        return taken + ends

    def rollback(self, count: int) -> None:
        """Take back the last tokens that were accepted."""
        self._matcher.rollback(count)
        self._check()

    @property
    def _matcher(self) -> LLMatcher:
        if self._own is None:
            self._own = self._compiled.result(timeout=0).deep_copy()
        return self._own

    def _check(self) -> None:
        if self._matcher.is_error():
            self._forget()
            raise UsageError(f"the answer cannot be held to its structure: {why(self._matcher)}", "make it simpler")


def _end(jobs: deque[_Compiled], processes: Sequence[GrammarProcess], threads: dict[int, threading.Thread]) -> None:
    jobs.clear()
    for process in processes:
        process.kill()
    for thread in list(threads.values()):
        thread.join()
    for process in processes:
        process.close()
