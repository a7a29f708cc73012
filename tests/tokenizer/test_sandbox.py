from __future__ import annotations

import resource
import threading
import time

import pytest
from jinja2 import TemplateError

from tallow.tokenizer import sandbox
from tallow.tokenizer.sandbox import MAX_SECONDS, MAX_SOURCE, BoundedEnvironment, TemplateLimitError

ONE_STEP = 1.0  # seconds that the last step before the limit may take

DOUBLE = (
    "{{% set x = namespace(v={start}) %}}{{% for i in range(60) %}}{{% set x.v = {step} %}}{{% endfor %}}{{{{ x.v }}}}"
)
BIG = "{% set a = 'a' * 10000000 %}"
HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops with conditions": "{% for i in range(99999) if range(99999)|list %}{% endfor %}",
    "nested filters": "{% for i in range(99999) %}{% set x = range(99999)|map('string')|list %}{% endfor %}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "endless range": "{% for i in range(10**9) %}{% endfor %}",
    "doubled text, ~": DOUBLE.format(start="'a'", step="x.v ~ x.v"),
    "doubled text, +": DOUBLE.format(start="'a'", step="x.v + x.v"),
    "doubled text, join": DOUBLE.format(start="'a'", step="[x.v, x.v]|join"),
    "doubled text, format": DOUBLE.format(start="'a'", step="'{0}{0}'.format(x.v)"),
    "doubled text, format_map": DOUBLE.format(start="'a'", step="'{a}{a}'.format_map({'a': x.v})"),
    "doubled text, %": DOUBLE.format(start="'a'", step="'%s%s' % (x.v, x.v)"),
    "doubled text, replace": DOUBLE.format(start="'a'", step="x.v.replace('a', 'aa')"),
    "doubled text, set block": "{% set x = namespace(v='a') %}{% for i in range(60) %}"
    "{% set y %}{{ x.v }}{{ x.v }}{% endset %}{% set x.v = y %}{% endfor %}",
    "doubled list": DOUBLE.format(start="[1]", step="x.v + x.v"),
    "doubled nesting": DOUBLE.format(start="[1]", step="[x.v, x.v]"),
    "doubled nesting, dict": DOUBLE.format(start="[1]", step="{'a': x.v, 'b': x.v}"),
    "doubled nesting, dict()": DOUBLE.format(start="[1]", step="dict(a=x.v, b=x.v)"),
    "doubled nesting, tuple": DOUBLE.format(start="(1,)", step="(x.v, x.v)"),
    "squared number": DOUBLE.format(start="10", step="x.v * x.v"),
    "text times number": "{{ 'a' * 10**9 }}",
    "number times text": "{{ 10**9 * 'a' }}",
    "list times number": "{{ [1] * 10**9 }}",
    "power": "{{ 2 ** 10 ** 9 }}{{ 10 ** (10 ** 9) }}",
    "rounding": "{{ 1.5|round(10**9, 'ceil') }}",
    "center": "{{ 'a'.center(10**9) }}",
    "center filter": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(width=10**9) }}{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "indent": "{{ ('a\\n' * 99999)|indent(99999) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "join": "{{ range(99999)|join('a' * 99999) }}",
    "join method": "{{ ('a' * 99999).join(['b'] * 99999) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "replace filter": "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
    "replace nothing": "{{ ('a' * 99999)|replace('', 'b' * 99999) }}",
    "replace filter, named": "{{ ('a' * 99999)|replace(new='b' * 99999, old='a') }}",
    "replace by map": "{{ [('a' * 99999)]|map('replace', 'a', 'b' * 99999)|list }}",
    "join of a generator": "{{ range(99999)|map('string')|join('a' * 99999) }}",
    "join method of a generator": "{{ ('a' * 99999).join(range(99999)|map('string')) }}",
    "search from the right": BIG + "{{ a.rfind('ab' + 'a' * 5000000) }}",
    "strip of many": BIG + "{{ a.strip('b' * 10000000 + 'a') }}",
    "trim of many": BIG + "{{ a|trim('b' * 10000000 + 'a') }}",
    "letters selected": BIG + "{{ a|select|first }}",
    "letters sorted": BIG + "{{ a|sort|length }}",
    "letters in a loop": BIG + "{% for c in a if not (" + "c and " * 5000 + "c) %}{% endfor %}",
    "many lists": "{% set r = range(99999)|list %}" + "{% set x = r[1:] %}" * 999,
    "tojson": "{{ ([1] * 9999)|tojson(indent=99999) }}",
    "wide %": "{{ '%999999999d' % 1 }}",
    "wide % by argument": "{{ '%*d' % (999999999, 1) }}",
    "wide format filter": "{{ '%999999999d'|format(1) }}",
    "wide format": "{{ '{:999999999}'.format(1) }}",
    "wide format by argument": "{{ '{:{}}'.format(1, 999999999) }}",
    "wide format by map": "{{ ['%999999999d']|map('format', 1)|list }}",
    "wide date": "{{ strftime_now('%999999999Y') }}",
    "sum of lists": "{{ ([[1]] * 200000)|sum(start=[]) }}",
    "text as a list": BIG + "{{ a|list|length }}",
    "literals": "{% for i in range(99999) %}" + "a" * 50_000 + "{% endfor %}",
    "literals in a set block": "{% set x %}{% for i in range(99999) %}" + "a" * 50_000 + "{% endfor %}{% endset %}",
    "many slices": BIG + "{% set b = a[1:] %}" * 100,
    "many upper": BIG + "{% set b = a.upper() %}" * 100,
    "many operands": BIG + "{{ " + "~".join("a" * 100) + " }}",
    "long source": "a" * (MAX_SOURCE + 1),
    "dense source": "{{ a }}" * 10_000,
}
BROKEN = {
    "deep recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if a %}" * 1000 + "{% endif %}" * 1000,
    "long number": "{{ " + "9" * 5000 + " }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'os' as os %}",
    "str of a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "globals by attr": "{{ (cycler|attr('__init__'))() }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "append": "{% set a = [] %}{{ a.append(1) }}",
    "encode": "{{ 'a'.encode() }}",
    "translate": "{{ 'a'.translate({97: 'b' * 9999}) }}",
    "striptags": "{{ ('<!-- -->' * 99999)|safe.striptags() }}",
    "striptags of safe text": "{{ (('<!-- -->' * 99999)|safe).striptags() }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace arguments": "{{ namespace(__class__=1) }}",
    "lipsum": "{{ lipsum(n=99999) }}",
    "syntax": "{% for %}",
}


def render(source: str) -> str:
    environment = BoundedEnvironment()
    return environment.render(environment.compile_template(source), {})


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests need not wait for the whole time that a template has."""
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.2)


@pytest.mark.usefixtures("short_time")
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_are_stopped(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises((TemplateLimitError, OverflowError)):
        render(source)
    assert time.thread_time() - start < 0.2 + ONE_STEP
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_allowed_fails(source: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  whichever it is: ChatTemplate makes a DataError of it
        render(source)


@pytest.mark.usefixtures("short_time")
def test_the_time_is_that_of_the_thread() -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            render(HOSTILE["nested loops"])
        except TemplateLimitError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert len(failures) == 1
    assert "longer than" in str(failures[0])


def test_a_limit_holds_for_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = BoundedEnvironment()
    half = environment.compile_template("{% for i in range(7) %}{% set b = 'a' * 10000000 %}{% endfor %}")
    whole = environment.compile_template("{% for i in range(14) %}{% set b = 'a' * 10000000 %}{% endfor %}")
    for seconds in (0.0, 0.7 * MAX_SECONDS, 1.4 * MAX_SECONDS):
        monkeypatch.setattr(time, "thread_time", lambda seconds=seconds: seconds)
        environment.render(half, {})
    with pytest.raises(TemplateLimitError, match="too much text"):
        environment.render(whole, {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a' ~ 1 ~ none ~ undefined }}", "a1None"),
        ("{{ [1, 'a', {'b': (2, true)}] }}", "[1, 'a', {'b': (2, True)}]"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% set ns = namespace({'self': 1}, kwargs=2) %}{{ ns.self }}{{ ns.kwargs }}{{ [ns] }}", "12[<namespace>]"),
        ("{{ 'a-b'.split('-')[1:] }}{{ 'abc'[::-1] }}{{ (1, 2, 3)[-1] }}", "['b']cba3"),
        ("{{ '%s is %5.2f' % ('x', 1.5) }}{{ '{:>4}{a}'.format(1, a=2) }}", "x is  1.50   12"),
        ("{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 1.5 * 2 }}{{ -3 + 1 }}", "3310240.53.0-2"),
        ("{{ 'a' * -1 }}{{ 'ab' * 2 }}{{ 'b' in 'abc' and 'x' not in ['y'] }}", "ababTrue"),
        ("{{ {'é<': [1, none]}|tojson }}|{{ {'a': 1}|tojson(indent=2) }}", '{"é<": [1, null]}|{\n  "a": 1\n}'),
        ("{{ [{'a': 1}, {'a': 2}]|map(attribute='a')|sum }}{{ [3, 1]|sort|join(',') }}", "31,3"),
        ("{{ [{'r': 'x'}, {'r': 'y'}]|selectattr('r', 'equalto', 'y')|list|length }}", "1"),
        ("{{ 'x'|default('y') }}{{ z|default('y') }}{{ 'a\\nb'|indent(2) }}{{ 'ab'|replace('a', 'c') }}", "xya\n  bcb"),
        ("{% macro m(x, y='d') %}[{{ x }}{{ y }}{{ caller() }}]{% endmacro %}{% call m(1) %}c{% endcall %}", "[1dc]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}", "a1B"),
        ("a{% generation %}b{% set x = 1 %}{% endgeneration %}c{{ x }}", "abc"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ 'x' if undefined is defined else 'y' }}{{ undefined is none }}{{ 1 is integer }}", "yFalseTrue"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ [1, 2, 3]|batch(2)|list }}", "12[[1, 2], [3]]"),
    ],
)  # fmt: skip
def test_ordinary_templates_work(source: str, expected: str) -> None:
    assert render(source) == expected


def test_raise_exception_carries_its_message() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_generation_marks_its_text_inside_macros_and_loops() -> None:
    environment = BoundedEnvironment()
    template = environment.compile_template(
        "{% macro m() %}{% generation %}x{% endgeneration %}{% endmacro %}"
        "{% for i in [1, 2] %}{% generation %}{{ i }}{{ m() }}{% endgeneration %}{% endfor %}"
    )
    assert environment.marks_generation
    text = environment.render(template, {"generation_start": "<", "generation_end": ">"})
    assert text == "<1<x>><2<x>>"
    assert environment.render(template, {}) == "1x2x"


def test_rendering_is_fast_enough_for_long_conversations() -> None:
    source = """{%- for m in messages %}{%- if m.role == 'user' %}{{ '<u>' + m.content|trim + '</u>' }}
    {%- else %}{{ '<a>' ~ m.content.strip() ~ '</a>' }}{%- endif %}{%- endfor %}"""
    environment = BoundedEnvironment()
    template = environment.compile_template(source)
    messages = [{"role": "user" if index % 2 else "assistant", "content": "x" * 1000} for index in range(2000)]
    start = time.thread_time()
    assert len(environment.render(template, {"messages": messages})) > 2_000_000
    assert time.thread_time() - start < MAX_SECONDS / 2
