"""How families of models write calls of tools: literals around a function's name and its arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolFormat:
    """What comes around calls. In all formats an object with a name and arguments is a call, too.

    Args:
        markers: One of these in a chat template tells that it is this format.
        openers: What comes before calls, or before each one.
        closers: What comes behind.
        named: Openers and marks behind which a function's name may stand.
        joints: What comes between the name and the arguments.
        parameter: For arguments that are not JSON: what comes before a parameter's name; between name and value, and
            behind the value, both in all spellings, the longest first.
        bare: Calls may stand without an opener at the beginning of any line, not of the first one only.
    """

    markers: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    parameter: tuple[str, tuple[str, ...], tuple[str, ...]] | None = None
    bare: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """What an answer's text must not lack, even where a tokenizer has it as a special token."""
        return self.openers + self.closers + self.joints


FORMATS = (
    ToolFormat(  # Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}], since 2025 [TOOL_CALLS]name[ARGS]{…}
        ("[TOOL_CALLS]",), ("[TOOL_CALLS]",), named=("[TOOL_CALLS]",), joints=("[CALL_ID]", "[ARGS]")
    ),
    ToolFormat(  # DeepSeek V3 and R1: function<｜tool▁sep｜>name and a block of Markdown; V3.1: name<｜tool▁sep｜>{…}
        ("<｜tool▁call▁begin｜>",),
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        ("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        named=("<｜tool▁call▁begin｜>",),
        joints=("<｜tool▁sep｜>", "```json"),
    ),
    ToolFormat(  # Kimi K2: functions.name:0<|tool_call_argument_begin|>{…}
        ("<|tool_call_begin|>",),
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
        named=("<|tool_call_begin|>",),
        joints=("<|tool_call_argument_begin|>",),
    ),
    ToolFormat(  # GLM 4.5
        ("<arg_key>",),
        ("<tool_call>",),
        ("</tool_call>",),
        named=("<tool_call>",),
        parameter=("<arg_key>", ("</arg_key>\n<arg_value>", "</arg_key><arg_value>"), ("</arg_value>",)),
    ),
    ToolFormat(  # MiniMax M2
        ("<invoke name=",),
        ("<minimax:tool_call>", '<invoke name="'),
        ("</invoke>", "</minimax:tool_call>"),
        named=('<invoke name="',),
        joints=('">',),
        parameter=('<parameter name="', ('">',), ("</parameter>",)),
    ),
    ToolFormat(  # Qwen3-Coder, Seed-OSS; Llama 3.1's custom tools, with JSON behind the name
        ("<function=",),
        ("<tool_call>", "<seed:tool_call>", "<function="),
        ("</function>", "</tool_call>", "</seed:tool_call>"),
        named=("<function=",),
        joints=(">",),
        parameter=("<parameter=", (">\n", ">"), ("\n</parameter>", "</parameter>")),
    ),
    ToolFormat(("<tool_call>",), ("<tool_call>",), ("</tool_call>",)),  # Hermes, Qwen, SmolLM, Granite 4
    ToolFormat(("<tool_calls>",), ("<tool_calls>",), ("</tool_calls>",)),  # Apriel, Hunyuan
    ToolFormat(("<TOOLCALL>",), ("<TOOLCALL>",), ("</TOOLCALL>",)),  # Nemotron
    ToolFormat(("<|tool_call|>",), ("<|tool_call|>",), ("<|/tool_call|>",)),  # Phi-4-mini, Granite 3
    ToolFormat(("<|START_ACTION|>",), ("<|START_ACTION|>",), ("<|END_ACTION|>",)),  # Command R7B
    ToolFormat(  # LFM2: [f(a=1), g()] between tags
        ("<|tool_call_start|>", "<|tool_list_start|>"), ("<|tool_call_start|>",), ("<|tool_call_end|>",), ("[", ",")
    ),
)

ANY_FORMAT = ToolFormat(
    (), ("<tool_call>", "<|python_tag|>", "<|python_start|>"), ("</tool_call>", "<|python_end|>"), ("[", ","), bare=True
)
"""Llama 3 and 4, which write {"name": …, "parameters": {…}} or [f(a=1), g()], and whatever else is not known."""


def tool_format(template_source: str | None) -> ToolFormat:
    """The format that a chat template teaches, by what its source contains."""
    source = template_source or ""
    return next((form for form in FORMATS if any(marker in source for marker in form.markers)), ANY_FORMAT)
