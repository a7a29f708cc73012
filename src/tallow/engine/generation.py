"""What a user gets: a whole answer, or its text piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tallow.engine.engine import Engine
from tallow.engine.request import FinishReason, Request, RequestState, TopLogProbs


@dataclass(frozen=True)
class Generation:
    """A prompt and its answer.

    Args:
        prompt_ids: The tokens of the prompt.
        ids: The tokens of the answer; one that ended it is the last of them.
        text: The text of the answer, without end tokens, cut before a stop string.
        finish_reason: `stop` (an end token, a stop string, a complete structure), `length` (the limit or the context is
            reached), `abort`.
        log_probs: Log-probability of each token of the answer under the model, before temperature and filters.
        prefill_s: Seconds from submission to the first token.
        decode_s: Seconds from the first token to the last; of a beam search, to its end.
        score: By what answers to one prompt are ranked: the mean of `log_probs`, or what the beam search went by.
        top_log_probs: The likeliest tokens at each place of the answer, if they were asked for.
        prompt_log_probs: Log-probability of each token of the prompt but the first, if they were asked for.
        prompt_top_log_probs: The likeliest tokens at each of these places.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: FinishReason
    log_probs: list[float]
    prefill_s: float
    decode_s: float
    score: float = 0.0
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    prompt_log_probs: list[float] = field(default_factory=list)
    prompt_top_log_probs: list[TopLogProbs] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request) -> Generation:
        """What a finished request has come to.

        Raises:
            TallowError: The engine gave it up.
        """
        if request.error is not None:
            raise request.error
        assert request.finish_reason is not None
        assert request.finished_s is not None
        first_token_s = request.first_token_s if request.first_token_s is not None else request.finished_s
        return cls(
            prompt_ids=list(request.prompt_ids),
            ids=request.ids,
            text=request.text,
            finish_reason=request.finish_reason,
            log_probs=request.log_probs,
            prefill_s=first_token_s - request.submitted_s,
            decode_s=request.finished_s - first_token_s,
            score=sum(request.log_probs) / max(1, len(request.ids)),
            top_log_probs=request.top_log_probs,
            prompt_log_probs=request.prompt_log_probs,
            prompt_top_log_probs=request.prompt_top_log_probs,
        )


class Stream(Iterator[str]):
    """The text of one answer, piece by piece; all pieces together are the `text` of its generation.

    A stream that is left before its end frees the engine when it is closed or forgotten.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request, self._shown = engine, request, 0

    def __next__(self) -> str:
        request = self._request
        while len(request.text) == self._shown:
            if request.state is RequestState.FINISHED:
                if request.error is not None:
                    raise request.error
                raise StopIteration
            self._engine.step()
        piece = request.text[self._shown :]
        self._shown += len(piece)
        return piece

    def close(self) -> None:
        """End the answer here."""
        self._engine.abort(self._request)

    def __del__(self) -> None:
        self.close()

    def result(self) -> Generation:
        """The whole answer; what is still to come of it is generated first."""
        for _ in self:
            pass
        return Generation.of(self._request)
