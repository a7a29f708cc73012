"""Several tokens a step, where all requests of it add one and none waits.

Between two passes of a small model Python costs more than it seems: the weights have pushed it out of the caches. So
the runner draws the next tokens by itself, as the samplers would, and goes on with them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tallow.engine.runner import Runner, Scores
from tallow.engine.scheduler import Scheduler, Share
from tallow.engine.step import Step
from tallow.engine.uninterrupted import uninterrupted

MOST_PASSES = 16
RUN_AHEAD_S = 0.06
"""So long a request that arrives may have to wait for such a step: less than for one that computes a prompt."""


class RunAhead:
    """Decides how many passes of the model a step may have.

    Args:
        longest_step_s: How long they may take together; 0: never more than one.
    """

    def __init__(self, longest_step_s: float) -> None:
        self.pass_s = float("inf")
        """What a pass of the last step took."""
        self._longest_step_s = longest_step_s

    def most_passes(self, shares: Sequence[Share], scheduler: Scheduler) -> int:
        """How many passes this step may have, as far as its requests and the time are concerned."""
        passes = min(MOST_PASSES, int(self._longest_step_s / self.pass_s))
        if passes < 2 or scheduler.waiting or not shares or not all(map(_draws_plainly, shares)):
            return 1
        return min(passes, *(share.request.limit - len(share.request.ids) for share in shares))

    def take_room(self, shares: Sequence[Share], scheduler: Scheduler, passes: int) -> int:
        """How many of these passes there is room for; for those after the first the requests get blocks."""
        with uninterrupted():
            for share in shares:
                request = share.request
                passes = scheduler.extend(request, request.num_tokens + passes - 1) - request.num_tokens + 1
        return passes

    def run(self, runner: Runner, step: Step, passes: int) -> list[Scores]:
        """The scores of each pass that there was."""
        begin = time.perf_counter()
        if passes > 1:
            requests = [part.share.request for part in step.parts]
            draws = [request.sampler.draw(len(request.ids)) for request in requests]
            scores = runner.run_ahead(step.spans, draws, [tuple(request.stop_ids) for request in requests], passes)
        else:
            scores = [runner.run(step.spans)]
        self.pass_s = (time.perf_counter() - begin) / len(scores)
        return scores


def _draws_plainly(share: Share) -> bool:
    """Whether nothing but a draw is to be done when the tokens of this share have been computed."""
    request = share.request
    return (
        share.count == request.num_new_tokens == 1
        and request.sampler.is_plain
        and request.limit > 0
        and request.params.top_log_probs == 0
        and request.prompt_scores_missing == 0
        and not request.followers
        and request.beams is None
    )
