"""How byte-level tokenizers cut text into words before merging, by llama.cpp's names for it.

A GGUF file only names the rule (`tokenizer.ggml.pre`). Each is a sequence of patterns: what a pattern matches, and
what lies between its matches, becomes pieces of its own, which the next pattern cuts further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_CONTRACTION_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
"""As most tokenizer.json files have it. llama.cpp spells it out, which is something else only for the long ſ."""

_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def _modern(digits: str) -> str:
    """The pattern of GPT-4 and its heirs, with a number cut as `digits` says."""
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}"


_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
_GPT4O = (
    rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
)
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{_SPACES}"
)


@dataclass(frozen=True)
class SplitRule:
    """A named rule and what goes with it.

    Args:
        whole_words: A word that is a token is taken as it is, whatever the merges say.
        add_bos: Files that do not say otherwise begin a sequence with the begin token.
        nfc: Text is brought to Unicode's composed form first.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    nfc: bool = False


_LLAMA3 = SplitRule((_modern(r"\p{N}{1,3}"),), whole_words=True, add_bos=True)
_DIGITS_THEN_GPT2 = SplitRule((_DIGIT, _GPT2))

# Where two names mean the same, the first is what we write.
SPLIT_RULES: dict[str, SplitRule] = {
    "gpt-2": SplitRule((_GPT2,)),
    "smollm": _DIGITS_THEN_GPT2,
    "llama-bpe": _LLAMA3,
    "dbrx": SplitRule(_LLAMA3.patterns),
    "qwen2": SplitRule((_modern(_DIGIT),), nfc=True),
    "qwen35": SplitRule((_QWEN35,), nfc=True),
    "gpt-4o": SplitRule((_GPT4O,)),
    "tekken": SplitRule((_TEKKEN,), whole_words=True, add_bos=True),
    "default": SplitRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": SplitRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": SplitRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "deepseek-v3": SplitRule((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": SplitRule(_LLAMA3.patterns),
    "chatglm-bpe": SplitRule(_LLAMA3.patterns),
    "llama4": SplitRule((_GPT4O,)),
    "deepseek-r1-qwen": SplitRule((_modern(_DIGIT),)),
    "stablelm2": SplitRule((_modern(_DIGIT),)),
    "megrez": SplitRule((_modern(_DIGIT),)),
    "olmo": SplitRule((_GPT2,), nfc=True),
    "phi-2": SplitRule((_GPT2,)),
    "mpt": SplitRule((_GPT2,)),
    "jais": SplitRule((_GPT2,)),
    "exaone4": SplitRule((_GPT2,)),
    "mellum": SplitRule((_GPT2,)),
    "starcoder": _DIGITS_THEN_GPT2,
    "refact": _DIGITS_THEN_GPT2,
    "command-r": _DIGITS_THEN_GPT2,
    "codeshell": _DIGITS_THEN_GPT2,
    "exaone": _DIGITS_THEN_GPT2,
    "minerva-7b": _DIGITS_THEN_GPT2,
}

# Numbers in pieces of two digits: llama.cpp only knows one and three.
STAND_INS: dict[tuple[str, ...] | None, str] = {(_modern(r"\p{N}{1,2}"),): "dbrx"}


def pre_tokenizer(rule: SplitRule) -> pre_tokenizers.PreTokenizer:
    """The rule as the `tokenizers` library has it."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def find_rule(pre_tokenizer: Mapping[str, Any] | None, *, whole_words: bool, nfc: bool) -> tuple[str, bool] | None:
    """llama.cpp's name for the `pre_tokenizer` of a tokenizer.json, and whether it means exactly that; None for none.

    Args:
        whole_words: The BPE model's `ignore_merges`.
        nfc: Whether the tokenizer composes characters first. llama.cpp never does, so it only decides between names.
    """
    patterns = _patterns(pre_tokenizer)
    fitting = [
        (rule.nfc != nfc, order, name)
        for order, (name, rule) in enumerate(SPLIT_RULES.items())
        if patterns == rule.patterns and whole_words == rule.whole_words
    ]
    if fitting:
        return min(fitting)[2], True
    return (STAND_INS[patterns], False) if patterns in STAND_INS else None


def _patterns(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """A byte-level pre-tokenizer as a sequence of patterns; None if it is anything else."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    patterns: list[str] = []
    for step in steps[:-1]:
        if step["type"] == "Digits" and step["individual_digits"]:
            patterns.append(_DIGIT)
        elif step["type"] == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated":
            patterns.append(step["pattern"]["Regex"].replace(_CONTRACTION_ANY_CASE, _CONTRACTION))
        else:
            return None
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    return (*patterns, _GPT2) if last["use_regex"] else tuple(patterns)
