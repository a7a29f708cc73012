"""Calls of tools in answers of all formats: found whole and in pieces, and nothing else is lost or raised."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.serve.tool_choice import MAX_CALLS
from tallow.serve.tool_formats import ANY_FORMAT, FORMATS, ToolFormat, tool_format
from tallow.serve.tools import ToolParser

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "where": {"type": "object"},
    },
}
TOOLS: list[dict[str, Any]] = [
    {"name": "weather", "parameters": WEATHER},
    {"name": "now"},
]
DIFFICULT = '{"city": "} ]</tool_call>\\" \\\\ \\u00e9 雨 ;", "where": {"a": [{"b": {}}, "{["]}}'
RAIN = '{"city": "Rome", "days": 2}'

START = '<tool_call>{"name": "weather", "arguments": '

Calls = list[tuple[str, str]]
RAINY: Calls = [("weather", RAIN)]
BOTH: Calls = [("weather", DIFFICULT), ("now", "{}")]


def tool_parser(template: str | None, tools: Sequence[dict[str, Any]]) -> ToolParser:
    return ToolParser(tool_format(template), tools)


def read(parser: ToolParser, pieces: Iterable[str]) -> tuple[str, Calls]:
    """The content, and each call's name and arguments, put together as clients do it."""
    content, calls, ids = "", [], set()
    for shown, deltas in [*map(parser.push, pieces), parser.finish()]:
        content += shown
        for delta in deltas:
            if delta.id is not None:
                assert re.fullmatch(r"call_[0-9a-f]{24}", delta.id)
                ids.add(delta.id)
                calls.append((delta.name, ""))
            else:
                assert delta.name is None
            assert delta.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    assert len(ids) == len(calls)
    return content, calls


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = [0, *sorted({place for place in places if place < len(text)}), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


ANSWERS: dict[str, tuple[str, str, str, Calls]] = {  # template, answer, content, calls
    "hermes": (
        "<tool_call>",
        f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {DIFFICULT}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "Let me see.",
        BOTH,
    ),
    "without an end": ("<tool_call>", f"{START}{RAIN}}}", "", RAINY),
    "without a tag": ("<tool_call>", f'{{"name":"weather","arguments":{RAIN}}}\n</tool_call>', "", RAINY),
    "a brace missing": ("<tool_call>", f"{START}{RAIN}</tool_call>", "", RAINY),
    "a brace too many": ("<tool_call>", f"{START}{RAIN}}}}}</tool_call>", "", RAINY),
    "text around": (
        "<tool_call>",
        'a\n\n<tool_call>{"name": "now"}</tool_call>\n b <tool_call>',
        "a\n\n\n b <tool_call>",
        [("now", "{}")],
    ),
    "arguments first": (
        "<tool_call>",
        f'<tool_call>{{"arguments": {DIFFICULT}, "name": "weather"}}</tool_call>',
        "",
        [("weather", DIFFICULT)],
    ),
    "arguments in a string": ("<tool_call>", START + '"{\\"days\\": 2}"}', "", [("weather", '{"days": 2}')]),
    "null": (
        "<tool_call>",
        '<tool_call>{"type": "function", "name": "now", "arguments": null}</tool_call>',
        "",
        [("now", "{}")],
    ),
    "a line's end in a string": ("<tool_call>", f'{START}{{"city": "a\nb"}}}}', "", [("weather", '{"city": "a\\nb"}')]),
    "smollm": (
        "<tool_call>",
        f'<tool_call>[\n{{"name": "weather", "arguments": {DIFFICULT}}},\n{{"name": "now", "arguments": {{}}}}\n]'
        "</tool_call>",
        "",
        BOTH,
    ),
    "no call": ("<tool_call>", "<tool_call>[]</tool_call>", "", []),
    "llama": ("", f'{{"name": "weather", "parameters": {DIFFICULT}}}; {{"name": "now", "parameters": {{}}}}', "", BOTH),
    "llama, tagged": ("", f'<|python_tag|>{{"name": "weather", "parameters": {RAIN}}}', "", RAINY),
    "llama, in lines": (
        "",
        f'I call.\n{{"name": "weather", "parameters": {RAIN}}}\n{{"name": "now", "parameters": {{}}}}\n\nDone.',
        "I call.\n\nDone.",
        [("weather", RAIN), ("now", "{}")],
    ),
    "pythonic": (
        "",
        """[weather(city='it\\'s "r]a)i(n" \\d\\x41', days=-2, units=None, where={"a": (1, [True,],)}), now()]""",
        "",
        [
            (
                "weather",
                '{"city": "it\'s \\"r]a)i(n\\" \\\\dA", "days": -2, "units": null, "where": {"a": [1, [true]]}}',
            ),
            ("now", "{}"),
        ],
    ),
    "lfm": (
        "<|tool_list_start|>",
        "<|tool_call_start|>[now(), weather(days=2)]<|tool_call_end|>Well.",
        "Well.",
        [("now", "{}"), ("weather", '{"days": 2}')],
    ),
    "mistral": (
        "[TOOL_CALLS]",
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {DIFFICULT}, "id": "aB3456789"}}, '
        '{"name": "now", "arguments": {}}]',
        "",
        BOTH,
    ),
    "mistral, named": ("[TOOL_CALLS]", f"Hm.[TOOL_CALLS]weather{DIFFICULT}[TOOL_CALLS]now{{}}", "Hm.", BOTH),
    "mistral, with marks": ("[TOOL_CALLS]", f"[TOOL_CALLS]weather[CALL_ID]aB3456789[ARGS]{RAIN}", "", RAINY),
    "deepseek": (
        "<｜tool▁call▁begin｜>",
        f"Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{DIFFICULT}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Yes.",
        BOTH,
    ),
    "deepseek 3.1": (
        "<｜tool▁call▁begin｜>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{DIFFICULT}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [("weather", DIFFICULT)],
    ),
    "kimi": (
        "<|tool_call_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        f"{RAIN}<|tool_call_end|><|tool_calls_section_end|>",
        "",
        RAINY,
    ),
    "qwen coder": (
        "<function=",
        'So:\n<tool_call>\n<function=weather>\n<parameter=city>\n a\n"b" </p\n\n</parameter>\n'
        "<parameter=days>\n2\n</parameter>\n"
        "<parameter=units>\nnull\n</parameter>\n"
        '<parameter=where>\n{"x": [1]}\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "So:",
        [("weather", '{"city": " a\\n\\"b\\" </p\\n", "days": 2, "units": null, "where": {"x": [1]}}'), ("now", "{}")],
    ),
    "qwen coder, ends missing": (
        "<function=",
        "<function=weather>\n<parameter=city>\nRome\n<parameter=days>\n2\n</function>",
        "",
        RAINY,
    ),
    "llama, custom": ("<function=", f"<function=weather>{RAIN}</function>", "", RAINY),
    "glm": (
        "<arg_key>",
        "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        "",
        [("weather", RAIN), ("now", "{}")],
    ),
    "minimax": (
        "<invoke name=",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
        "",
        RAINY,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_whole_and_cut_at_every_place(name: str) -> None:
    template, answer, content, calls = ANSWERS[name]
    expected = content, calls
    assert read(tool_parser(template, TOOLS), [answer]) == expected
    assert read(tool_parser(template, TOOLS), answer) == expected
    for place in range(1, len(answer)):
        assert read(tool_parser(template, TOOLS), [answer[:place], answer[place:]]) == expected
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


CONTENT = [
    "Plain text, with {braces}, [brackets] and <tags>.",
    " \n",
    "",
    '{"name": "Ann", "parameters": {}}',
    '{\n  "calls": [\n    {"name": "now", "parameters": {}}\n  ]\n}',
    '{"name": "now", "description": "A tool", "parameters": {}}',
    'Quoted: {"name": "now", "parameters": {}}',
    "[1, 2]",
    "[now](https://example.org)\n[other()]",
    "[now(1)]",
    "[now(a=open)]",
    "[now(a=1",
    "now()",
    '<tool_call>{"name": "other", "arguments": {}}</tool_call> more',
    '<tool_call>{"name": "now", "arguments": ',
    '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
    '<tool_call>{"arguments": {"a": NaN}, "name": "now"}</tool_call>',
    '<tool_call>{"name": "now", "arguments": "{"}</tool_call>',
    "<tool_call>{'name': 'now'}</tool_call>",
    '<tool_call>{"name": "now\\ud800", "arguments": {}}</tool_call>',
    "<tool_call> and <|python_tag|>",
    "a <tool_cal",
]


@pytest.mark.parametrize("answer", CONTENT)
def test_what_is_no_call_is_content_as_it_stands(answer: str) -> None:
    assert read(tool_parser(None, TOOLS), [answer]) == (answer, [])
    assert read(tool_parser(None, TOOLS), answer) == (answer, [])


@pytest.mark.parametrize(("answer", "content", "arguments"), [
    ('<tool_call>{"name": "weather", "arguments": {"city": "Ro', "", '{"city": "Ro'),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Ro\\', "", '{"city": "Ro\\'),
    ('<tool_call>{"name": "weather", "arguments": {"days": 2</tool_call> Sorry.', " Sorry.", '{"days": 2'),
    ('<tool_call>{"name": "weather", "arguments": {"days": [2}} Sorry.', " Sorry.", '{"days": [2'),
])  # fmt: skip
def test_arguments_that_break_off_stay_as_they_were_written(answer: str, content: str, arguments: str) -> None:
    assert read(tool_parser("<tool_call>", TOOLS), answer) == (content, [("weather", arguments)])


FRAGMENTS = sorted(
    {tag for form in (*FORMATS, ANY_FORMAT) for tag in form.tags}
    | {'{"name": "weather", "arguments": ', '{"arguments": ', ', "name": "now"}', '"name": ', RAIN, DIFFICULT}
    | {
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ";",
        ":",
        '"',
        "'",
        "\\",
        "\n",
        " ",
        "=",
        "null",
        "a",
        "é",
        "weather",
        "now()",
    }
    | {
        "<parameter=city>",
        "<parameter=days>\n",
        "</parameter>",
        "<arg_key>city</arg_key>",
        "<arg_value>",
        "</arg_value>",
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from((*FORMATS, ANY_FORMAT)),
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join),
    st.lists(st.integers(1, 200), max_size=20),
)
def test_any_cutting_gives_the_same_and_nothing_raises(form: ToolFormat, answer: str, places: list[int]) -> None:
    whole = read(ToolParser(form, TOOLS), [answer])
    assert read(ToolParser(form, TOOLS), cut(answer, places)) == whole
    assert read(ToolParser(form, TOOLS), answer) == whole


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=4), st.booleans()
)
def test_any_arguments_come_through(arguments: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(arguments, ensure_ascii=ascii_only)
    answer = f'<tool_call>{{"name": "weather", "arguments": {text}}}</tool_call>'
    content, calls = read(tool_parser("<tool_call>", TOOLS), cut(answer, range(1, len(answer), 3)))
    assert (content, calls) == ("", [("weather", text)])


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text() | st.integers() | st.booleans() | st.none()
    )
)
def test_any_arguments_in_pythons_syntax(arguments: dict[str, Any]) -> None:
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    _, calls = read(tool_parser(None, TOOLS), [f"[weather({written})]"])
    assert [(name, json.loads(text)) for name, text in calls] == [("weather", arguments)]


def test_arguments_come_while_they_are_written() -> None:
    parser = tool_parser("<tool_call>", TOOLS)
    assert parser.push('Hi <tool_call>\n{"name": "weath') == ("Hi", [])
    _, (first,) = parser.push('er", "arguments": {"city": "Ro')
    assert (first.name, first.arguments) == ("weather", '{"city": "Ro')
    _, (second,) = parser.push("me")
    assert (second.index, second.id, second.name, second.arguments) == (0, None, None, "me")
    coder = tool_parser("<function=", TOOLS)
    coder.push("<function=weather>\n<parameter=city>\n")
    assert [delta.arguments for delta in coder.push("Rome")[1]] == ["Rome"]


def test_content_waits_only_for_a_tag_that_may_come() -> None:
    parser = tool_parser("<tool_call>", TOOLS)
    assert parser.push("1 < 2 <")[0] == "1 < 2"
    assert parser.push("tool")[0] == ""
    assert parser.push(", x")[0] == " <tool, x"


def test_calls_beyond_the_limit_are_content() -> None:
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    content, calls = read(tool_parser("<tool_call>", TOOLS), [call * (MAX_CALLS + 2)])
    assert len(calls) == MAX_CALLS
    assert content == call * 2


@pytest.mark.parametrize("tools", [[], [{"name": "now", "parameters": {"properties": 3}}]])
def test_odd_tools(tools: Sequence[dict[str, Any]]) -> None:
    answer = "<function=now><parameter=a>1</parameter></function>"
    expected = ("", [("now", '{"a": 1}')]) if tools else (answer, [])
    assert read(tool_parser("<function=", tools), [answer]) == expected


HOSTILE = [
    "[", "{", "\n{", "\n[", "<", " ", "<tool_call>", "<tool_call>{", START, '\n[weather(city="', "<function=weather>",
    "<function=weather><parameter=city>1</parameter>", "[TOOL_CALLS]weather", "<｜tool▁call▁begin｜>now<｜tool▁sep｜>",
]  # fmt: skip
INSIDE = ['{"a":', "[", "[],", '\\"', "\\", "\n", "-", "9", "\ud83d"]


@pytest.mark.parametrize("count", [100_000, 5_000])
def test_hostile_text_takes_linear_time(count: int) -> None:
    """In one piece, and the shorter ones in pieces of one character; some 2 and 6 µs a character are usual."""
    texts = [part * count for part in HOSTILE]
    texts += [START + before + part * count + '"}}' for part in INSIDE for before in ('{"a": "', '{"a": ', '"')]
    texts += [f"[weather(city={part * count})]" for part in INSIDE]
    texts += ['{"arguments": {"a": "' + part * count + '"}, "name": "now"}' for part in INSIDE]
    for text in texts:
        parser = tool_parser("<function=" if "function" in text else "[TOOL_CALLS]" if "CALLS" in text else None, TOOLS)
        pieces = cut(text[:count], () if count > 5_000 else range(1, count))
        start = time.process_time()
        for piece in pieces:
            parser.push(piece)
        parser.finish()
        assert time.process_time() - start < 1, text[:60]


def test_an_answer_of_a_million_characters_in_small_pieces() -> None:
    """What is held back is not gone through again with each piece: 2.5 s would be 10 µs a character."""
    parser = tool_parser(None, TOOLS)
    start = time.process_time()
    parser.push('{"arguments": {"city": "')
    for _ in range(100_000):
        parser.push("[{\\n 雨 ab")
    _, (delta,) = parser.push('"}, "name": "weather"}')
    assert len(json.loads(delta.arguments)["city"]) == 800_000
    assert time.process_time() - start < 2.5


def test_format_by_template() -> None:
    hermes = "{%- for call in message.tool_calls %}<tool_call>\n{{ call | tojson }}\n</tool_call>{% endfor %}"
    assert tool_format(hermes).openers == ("<tool_call>",)
    assert tool_format("<tool_call>\n<function=example>\n<parameter=p>").parameter is not None
    assert tool_format("{{ '[TOOL_CALLS]' }}").openers == ("[TOOL_CALLS]",)
    for unknown in (None, "", '{"name": function name, "parameters": …}', "[func_name1(param1=value1)]"):
        assert tool_format(unknown) is ANY_FORMAT


def test_answers_that_are_forced() -> None:
    several = f'[{{"name": "weather", "arguments": {DIFFICULT}}}, {{"name": "now", "arguments": {{}}}}]'
    assert read(ToolParser(ANY_FORMAT, TOOLS), several) == ("", [("weather", DIFFICULT), ("now", "{}")])
    assert read(ToolParser(ANY_FORMAT, TOOLS, "weather"), DIFFICULT) == ("", [("weather", DIFFICULT)])
    assert read(ToolParser(ANY_FORMAT, TOOLS, "weather"), DIFFICULT[:20]) == ("", [("weather", DIFFICULT[:20])])
    named = '{"name": "now", "arguments": {}}'  # may be arguments, too
    assert read(ToolParser(ANY_FORMAT, TOOLS, "weather"), named) == ("", [("weather", named)])
