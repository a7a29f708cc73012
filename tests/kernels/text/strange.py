"""Texts in which what the operations on texts look for is frequent."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = (
    "a", "b", "the", "The", "and", "don't", "’", "'", ".", "...", "…", "!", "?", "。", ",", "1", "20", "٣", "#", "-",
    "•", "/", "\n", "\n\n", " ", "  ", "\t", "\r", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "中", "国", "あ", "ー",
    "ไ", "ท", "ั", "é", "e\u0301", "\u0301", "\u200c", "\u200d", "😀", "\ufe0f", "Я", "İ", "ß", "ǅ", "½", "_", "[", "]",
    "[1]", "[edit]", "{", "javascript", "lorem ipsum", "privacy policy", '"', "”", "\0", "한", "ї", "\U00031350",
    "\U000e0100", "the cat sat on the mat. ", "x" * 30,
)  # fmt: skip
"""Words, marks, joiners, white space and marks of the rules."""

texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
