"""The training loop: one page, whatever is trained, and whatever it learns from."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tallow.console import progress, say
from tallow.data.batch import Packed
from tallow.errors import Interrupted, UsageError
from tallow.kernels.memory import keeping_freed_memory
from tallow.objectives import Objective
from tallow.parallel import Layout, World
from tallow.parallel.roll_call import RollCall
from tallow.run import StageRun
from tallow.train.checkpoint import Checkpoints
from tallow.train.compilation import Compilation
from tallow.train.config import LoopConfig
from tallow.train.counters import Counters
from tallow.train.guard import Guard
from tallow.train.health import Health, peak_gpu_bytes
from tallow.train.interruption import listening
from tallow.train.meter import Meter
from tallow.train.precision import settle_workload
from tallow.train.recomputation import fit_recomputation
from tallow.train.rounds import Rounds
from tallow.train.schedule import learning_rate
from tallow.train.trackers import tracking
from tallow.train.update import Updater

Batches = Callable[[int], Sequence[Packed]]
"""This process's micro-batches of a step, counted from 0; any step can be asked for at any time."""

Validate = Callable[[Layout], Mapping[str, float]]
"""Metrics of the model as it is, over all processes; it runs in the precision of training."""


@keeping_freed_memory()
def train(
    layout: Layout,
    objective: Objective,
    batches: Batches,
    config: LoopConfig,
    run: StageRun,
    *,
    validate: Validate | None = None,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a model's parameters that require a gradient, going on from the newest checkpoint of `run` if it has one.

    The loss of a step is the mean over the target tokens of all its micro-batches on all processes, so accumulation,
    padding and the number of processes change nothing. A run that was interrupted and goes on ends with the same
    weights and metrics as one that was not: bit for bit on one machine with the same number of threads.

    With `parallel.local_steps` the workers meet only at the ends of rounds, and where a checkpoint is due by its step.
    At the ends of rounds records are made, and the model is validated with the weights that all go on from. A stop is
    heard when they meet.

    Args:
        identity: What a checkpoint must agree on to be gone on from, besides the settings of the loop and the
            parameters' shapes; JSON values.

    Returns:
        `steps`, `tokens` (through the model), `skipped` (bad batches), `tokens_per_s` (median), the last `loss` and, of
        what `validate` gave, the last of each metric whose name begins with `validation_`. Empty on all processes but
        the main one.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM, once the step is finished and saved.
        TallowError: There are more bad batches than `config.anomalies` bears, or more than good ones.
        DataError: A batch has no target.
        CapacityError: A disk is full.
        UsageError: `config.steps` is not set, the processes differ in what they are to do, or the checkpoint is of a
            run with other settings.
    """
    steps = config.steps
    if steps is None:
        raise UsageError("the number of training steps is not set", "set loop.steps")
    world = layout.workers.everyone
    world.require_alike("settings or data", json.dumps([config.model_dump(mode="json"), identity], sort_keys=True))
    updater = Updater(layout, objective, config, run.directory)
    rounds = Rounds(layout, updater, config, steps)
    checkpoints = Checkpoints(
        run.directory / "checkpoints",
        updater.parameters | updater.moved,
        updater.optimizer,
        {"loop": config.result_settings(), "parameters": layout.shapes, **(identity or {})},
        config.keep_checkpoints,
        layout.mesh,
        rounds.outer,
        layout.compressed,
    )
    guard = Guard(updater, config.anomalies, run)
    step, counters = _take_up(checkpoints, guard, run, world)
    compilation = Compilation(layout, config, batches, steps, run.ledger)
    workload = settle_workload(
        config.precision, updater.rehearse, batches(0)[0], run.directory / "workload.json", layout
    )
    if world.is_main and config.precision == "auto":
        say(f"training in {workload.precision}, the better precision here")
        run.decide("loop.precision", workload.precision, workload.reason)
    fit_recomputation(layout, lambda packed: updater.rehearse(packed, workload.precision), batches(0)[0], config)
    precision, saved_at = workload.precision, time.monotonic()
    meter = Meter(counters.tokens, workload.flops_per_token)
    health, calls = Health(updater, precision), RollCall(world, config.parallel.timeout_s)
    if world.is_main:
        run.plan(steps)

    with (
        tracking(config.trackers if world.is_main else (), run, step) as trackers,
        listening("step" if layout.workers.count == 1 else "round") as interruption,
        progress("training", steps, "steps", step) as bar,
        compilation.going_on(batches(0)[0], updater.rehearse, precision, begun=counters.compiled),
        calls.limiting(),
    ):
        while step < steps:
            step += 1
            recorded = rounds.due(step, config.log_every)
            # chance (dropout, say) depends on seed and step alone: nothing to save, nothing to restore
            torch.manual_seed(config.seed + step * layout.reader.size + layout.reader.rank)
            calls.note(f"the batch of step {step:,}")
            with meter.waiting():
                micro_batches = batches(step - 1)
            calls.note(f"the gradients of step {step:,}")
            with meter.working(), health.watching(recorded):
                rate = learning_rate(step, steps, config)
                update = guard.update(step, micro_batches, rate, precision)
            meets = rounds.meet(step)
            with meter.working():
                update = rounds.count(step, update)
                if meets:
                    guard.confer()
            run.ledger.tokens += update.tokens
            run.ledger.flops += update.tokens * workload.flops_per_token
            bar.advance(1, f"loss {update.loss:.3f}")
            if meets and guard.wants_back:
                calls.note(f"the way back from step {step:,}")
                earlier = guard.roll_back(step, checkpoints)
                if earlier is not None:
                    bar.advance(earlier[0] - step)
                    step, meter.tokens = earlier
                    continue
            with meter.working():
                rounds.end(step)
            meter.count(update.tokens, layout.own_s)
            if not meets:
                continue

            calls.note(f"the records of step {step:,}")
            record: dict[str, float] = {}
            if recorded:
                record |= update.metrics() | {"learning_rate": rate, "skipped": guard.skipped} | meter.read()
                record |= health.read(meter.own_s, record["flops_per_s"]) | compilation.read()
            if validate is not None and rounds.due(step, config.validate_every):
                with updater.scoring(precision):
                    record |= validate(layout)
            if record and world.is_main:
                run.log(step=step, **record)
                trackers.log(step, record)

            overdue = time.monotonic() - saved_at > config.save_seconds
            calls.note(f"the checkpoint of step {step:,}")
            # while batches are bad the weights are in doubt, and must not take the place of better ones
            due = step == steps or (not guard.streak and (overdue or step % config.save_every == 0))
            signs = (interruption.requested, due, checkpoints.written, compilation.look())
            stop, due, written, compiled = world.sum(*signs)
            if compiled == world.size:
                calls.note(f"the compilation after step {step:,}")
                compilation.take_up(step)
            if stop or due or written == world.size:
                checkpoints.finish()
            if stop or due:
                saved_at = time.monotonic()
                background = config.save_in_background and not stop and step < steps
                counters = Counters(tokens=meter.tokens, compiled=compilation.done, workers=guard.counters())
                checkpoints.begin(step, counters, in_round=not rounds.ends(step), in_background=background)
                if not background:
                    checkpoints.finish()
                if world.is_main:
                    run.ledger.peak_gpu_bytes = max(run.ledger.peak_gpu_bytes, peak_gpu_bytes(layout.device))
                    run.save_ledger()
            if stop:
                raise _stopped(step, steps)
    # a stop may have been asked for while the last checkpoint was written, and there may be more to do after training
    if any(world.sum(interruption.requested)):
        raise _stopped(steps, steps)
    guard.require_learned(steps)
    updater.optimizer.use_averages()
    return _summary(run, steps, meter.tokens, guard.skipped) if world.is_main else {}


def _stopped(step: int, steps: int) -> Interrupted:
    return Interrupted(
        f"training stopped after step {step:,} of {steps:,}, which is saved",
        "run the same command again to go on from there",
    )


def _take_up(checkpoints: Checkpoints, guard: Guard, run: StageRun, world: World) -> tuple[int, Counters]:
    """Load what an interrupted run left, if this one is to go on from it; the steps done and what was counted."""
    checkpoints.remove_leftovers()
    if not run.resume:
        checkpoints.clear()
    world.wait()
    done, counters = checkpoints.restore() if run.resume else (0, Counters())
    if world.is_main:
        run.rewind_metrics(done)
        if done:
            say(f"going on from step {done:,}")
    guard.take_up(done, counters.workers)
    return done, counters


def _summary(run: StageRun, steps: int, tokens: int, skipped: int) -> dict[str, Any]:
    records = run.metrics()
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    # there are none if they were damaged after the last step
    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    return {
        "steps": steps,
        "tokens": tokens,
        "skipped": skipped,
        **({"tokens_per_s": statistics.median(speeds)} if speeds else {}),
        **{key: value for key, value in last.items() if key == "loss" or key.startswith("validation_")},
    }
