"""Jinja for templates that nobody vouches for: bounded in time, in memory and in what it can reach.

A chat template comes with a model, so it is a stranger's program. Jinja's immutable sandbox keeps it from
Python's internals but lets it loop for ever, double a string forty times, or ask for `"a" * 10**9`.
`BoundedEnvironment` closes that. It relies on three rules:

1. Whatever makes a value pays for it out of one budget for the rendering: operators, `~`, slices, calls, filters,
   every piece of output. What can be larger than its operands pays before it is made.
2. No value is larger than `MAX_SIZE`, shared parts counted as often as they occur. So no single step (a comparison,
   a `tojson`, a `sort`) can take long.
3. Each of those steps, and each entry into a block (so each turn of a loop, each call of a macro), looks at the
   CPU time of the thread. That works on every thread, needs no signal, and a busy machine does not use it up.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

MAX_SOURCE = 1 << 17  # characters of a template; the longest published ones have some 40,000
MAX_LEXEMES = 20_000  # of a template; they bound the time of compiling, about one second
MAX_SECONDS = 1.0  # of CPU time for one rendering
MAX_WORK = 1 << 27  # characters made in one rendering; an element of a container counts as ELEMENT_WORK of them
MAX_SIZE = 1 << 24  # of one value, in characters; an element of a container counts as ELEMENT_SIZE of them
ELEMENT_SIZE = 64
ELEMENT_WORK = 8
MAX_SEARCH = 1 << 28  # characters compared in one search
MAX_COUNT = 100_000  # a width, an indentation or a repetition
MAX_BITS = 1 << 14  # of an integer

# What can make a result larger than all its operands together; the first ones by a count that they are given.
COUNTED = frozenset({"batch", "center", "indent", "ljust", "rjust", "round", "slice", "tojson", "truncate", "zfill"})
EXPANDING = COUNTED | {"format", "format_map", "join", "replace"}
# Compare in the worst case each character with each: the library is only clever in the other direction.
SEARCHING = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim"})
# Go through a text character by character.
ITERATING = frozenset(
    {"dictsort", "groupby", "join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr"}
    | {"sort", "sum", "unique"}
)
# Of no use in a chat template, and slow on text made for it, random, or both.
REMOVED_STRING_METHODS = ("encode", "expandtabs", "maketrans", "striptags", "translate", "unescape")
REMOVED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
# Widths that come from an argument (`%*d`, `{:{}}`) or that are just huge.
WIDE_FORMAT = re.compile(r"\d{6}|%[^a-zA-Z%]*\*|\{[^{}]+\{")

GENERATION_START, GENERATION_END = "generation_start", "generation_end"


class TemplateLimitError(TemplateError):
    """The template asks for more time or memory than a chat template may have."""


class TemplateRefusal(TemplateError):
    """The template itself refuses the conversation (`raise_exception`)."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with the limits above and the `{% generation %}` tag.

    Not to be used by two threads at once: it counts for one rendering at a time.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # Constants are not folded: that would run the template's operators while compiling, out of the budget.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self.written,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
        )
        self.code_generator_class = BoundedCode
        self.marks_generation = False
        self.filters = {
            name: self._bounded(name, function)
            for name, function in self.filters.items()
            if name not in REMOVED_FILTERS
        }
        self.tests = {name: self._bounded("", function) for name, function in self.tests.items()}
        self.filters["tojson"] = self._bounded("tojson", to_json)
        self.globals |= {"namespace": namespace, "raise_exception": raise_exception, "strftime_now": strftime_now}
        del self.globals["lipsum"]
        self._work, self._deadline = 0, 0.0

    def compile_template(self, source: str) -> Template:
        """Compile a template.

        Raises:
            TemplateLimitError: The source is too long.
            Exception: Whatever Jinja or Python raise for a source that is not a template.
        """
        if len(source) > MAX_SOURCE or len(list(islice(self.lex(source), MAX_LEXEMES + 1))) > MAX_LEXEMES:
            raise TemplateLimitError("it is too long")
        return self.from_string(source)

    def render(self, template: Template, variables: Mapping[str, Any]) -> str:
        """Render within the limits.

        Raises:
            TemplateLimitError: A limit is reached.
            Exception: Whatever the template provokes.
        """
        self._work, self._deadline = 0, time.thread_time() + MAX_SECONDS
        return self.concat(tuple(template.generate(**variables)))

    # What follows is called by the compiled template.

    def spend(self, amount: int = 0) -> None:
        self._work += amount
        if self._work > MAX_WORK:
            raise TemplateLimitError("it makes too much text")
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it runs longer than {MAX_SECONDS:g} s")

    def made(self, value: Any) -> Any:
        """Pay for a value that is already there."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, Collection):
            self.spend(ELEMENT_WORK * len(value))
            if _size(value) > MAX_SIZE:
                raise TemplateLimitError("it makes too large a list")
        else:
            self.spend()
        return value

    def concat(self, values: tuple[Any, ...]) -> str:
        """The `~` operator."""
        texts = [value if isinstance(value, str) else str(value) for value in values]
        length = sum(map(len, texts))
        if length > MAX_SIZE:
            raise TemplateLimitError("it makes too much text")
        self.spend(length)
        return "".join(texts)

    @pass_context
    def written(self, _context: Context, value: Any) -> str:
        """What `{{ value }}` writes."""
        text = value if isinstance(value, str) else str(value)
        self.spend(len(text))
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            self._bound_integer(_bits(left) * _magnitude(right))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                self._bound_integer(_bits(left) + _bits(right))
            elif _magnitude(left) * _magnitude(right) > MAX_SIZE:
                raise TemplateLimitError("it makes too much text")
        elif operator == "%" and isinstance(left, str):
            self._admit("format", (left, right))
        elif operator == "+":
            self.spend(sum(ELEMENT_WORK * len(value) for value in (left, right) if isinstance(value, Collection)))
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # Named as in Jinja, so that no keyword of the template can collide with a parameter.
        method = getattr(__obj, "__wrapped__", __obj)
        name = getattr(method, "__name__", "")
        if name in EXPANDING:
            args = tuple(map(_solid, args))
        __self._admit(name, (getattr(method, "__self__", None), *args, *kwargs.values()))
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (int, float)) or (isinstance(obj, str) and attr in REMOVED_STRING_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that checks its operands before and pays for its result after."""
        context_arguments = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            if name in EXPANDING:
                args = tuple(map(_solid, args))
            if name == "replace" and not kwargs.keys() <= {"count"}:
                raise TemplateLimitError(
                    "it names the arguments of replace"
                )  # in any order, so it could not be bounded
            self._admit(name, (*args[context_arguments:], *kwargs.values()))
            return self.made(function(*args, **kwargs))

        return bounded

    def _admit(self, name: str, operands: tuple[Any, ...]) -> None:
        """Refuse an operation that would take too long or make too much; nothing of it has been done yet."""
        self.spend()
        if any(isinstance(operand, str) and len(operand) > MAX_SIZE for operand in operands):
            raise TemplateLimitError("it makes too much text")
        if name in SEARCHING and _magnitude(operands[0]) * max(map(_magnitude, operands[1:]), default=1) > MAX_SEARCH:
            raise TemplateLimitError("it searches for too long a text")
        if name in ITERATING and isinstance(operands[0], str) and len(operands[0]) * ELEMENT_SIZE > MAX_SIZE:
            raise TemplateLimitError("it takes too long a text apart")
        if name == "sum" and any(isinstance(operand, (list, tuple)) for operand in operands[1:]):
            raise TemplateLimitError("it adds up lists")  # takes the square of their length
        if name in EXPANDING:
            first, *others = operands
            if name in COUNTED and any(isinstance(other, int) and abs(other) > MAX_COUNT for other in others):
                raise TemplateLimitError(f"it asks for a width or count above {MAX_COUNT:,}")
            if _bound(name, first, others) > MAX_SIZE:
                raise TemplateLimitError("it makes too much text")

    def _bound_integer(self, bits: int) -> None:
        if bits > MAX_BITS:
            raise TemplateLimitError("it computes too large a number")


class BoundedCode(CodeGenerator):
    """Compiles templates so that blocks and expressions report to their `BoundedEnvironment`."""

    def blockvisit(self, nodes: Any, frame: Frame) -> None:
        self.writeline(f"environment.spend({_literal_text(nodes)})")
        super().blockvisit(nodes, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        if node.test is not None:
            node.test = nodes.Compare(node.test, []).set_lineno(node.lineno)  # comparisons report, so conditions do
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._made(super().visit_Compare, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._made(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _made(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`: what the model itself writes, as in `transformers`.

    The body is set between the values of the variables `generation_start` and `generation_end`,
    which are empty unless the rendering gives them.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        assert isinstance(self.environment, BoundedEnvironment)
        self.environment.marks_generation = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start = nodes.Output([nodes.Name(GENERATION_START, "load")])
        end = nodes.Output([nodes.Name(GENERATION_END, "load")])
        return nodes.Scope([start, *body, end]).set_lineno(line, override=True)


class TemplateNamespace(Namespace):
    """What `namespace()` makes: it cannot take on Python's own attributes, and printing it does not descend."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise TemplateError(f"a namespace cannot have an attribute {name}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def namespace(*args: Any, **kwargs: Any) -> TemplateNamespace:
    made = TemplateNamespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def raise_exception(message: str) -> None:
    raise TemplateRefusal(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as in `transformers`: Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format: str) -> str:
    if len(format) > 100 or re.search(r"\d", format):  # the C library pads to any width
        raise TemplateLimitError("it asks for a date in too long a format")
    return datetime.now().strftime(format)


def _literal_text(statements: list[nodes.Node]) -> int:
    """Characters that a block writes as they stand in the source."""
    outputs = [statement for statement in statements if isinstance(statement, nodes.Output)]
    return sum(len(part.data) for output in outputs for part in output.nodes if isinstance(part, nodes.TemplateData))


def _size(value: Any) -> int:
    """Characters of a value with all that is in it; stops counting once above MAX_SIZE."""
    size, waiting = 0, [value]
    while waiting and size <= MAX_SIZE:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Collection):
            size += ELEMENT_SIZE * len(item)
            if size <= MAX_SIZE:
                waiting.extend(item)
                if isinstance(item, Mapping):
                    waiting.extend(item.values())
    return size


def _bound(name: str, first: Any, others: list[Any]) -> int:
    """How large the result of an operation of EXPANDING can be."""
    if name == "replace":
        text, old, new = str(first), str(others[0]), str(others[1])
        return len(text) + text.count(old) * len(new)
    if name in ("format", "format_map"):
        if WIDE_FORMAT.search(str(first)):
            raise TemplateLimitError("it formats with too large or computed widths")
        places = str(first).count("%") + str(first).count("{")
        return len(str(first)) + places * sum(map(_magnitude, others))
    return _magnitude(first) * max(map(_magnitude, others), default=1)


def _solid(value: Any) -> Any:
    """Lists for generators, whose size cannot be known before."""
    return list(value) if isinstance(value, Iterator) else value


def _magnitude(value: Any) -> int:
    """By how much a value can multiply another; at least 1."""
    if isinstance(value, int):
        return max(1, abs(value))
    return max(1, _size(value)) if isinstance(value, Collection) else 1


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0
