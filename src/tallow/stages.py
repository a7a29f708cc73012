"""The table of stages, and the runner that does what a recipe names and skips what is done and unchanged."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat

from tallow.console import is_main_process, say
from tallow.data.work.cluster import ClusterConfig
from tallow.errors import DataError, UsageError
from tallow.files import write_text
from tallow.recipe import Section, apply_overrides, dump_recipe, load_recipe, parse_section
from tallow.run import RECIPE, StageRun, hash_input
from tallow.work import fingerprint_stage

StageFunction = Callable[[Any, StageRun], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One step from raw text to a model.

    Args:
        load: Imports and returns the stage's config class and function (late, so that `--help` is quick).
        product: Name of what it writes, below its directory.
        inputs: Setting → stages whose product it takes, the first of them that the recipe names.
        collects: Setting → stages whose products it takes all together, by stage name.
        found: Setting → file below the run's directory that it names, if it is there and no stage makes it.
        shared: Whether all processes that `torchrun` has started do it together; else only the main one does.
    """

    load: Callable[[], tuple[type[Section], StageFunction]]
    product: str
    inputs: Mapping[str, tuple[str, ...]]
    collects: Mapping[str, tuple[str, ...]]
    found: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False


def _prepare() -> tuple[type[Section], StageFunction]:
    from tallow.data.config import PrepareConfig
    from tallow.data.prepare import prepare

    return PrepareConfig, prepare


def _tokenizer() -> tuple[type[Section], StageFunction]:
    from tallow.tokenizer.train import TokenizerConfig, train_tokenizer

    return TokenizerConfig, train_tokenizer


def _encode() -> tuple[type[Section], StageFunction]:
    from tallow.data.encode import EncodeConfig, encode

    return EncodeConfig, encode


def _mixture() -> tuple[type[Section], StageFunction]:
    from tallow.train.doremi import LearnedMixtureConfig, learn_weights

    return LearnedMixtureConfig, learn_weights


def _pretrain() -> tuple[type[Section], StageFunction]:
    from tallow.plan.dial import SizedPretrainConfig, pretrain_at_size

    return SizedPretrainConfig, pretrain_at_size


def _tune() -> tuple[type[Section], StageFunction]:
    from tallow.tune.sft import TuneConfig, tune

    return TuneConfig, tune


def _compress() -> tuple[type[Section], StageFunction]:
    from tallow.compress.quantize import CompressConfig, compress

    return CompressConfig, compress


def _evaluate() -> tuple[type[Section], StageFunction]:
    from tallow.evaluate.perplexity import EvaluateConfig, evaluate

    return EvaluateConfig, evaluate


def _sample() -> tuple[type[Section], StageFunction]:
    from tallow.evaluate.samples import SampleConfig, sample

    return SampleConfig, sample


SCALING_DIRECTORY = "scaling"
"""The directory in a run for small runs and the laws that are fitted to them."""

MODEL_STAGES = ("pretrain", "tune", "compress")
LAST_MODEL = tuple(reversed(MODEL_STAGES))

STAGES: dict[str, Stage] = {
    "prepare": Stage(_prepare, "documents", {}, {}),
    "tokenizer": Stage(_tokenizer, "tokenizer", {"documents": ("prepare",)}, {}),
    "encode": Stage(_encode, "tokens", {"documents": ("prepare",), "tokenizer": ("tokenizer",)}, {}),
    "mixture": Stage(_mixture, "mixture.json", {"tokens": ("encode",), "tokenizer": ("tokenizer",)}, {}, shared=True),
    "pretrain": Stage(
        _pretrain,
        "model",
        {"tokens": ("encode",), "tokenizer": ("tokenizer",), "learned_mixture": ("mixture",)},
        {},
        found={"scaling": f"{SCALING_DIRECTORY}/scaling.json"},
        shared=True,
    ),
    "tune": Stage(_tune, "model", {"model": ("pretrain",)}, {}, shared=True),
    "compress": Stage(_compress, "model", {"model": ("tune", "pretrain")}, {}),
    "evaluate": Stage(_evaluate, "evaluation.json", {"file": ("prepare",)}, {"models": MODEL_STAGES}),
    "sample": Stage(_sample, "samples.json", {"model": LAST_MODEL}, {}),
}
"""All stages, in the order in which a recipe runs them."""


class RunSettings(Section):
    """What a recipe says of the run as a whole.

    Args:
        name: The run's directory below `runs/`.
        price_per_hour: What an hour of this machine costs, in any currency; it is multiplied into the ledger.
        cluster: Who does the work of stages that processes share through files (prepare).
    """

    name: str = Field(default="run", pattern=r"^[\w-][\w.-]*$")
    price_per_hour: NonNegativeFloat = 0.0
    cluster: ClusterConfig = ClusterConfig()


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: settings of the run and the values of each stage that it names, in order."""

    settings: RunSettings
    stages: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, path: Path | str | None, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe file (None: an empty one) and lay the overrides over it.

        Raises:
            UsageError: A section or setting is unknown, or the file cannot be read.
        """
        values = apply_overrides(load_recipe(path) if path else {}, overrides)
        return cls.parse({"name": Path(path).stem if path else "run", **values})

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Recipe:
        """Check the values of a recipe.

        Raises:
            UsageError: A section is unknown or is no mapping, or a setting of the run does not fit.
        """
        known = (*RunSettings.model_fields, *STAGES, "serve")
        unknown = [key for key in values if key not in known]
        if unknown:
            raise UsageError(f"unknown section {unknown[0]} in the recipe", f"known: {', '.join(known)}")
        for key in (*STAGES, "serve"):
            if values.get(key) is not None and not isinstance(values[key], dict):
                raise UsageError(
                    f"section {key} of the recipe must be a mapping of settings",
                    f"write it as {key}: {{setting: value}}",
                )
        settings = {key: values[key] for key in RunSettings.model_fields if key in values}
        return cls(
            parse_section(RunSettings, settings, "recipe"),
            {key: dict(values[key] or {}) for key in STAGES if key in values},
        )

    def directory(self, run: Path | None) -> Path:
        """The run's directory: `run` if given, else `runs/<name>`."""
        return run or Path("runs") / self.settings.name


def resolve(recipe: Recipe, name: str, directory: Path) -> Section:
    """The settings of a stage, its inputs filled in from the products of earlier stages of the run.

    Raises:
        UsageError: A setting is unknown or does not fit, or an input is neither set nor made by the recipe.
    """
    stage = STAGES[name]
    values = dict(recipe.stages.get(name, {}))
    for setting, sources in stage.inputs.items():
        if values.get(setting) is None:
            made = [source for source in sources if source in recipe.stages or _product(directory, source).exists()]
            if made:
                values[setting] = str(_product(directory, made[0]))
    for setting, sources in stage.collects.items():
        if values.get(setting) is None:
            values[setting] = {
                source: str(_product(directory, source))
                for source in sources
                if source in recipe.stages or _product(directory, source).exists()
            }
    for setting, file in stage.found.items():
        if values.get(setting) is None and (directory / file).exists():
            values[setting] = str(directory / file)
    config = stage.load()[0]
    if "cluster" in config.model_fields:
        values.setdefault("cluster", recipe.settings.cluster.model_dump(mode="json"))
    return parse_section(config, values, name)


def resolve_all(recipe: Recipe, directory: Path) -> dict[str, Section]:
    """The settings of every stage that a recipe names, in order; a recipe that must fail is refused here.

    Raises:
        UsageError: As `resolve` does, or the settings of one stage rule out what another asks for.
        DataError: An input that no stage of the recipe makes does not exist.
    """
    configs = {name: resolve(recipe, name, directory) for name in recipe.stages}
    made = {(directory / name).absolute() for name in configs}
    for name, config in configs.items():
        paths = input_paths(config).items()
        require_inputs(name, {setting: path for setting, path in paths if made.isdisjoint(path.absolute().parents)})
        config.check_inputs()
    _check_together({name: config.model_dump() for name, config in configs.items()}, directory)
    return configs


def _check_together(settings: Mapping[str, Mapping[str, Any]], directory: Path) -> None:
    """Refuse what a stage asks of another that cannot give it."""
    prepare, pretrain = settings.get("prepare"), settings.get("pretrain")
    tune, evaluate = settings.get("tune"), settings.get("evaluate")
    held_out = evaluate and evaluate["file"] == _product(directory, "prepare")
    if prepare and held_out and prepare["validation_fraction"] == 0:
        raise UsageError(
            "evaluate has no text, for prepare.validation_fraction is 0",
            "raise it, or name a held-out text with evaluate.file",
        )
    if pretrain and pretrain["objective"] == "masked":
        _check_masked(settings, _product(directory, "pretrain"))
    if pretrain is None or pretrain["init"] is not None or pretrain["objective"] == "masked":
        return
    from tallow.models.config import DecoderConfig

    context = (pretrain["model"] or DecoderConfig().model_dump())["max_positions"]
    lengths = {}
    if tune and tune["model"] == _product(directory, "pretrain"):
        lengths["tune.loop.sequence_length"] = tune["loop"]["sequence_length"]
    if evaluate and _product(directory, "pretrain") in evaluate["models"].values():
        lengths["evaluate.window"] = evaluate["window"] or 0
    for setting, length in lengths.items():
        if length > context:
            raise UsageError(
                f"{setting} is {length:,}, but the context of the pretrained model has {context:,} tokens",
                "lower it, or raise pretrain.model.max_positions",
            )


def _check_masked(settings: Mapping[str, Mapping[str, Any]], encoder: Path) -> None:
    """Refuse a tokenizer without what masked-language modelling needs, and stages that want a decoder."""
    tokenizer = settings.get("tokenizer")
    if tokenizer and tokenizer["pretrained"] is None and tokenizer["mask_token"] is None:
        raise UsageError(
            "pretrain.objective is masked, but the tokenizer will have no mask token",
            "set tokenizer.mask_token, such as <|mask|>",
        )
    for name, values in settings.items():
        if values.get("model") == encoder or encoder in (values.get("models") or {}).values():
            raise UsageError(
                f"{name} wants a model that continues text, but pretrain.objective masked trains one that cannot",
                f"leave {name} out of this recipe, or name its model",
            )


def run_stage(name: str, config: Section, run: StageRun) -> dict[str, Any]:
    """Do one stage, or return its earlier result if it is done with these settings and inputs.

    Under `torchrun` the main process begins and ends the stage; the others take part where the stage is shared, and
    wait otherwise. Their result is empty.

    Raises:
        TallowError: As the stage does; what it needs to resume is kept.
    """
    with _together(f"{name} {config.model_dump_json()} {run.directory}") as main_says, run.alone():
        if not is_main_process():
            if main_says(False) and STAGES[name].shared:
                STAGES[name].load()[1](config, run)
            return {}
        paths = input_paths(config)
        require_inputs(name, paths)
        config.check_inputs()
        inputs = {setting: hash_input(path) for setting, path in paths.items()}
        fingerprint = fingerprint_stage(name, config, inputs)
        earlier = run.finished(fingerprint) if run.resume else None
        if earlier is not None:
            main_says(False)
            run.reprice()
            say(f"{name}: done before, unchanged")
            return earlier
        say(f"{name}: {run.directory}")
        run.begin(name, config, inputs)
        main_says(True)
        try:
            result = STAGES[name].load()[1](config, run)
        except BaseException:
            run.save_ledger()
            raise
        run.finish(fingerprint, inputs, run.directory / STAGES[name].product, result)
        return result


def run_recipe(recipe: Recipe, directory: Path | str, *, fresh: bool = False) -> dict[str, dict[str, Any]]:
    """Do all stages that a recipe names, in order; what is done and unchanged is skipped.

    `resolved.yaml` in the directory is the recipe with every setting, also those found out on the way: running it
    gives the same results.

    Returns:
        The result of each stage.
    """
    directory = Path(directory)
    if not recipe.stages:
        raise UsageError("the recipe names no stage", f"stages: {', '.join(STAGES)}")
    configs = resolve_all(recipe, directory)
    results = {}
    everything = {name: config.model_dump_json() for name, config in configs.items()}
    with _together(f"{everything} {directory}"):
        for name, config in configs.items():
            run = StageRun(directory / name, recipe.settings.price_per_hour, resume=not fresh)
            results[name] = run_stage(name, config, run)
        if is_main_process():
            _save_resolved(recipe, directory)
    return results


def _save_resolved(recipe: Recipe, directory: Path) -> None:
    """Write the whole recipe, without the inputs that come from its own stages."""
    values = recipe.settings.model_dump(mode="json")
    for name, given in recipe.stages.items():
        made = [*STAGES[name].inputs, *STAGES[name].collects, *STAGES[name].found]
        resolved = load_recipe(directory / name / RECIPE)[name]
        values[name] = {
            setting: value
            for setting, value in resolved.items()
            if setting not in made or given.get(setting) is not None
        }
    write_text(directory / "resolved.yaml", dump_recipe(values))


@contextmanager
def _together(work: str) -> Iterator[Callable[[bool], bool]]:
    """Join the processes that `torchrun` has started, if it has.

    What it gives is a function that all of them call at once, and that returns what the main one says.

    Args:
        work: What they are to do, which must be the same for all.

    Raises:
        UsageError: It is not.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":  # torch is slow to import, and not every stage needs it
        yield bool
        return
    from tallow.parallel import join_world

    with join_world() as world:
        world.require_alike("recipes", work)
        yield lambda said: bool(world.sum(world.is_main and said)[0])


def input_paths(config: Section) -> dict[str, Path]:
    """Every input of a stage, by setting: fields that hold a path or paths, also those of sections that matter."""
    paths: dict[str, Path] = {**config.found_inputs()}
    for setting, value in config:
        if setting not in config.incidental:
            paths |= _paths(setting, value)
    return paths


def _paths(setting: str, value: object) -> dict[str, Path]:
    match value:
        case Path():
            return {setting: value}
        case Section():
            return {f"{setting}.{inner}": path for inner, path in input_paths(value).items()}
        case dict() | tuple() | list():
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return {name: path for key, each in items for name, path in _paths(f"{setting}.{key}", each).items()}
        case _:
            return {}


_PLACES_AT_END = re.compile(r"(?:\.[0-9]+)+\Z")
"""Of a value in lists, behind the setting that holds them."""


def require_inputs(stage: str, paths: Mapping[str, Path]) -> None:
    """See to it that inputs exist.

    Raises:
        DataError: One does not.
    """
    for setting, path in paths.items():
        if not path.exists():
            name = _PLACES_AT_END.sub("", f"{stage}.{setting}")
            raise DataError(f"{name}: {path} does not exist", "check the path, or run the stage that makes it")


def _product(directory: Path, stage: str) -> Path:
    return directory / stage / STAGES[stage].product
