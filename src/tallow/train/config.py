"""Settings of the training loop."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tallow.engine.choices import Device
from tallow.errors import UsageError
from tallow.parallel.config import ParallelConfig
from tallow.parallel.recompute import Recompute
from tallow.recipe import Section
from tallow.train.anomaly import AnomalyConfig
from tallow.train.offload.config import OffloadConfig
from tallow.train.optimizers.adamw import AdamWMethod
from tallow.train.optimizers.registry import AnyMethod
from tallow.train.trackers import TrackerName, require_trackers

Beta = Annotated[float, Field(ge=0, lt=1)]


class BatchRamp(Section):
    """Batches that grow in a straight line until they have `loop.batch_size` rows, in multiples of the first.

    Args:
        start: Sequences of the first update.
        share: Share of the run's tokens over which they grow.
    """

    start: PositiveInt
    share: float = Field(default=0.1, gt=0, le=1)


class LoopConfig(Section):
    """How a model is trained, whatever it learns from.

    Args:
        steps: Updates of the weights; None: the stage derives it from its data.
        batch_size: Sequences of an update, over all processes.
        batch_ramp: How batches grow at first; None: they do not.
        micro_batch_size: Sequences that go through the model at once; None: all of an update's. Less needs less
            memory and changes the result only by rounding.
        sequence_length: Tokens of a sequence.
        optimizer: What makes an update of a gradient: a name, or a name with that optimizer's own settings.
        learning_rate: Its largest value.
        learning_rate_factors: Factors on it for parameters whose names match a pattern (`embed.*`); several that match
            one are multiplied. The weight decay of a step stays as it is.
        schedule: How it falls after the warm-up: `cosine`, `wsd` (constant, then linear decay), `linear`,
            `inverse_sqrt` (with the root of the step) or `constant`; None: `cosine`, or `constant` where the optimizer
            averages weights instead.
        warmup: Share of the steps in which it rises from zero.
        decay: Share of the steps after the warm-up in which `wsd` falls.
        min_learning_rate_ratio: Smallest learning rate after the warm-up over the largest; where `cosine`, `wsd` and
            `linear` end.
        weight_decay: Decoupled; of matrices only.
        betas: Decay rates of the gradient's first and second moments, where the optimizer has such; None: its own, of
            `adamw` 0.9 and 0.95.
        epsilon: Addition to the denominator, where the optimizer has one.
        clip_norm: Largest norm of the gradient of the mean loss.
        device: `cpu`, or `cuda` for a GPU, of several processes for one each; `auto`: a GPU if there is one. A run can
            go on on another one, where it ends with the same but for rounding.
        precision: Of matrix products; `auto` takes bf16 (on a GPU without it fp16) if this machine is clearly faster
            with it, which is measured, and written into `recipe.yaml`. With `fp16` the loss is scaled as its gradients
            need it. `float8`, for GPUs from Ada and Hopper on, is bf16 with products of 8-bit floats in the linear
            layers (arXiv 2209.05433). Weights and their updates are always fp32.
        compile: Whether layers compute in the form that `torch.compile` makes of them: never (`none`), from the first
            step on, before which training waits (`ahead`), or as soon as another process has compiled them
            (`background`). It pays on a GPU; on a CPU tallow's own kernels are faster. Needs a C++ compiler.
        anomalies: What becomes of bad batches.
        trackers: Programs that get the records, too: `tensorboard` (files in `tensorboard/`) and `wandb` (Weights &
            Biases, in `wandb/`; offline, unless the variable `WANDB_MODE` says `online`).
        log_every: Steps between records of loss, gradient and speed.
        validate_every: Steps between scores of held-out text.
        save_every: Steps between checkpoints.
        save_seconds: A checkpoint is also saved when the last is so old.
        keep_checkpoints: Newest checkpoints that are kept.
        save_in_background: Training goes on while a checkpoint is written, from a copy in memory: weights and optimizer
            state once more.
        recompute: What layers compute again in the backward pass instead of keeping it: nothing (`none`), all but
            matrix products and attention (`selective`), or everything (`block`). The result stays the same.
        activation_mb: With `recompute`: megabytes that the layers may keep for the backward pass; `auto`: what the
            device has left beside weights, gradients and the optimizer's state. Only as many layers as necessary
            compute again, as measured at the start; None: all do.
        offload: What is kept elsewhere than in memory.
        parallel: How the model and its batches are spread over processes.
        seed: Names the initial weights and the order of the data.
    """

    incidental = frozenset(
        (
            "device",
            "compile",
            "micro_batch_size",
            "trackers",
            "log_every",
            "validate_every",
            "save_every",
            "save_seconds",
            "keep_checkpoints",
            "save_in_background",
            "recompute",
            "activation_mb",
            "offload",
        )
    )

    steps: PositiveInt | None = None
    batch_size: PositiveInt = 16
    batch_ramp: BatchRamp | None = None
    micro_batch_size: PositiveInt | None = None
    sequence_length: PositiveInt = 256

    optimizer: AnyMethod = AdamWMethod()
    learning_rate: PositiveFloat = 1e-3
    learning_rate_factors: dict[str, PositiveFloat] = Field(default={})
    schedule: Literal["cosine", "wsd", "linear", "inverse_sqrt", "constant"] | None = None
    warmup: float = Field(default=0.02, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0, le=1)
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: NonNegativeFloat = 0.1
    betas: tuple[Beta, Beta] | None = None
    epsilon: PositiveFloat = 1e-8
    clip_norm: PositiveFloat = 1.0
    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "float8"] = "auto"
    compile: Literal["none", "ahead", "background"] = "none"
    anomalies: AnomalyConfig = AnomalyConfig()

    trackers: tuple[TrackerName, ...] = ()
    log_every: PositiveInt = 10
    validate_every: PositiveInt = 100
    save_every: PositiveInt = 500
    save_seconds: PositiveFloat = 300.0
    keep_checkpoints: PositiveInt = 2
    save_in_background: bool = False
    recompute: Recompute = "none"
    activation_mb: PositiveFloat | Literal["auto"] | None = None
    offload: OffloadConfig = OffloadConfig()
    parallel: ParallelConfig = ParallelConfig()
    seed: int = Field(default=0, ge=0, le=2**63 - 1)

    @property
    def own_schedule(self) -> str:
        """The schedule where the recipe names none."""
        return "constant" if self.optimizer.averages_weights else "cosine"

    @model_validator(mode="after")
    def _schedule_fits_optimizer(self) -> Self:
        if self.optimizer.averages_weights and self.schedule not in (None, "constant"):
            raise UsageError(
                f"{self.optimizer.name} averages weights in place of a falling learning rate, but the schedule is "
                f"{self.schedule}",
                "leave loop.schedule out",
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_precision(self) -> Self:
        if self.optimizer.updates_in_backward and self.precision == "fp16":
            raise UsageError(
                f"{self.optimizer.name} keeps no gradients, which fp16 may want to compute once more",
                "choose another loop.precision",
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_rounds(self) -> Self:
        if self.optimizer.averages_weights and self.parallel.local_steps > 1:
            raise UsageError(
                f"{self.optimizer.name} has weights of its own, which the outer updates of loop.parallel.local_steps "
                "would not know",
                "choose another optimizer",
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_division(self) -> Self:
        parallel = self.parallel
        divides = {"zero": parallel.zero > 0, "tensor": parallel.tensor > 1, "expert": parallel.expert > 1}
        for setting in self.optimizer.cannot_divide:
            if divides[setting]:
                raise UsageError(
                    f"{self.optimizer.name} needs whole matrices, which loop.parallel.{setting} divides",
                    "choose another optimizer, such as muon, or divide by loop.parallel.pipeline or context",
                )
        return self

    @model_validator(mode="after")
    def _can_recompute(self) -> Self:
        if self.activation_mb is not None and self.recompute == "none":
            raise UsageError(
                "loop.activation_mb bounds what layers keep, but loop.recompute lets them forget nothing",
                "set loop.recompute to selective or block",
            )
        if self.activation_mb is not None and self.parallel.pipeline > 1:
            raise UsageError(
                "loop.activation_mb is measured with one micro-batch, but in a pipeline several are under way",
                "leave it out: then all layers compute again",
            )
        if self.recompute == "selective" and self.parallel.pipeline > 1 and self.parallel.schedule == "zero_bubble":
            raise UsageError(
                "the schedule zero_bubble goes back through each layer twice, which loop.recompute selective cannot",
                "set loop.recompute to block, or loop.parallel.schedule to interleaved",
            )
        return self

    @model_validator(mode="after")
    def _can_compile(self) -> Self:
        if self.compile == "none":
            return self
        for setting in ("pipeline", "tensor"):
            if getattr(self.parallel, setting) > 1:
                raise UsageError(
                    f"loop.compile {self.compile} is for layers that a process has whole, but loop.parallel.{setting} "
                    "divides them",
                    "leave one of them out",
                )
        if self.recompute == "selective":
            raise UsageError(
                "compiled layers choose by themselves what they compute again rather than keep, which loop.recompute "
                "selective would forbid them",
                "set loop.recompute to none or block, or loop.compile to none",
            )
        return self

    @model_validator(mode="after")
    def _can_offload(self) -> Self:
        if self.offload.state != "none" and self.optimizer.updates_in_backward:
            raise UsageError(
                f"{self.optimizer.name} keeps next to no state that could be offloaded",
                "leave loop.offload.state out",
            )
        place, parallel = self.offload.parameters, self.parallel
        if place != "none" and (parallel.zero in (1, 2) or (parallel.zero and parallel.pipeline > 1)):
            raise UsageError(
                f"loop.offload.parameters {place} keeps few layers where they compute, but loop.parallel.zero "
                f"{parallel.zero}{' in a pipeline' if parallel.pipeline > 1 else ''} gathers all of them there",
                "set loop.parallel.zero to 3, without a pipeline, or to 0",
            )
        if place == "cpu":
            self._can_have_layers_on_host()
        if self.offload.to_disk and self.save_in_background:
            raise UsageError(
                "loop.save_in_background copies weights and state in memory, which loop.offload keeps out of it",
                "leave one of them out",
            )
        return self

    def _can_have_layers_on_host(self) -> None:
        parallel = self.parallel
        if self.optimizer.updates_in_backward:
            raise UsageError(
                f"{self.optimizer.name} updates weights where their gradients are computed, but with "
                "loop.offload.parameters cpu they are elsewhere",
                "choose another optimizer",
            )
        if parallel.tensor * parallel.pipeline * parallel.expert > 1 or parallel.compress != "none":
            raise UsageError(
                "loop.offload.parameters cpu is for layers that a process computes whole and whose gradients are "
                "exchanged as they are, so not for loop.parallel.tensor, pipeline, expert and compress",
                "leave one of them out",
            )
        if self.activation_mb is not None:
            raise UsageError(
                "loop.activation_mb is measured on layers whose weights stay, but loop.offload.parameters is cpu",
                "leave it out: then all layers compute again",
            )

    @model_validator(mode="after")
    def _trackers_are_there(self) -> Self:
        require_trackers(self.trackers)
        return self

    @model_validator(mode="after")
    def _ramp_rises(self) -> Self:
        if self.batch_ramp is not None and self.batch_ramp.start > self.batch_size:
            raise UsageError(
                f"batches cannot grow from {self.batch_ramp.start} to {self.batch_size}", "lower loop.batch_ramp.start"
            )
        return self
