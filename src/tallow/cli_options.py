"""Options that belong together, each declared once: a command takes a whole group of them as one parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError

import tallow
from tallow.engine.choices import CachePrecision, Device, Placement, Precision
from tallow.errors import UsageError
from tallow.kernels.threads import set_num_threads
from tallow.recipe import apply_overrides, load_recipe, parse_section
from tallow.startup import exempt_from_collection

if TYPE_CHECKING:  # importing these for good would import torch
    from tallow.engine.beam_search import BeamParams
    from tallow.engine.generation import Generation
    from tallow.engine.language_model import LanguageModel
    from tallow.engine.request import SamplingParams
    from tallow.engine.structure import Structure
    from tallow.serve.settings import ServeSettings
    from tallow.tokenizer.tokenizer import Tokenizer

MAX_THREADS = 1024

Source = Annotated[
    str | None, typer.Argument(metavar="RECIPE.yaml | MODEL", help="A recipe, or a model to start from.")
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model directory, a .gguf file, a run, or a pulled name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
]
Run = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory \\[default: runs/<name>].")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew instead of skipping or resuming what is there.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped (this is also the default).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
PrecisionOption = Annotated[Precision, typer.Option(help="auto: as stored.")]
DeviceOption = Annotated[Device, typer.Option(help="auto: a GPU if there is one.")]
CachePrecisionOption = Annotated[
    CachePrecision,
    typer.Option(
        help="What keys and values are held in; auto: fp32 beside weights in fp32, q8 beside 4 bits, else bf16."
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads \\[default: all cores].")]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded."""

    precision: PrecisionOption = "auto"
    weights: Annotated[
        Placement, typer.Option(help="Where they are; auto: mapped from a file if memory has no room.")
    ] = "auto"
    device: DeviceOption = "auto"
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A LoRA adapter (a PEFT folder) to put on the model.")
    ] = None
    speculate: Annotated[
        str, typer.Option(metavar="off|ngram|MODEL", help="Who guesses next tokens; MODEL: a smaller one, as draft.")
    ] = "off"
    cache_precision: CachePrecisionOption = "auto"
    cache_bytes: Annotated[
        int | None, typer.Option(help="Memory for keys and values \\[default: an eighth of the machine's, at most].")
    ] = None
    threads: Threads = None

    def load(self, model: str) -> tuple[LanguageModel, str | None]:
        """A model that lives as long as the process, and the name of its adapter, if it is to have one."""
        set_threads(self.threads)
        loaded = tallow.load(
            model,
            self.precision,
            self.weights,
            device=self.device,
            speculate=self.speculate,
            cache_precision=self.cache_precision,
            cache_bytes=self.cache_bytes,
        )
        exempt_from_collection()
        if self.adapter is None:
            return loaded, None
        loaded.load_adapter(str(self.adapter), self.adapter)
        return loaded, str(self.adapter)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; the fields but the last are those of `SamplingParams`."""

    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0
    top_k: Annotated[int, typer.Option(help="Choose among the k likeliest; 0: all.")] = 0
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest that make up this probability.")] = 1.0
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one.")] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: discourage tokens already there.")] = 1.0
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other of tallow.SamplingParams, such as typical_p=0.9; may be repeated.",
        ),
    ] = None

    def params(self, **more: object) -> SamplingParams:
        """What all options together, and more fields, come to.

        Raises:
            UsageError: A setting is unknown, or a value makes no sense.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "settings"}
        values |= {"stop": self.stop or [], **more}
        try:
            values = apply_overrides(values, self.settings or [], "key=value", "typical_p=0.9")
            return TypeAdapter(tallow.SamplingParams).validate_python(values)
        except ValidationError as error:
            problem = error.errors()[0]
            known = ", ".join(field.name for field in fields(tallow.SamplingParams))
            name = ".".join(map(str, problem["loc"]))
            if problem["type"] == "unexpected_keyword_argument":
                raise UsageError(f"unknown setting {name}", f"choose one of {known}") from error
            raise UsageError(f"{name} is {problem['input']!r}: {problem['msg'].lower()}", "correct it") from error


@dataclass(frozen=True)
class FormOptions:
    """What an answer must look like."""

    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE|TEXT", help="The answer is JSON that this schema allows.")
    ] = None
    regex: Annotated[str | None, typer.Option(help="The whole answer matches this regular expression.")] = None
    choice: Annotated[
        list[str] | None, typer.Option(help="The answer is this text or another choice; may be repeated.")
    ] = None
    grammar: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The answer is a text of this grammar (Lark, with a rule `start`)."),
    ] = None

    def structure(self) -> Structure | None:
        """The structure that is asked for; None: anything will do."""
        from tallow.engine.structure import read_structure

        return read_structure(self.json_schema, self.regex, self.choice or (), self.grammar)


@dataclass(frozen=True)
class AnswerOptions:
    """How many answers, how they are sought, and what is told of them."""

    n: Annotated[int, typer.Option(min=1, help="How many answers.")] = 1
    best_of: Annotated[int | None, typer.Option(min=1, help="Draw so many, and give the likeliest of them.")] = None
    beams: Annotated[int | None, typer.Option(min=1, help="Search along so many beams for the likeliest answers.")] = (
        None
    )
    length_penalty: Annotated[
        float | None, typer.Option(help="Of a beam search: above 0 longer answers are preferred \\[default: 1].")
    ] = None
    log_probs: Annotated[
        int | None, typer.Option(metavar="K", help="With --json: of each token, and of the K likeliest at its place.")
    ] = None

    def beam_params(self, params: SamplingParams) -> BeamParams | None:
        """How a beam search is to go; None if there is to be none.

        Raises:
            UsageError: Options exclude each other.
        """
        if self.beams is None:
            if self.length_penalty is not None:
                raise UsageError("--length-penalty is for beam search", "give --beams, too")
            return None
        if self.best_of is not None:
            raise UsageError("--beams excludes --best-of", "leave one of them out")
        if self.n > self.beams:
            raise UsageError(f"{self.beams} beams end in at most {self.beams} answers", "take more --beams")
        from tallow.engine.beam_search import BeamParams

        shared = {name: getattr(params, name) for name in ("max_new_tokens", "stop_ids", "ignore_eos")}
        plain = tallow.SamplingParams(**shared)
        others = [field.name for field in fields(params) if getattr(params, field.name) != getattr(plain, field.name)]
        if others:
            raise UsageError(
                f"--beams excludes {' and '.join(_option(name, params) for name in others)}",
                "leave it out; besides --n and --length-penalty a beam search takes --max-new-tokens, "
                "--set stop_ids=[ID, …] and --set ignore_eos=true",
            )
        if self.length_penalty is not None:
            shared |= {"length_penalty": self.length_penalty}
        return BeamParams(self.beams, **shared)

    def texts(self, answers: Sequence[Generation]) -> list[str]:
        """Answers as they are shown: one as it stands, several with their places and scores."""
        if self.n == 1:
            return [answer.text for answer in answers]
        return [
            f"[{place}, score {answer.score:.3f}]\n{answer.text.strip()}"
            for place, answer in enumerate(answers, start=1)
        ]

    def as_json(self, answers: Sequence[Generation], params: SamplingParams) -> dict[str, Any]:
        """Answers as one object: the keys of one, or a list `choices` of several."""
        top = ["top_log_probs"] if params.top_log_probs else []
        keys = ["ids", "text", "finish_reason", *(["log_probs", *top] if self.log_probs is not None else [])]
        prompt_keys = ["prompt_ids"]
        if params.prompt_log_probs:
            prompt_keys += ["prompt_log_probs", *(f"prompt_{key}" for key in top)]
        prompt = {key: getattr(answers[0], key) for key in prompt_keys}
        if self.n == 1:
            return prompt | {key: getattr(answers[0], key) for key in keys}
        return prompt | {"choices": [{key: getattr(answer, key) for key in [*keys, "score"]} for answer in answers]}


@dataclass(frozen=True)
class ServeOptions:
    """How models are served."""

    host: Annotated[str | None, typer.Option(help="Where to listen \\[default: 127.0.0.1].")] = None
    port: Annotated[int | None, typer.Option(help="0: any that is free \\[default: 8000].")] = None
    keys_file: Annotated[Path | None, typer.Option(help="A file with an API key a line, as NAME:KEY.")] = None
    admin_key_file: Annotated[Path | None, typer.Option(help="A file with the key for /admin.")] = None
    precision: Annotated[Precision | None, typer.Option(help="Of MODEL \\[default: as stored].")] = None
    device: Annotated[Device | None, typer.Option(help="\\[default: a GPU if there is one]")] = None
    speculate: Annotated[
        str | None, typer.Option(metavar="off|ngram|MODEL", help="Who guesses next tokens \\[default: off].")
    ] = None
    cache_precision: Annotated[CachePrecision | None, typer.Option(help="Of keys and values.")] = None
    cache_bytes: Annotated[int | None, typer.Option(help="Memory for keys and values.")] = None
    max_running: Annotated[int | None, typer.Option(help="Most answers at a time \\[default: 64].")] = None
    policy: Annotated[
        Literal["first-come", "priority", "shortest"] | None,
        typer.Option(help="Who goes first \\[default: first-come]."),
    ] = None
    tensor_parallel: Annotated[
        int | None, typer.Option(help="Spread a model over so many processes \\[default: 1, or those of torchrun].")
    ] = None
    unload_after_s: Annotated[float | None, typer.Option(help="Unload a model that nobody asks for so long.")] = None
    log: Annotated[Path | None, typer.Option(help="An SQLite file that requests are written to.")] = None
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers there, too.")] = False
    replicas: Annotated[int | None, typer.Option(help="Servers of all models, on Ray \\[default: 1].")] = None
    threads: Threads = None

    def settings(
        self, recipe: Path | None, models: Sequence[str], adapters: Sequence[str], overrides: Sequence[str]
    ) -> ServeSettings:
        """What the section `serve` of a recipe, the options and the overrides say together.

        Raises:
            UsageError: There is no model, or something does not fit.
        """
        from tallow.serve.settings import ModelSettings, ServeSettings
        from tallow.stages import Recipe

        sections = apply_overrides(load_recipe(recipe) if recipe is not None else {}, overrides)
        Recipe.parse({"name": "serve", **sections})  # no section is unknown
        values = sections.get("serve") or {}
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value is not None and value is not False}
        of_models = {name: given.pop(name) for name in list(given) if name in ModelSettings.model_fields}
        served = dict(values.get("models") or {})
        for model in models:
            name, _, path = model.rpartition("=")
            name = name or Path(path).name.removesuffix(".gguf")
            if name in served:
                raise UsageError(f"there are two models {name}", "name one: --model NAME=MODEL")
            served[name] = {"path": path, **of_models}
        if not served:
            raise UsageError("there is no model to serve", "tallow serve MODEL")
        if adapters:
            first = next(iter(served))
            pairs = {adapter.partition("=")[0]: adapter.partition("=")[2] for adapter in adapters}
            if not all(pairs) or not all(pairs.values()):
                raise UsageError("an adapter needs a name and a directory", "--adapter NAME=DIR")
            served[first] = {**served[first], "adapters": served[first].get("adapters", {}) | pairs}
        return parse_section(ServeSettings, {**values, **given, "models": served}, "serve")


def _option(name: str, params: SamplingParams) -> str:
    """The option that sets this of the sampling parameters."""
    option = "log_probs" if name == "top_log_probs" else name
    if params.structure is not None and name == "structure":
        option = next(field.name for field in fields(params.structure) if getattr(params.structure, field.name))
    own = {field.name for group in (SamplingOptions, AnswerOptions, FormOptions) for field in fields(group)}
    return f"--{option.replace('_', '-')}" if option in own else f"--set {name}"


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: in place of each parameter that is a group, the options of that group.

    A group's default values are those of the parameter's default, or else its own.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        defaults = group() if parameter.default is Parameter.empty else parameter.default
        for name, annotation in get_type_hints(group, include_extras=True).items():
            default = getattr(defaults, name)
            parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

    @wraps(command)
    def with_groups(**values: Any) -> None:
        given = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **given)

    vars(with_groups)["__signature__"] = Signature(parameters)
    return with_groups


def set_threads(threads: int | None) -> None:
    """Compute with so many threads.

    Raises:
        UsageError: There cannot be so many.
    """
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"--threads {threads} is not between 1 and {MAX_THREADS}", "leave it out to use all cores")
        set_num_threads(threads)


def is_recipe(source: str) -> bool:
    """Whether it is named as a recipe is."""
    return source.endswith((".yaml", ".yml"))


def load_tokenizer(source: str) -> Tokenizer:
    """That of a model, or in a file or directory of its own."""
    from tallow.tokenizer.formats import has_tokenizer
    from tallow.tokenizer.tokenizer import Tokenizer

    if has_tokenizer(Path(source)):
        return Tokenizer.load(source)
    from tallow.models import formats  # imports torch, for which a file above need not wait
    from tallow.models.store import resolve

    return formats.load_tokenizer(resolve(source))
