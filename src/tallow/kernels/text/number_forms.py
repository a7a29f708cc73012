"""What numbers may be: how they are written, their check digits, and what is beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from tallow.kernels.text import native

Sizes = tuple[int, ...]
Check = Literal["", "mod 97", "mod 11"]
"""Of the last digits: they fill the others up to a multiple of 97; ISO 7064 with modulus 11 and radix 2."""

MIN_DIGITS, MAX_DIGITS, MAX_GROUPS, MAX_FORM_GROUPS = 7, 17, 12, 9
BEFORE, AFTER, WORD_BEFORE = 52, 12, 40
"""Characters before and behind a number in which a word counts, and those before a number within it."""

_NUMBER = re.compile("[0-9٠-٩۰-۹０-９]+")
_STRANGE = "\U0010ffff"
_FOLDS = {
    **{
        code: code + 0x20 for code in (*range(0x41, 0x5B), *range(0xC0, 0xD7), *range(0xD8, 0xDF), *range(0x410, 0x430))
    },
    **{code: code + 0x50 for code in range(0x400, 0x410)},
    **dict.fromkeys((0x130, 0x131, 0x17F, 0x212A, *range(0x1C80, 0x1C90)), _STRANGE),
}
"""Lower case of ASCII, Latin-1 and Cyrillic; letters beyond them that some regard as the same as theirs are strange."""


@dataclass(frozen=True)
class NumberPlan:
    """Numbers of phones of a country.

    Args:
        shapes: Sizes of groups of digits, and patterns of which all digits have one, where no word is beside them.
        digits: A pattern that all digits have in any case. Patterns are of digits, classes, groups, `|`, `?`, `*` and
            repetitions.
    """

    shapes: Mapping[Sizes, Iterable[str]]
    digits: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """That of all digits."""
        return re.compile(self.digits)


@dataclass(frozen=True, eq=False)
class NumberForms:
    """Numbers that may be private.

    Forms of numbers are sizes of groups with the single space, hyphen or dot between them (`3-2-4`), and count among
    more groups where no single dot or hyphen joins them to others.

    Args:
        plans: Of phones: of the whole number, or of a piece that begins at a space or at a bracket.
        abroad: Codes of countries, and how many digits there are at least: behind a plus or zeros that no separator
            parts, of such pieces too.
        unplanned: Whether a word beside it makes a phone of any number.
        phone_words: In lower case: what says of a number beside it that it is a phone's. `<` and `>` stand for where a
            word begins and ends.
        cards: Forms of payment cards.
        issuers: Their first one to four digits, and how many they have with these.
        ids: Forms of ids, and their check.
        lettered: Those of ids that have a letter beside them.
        bare: Those of ids that have a word beside them.
        id_words: As `phone_words`.
        accounts: Letters of countries, and how many characters their bank accounts (IBAN) have.
        own_addresses: Whether IPv4 addresses count that are nobody's on the internet.
    """

    plans: Sequence[NumberPlan]
    abroad: Mapping[str, int]
    unplanned: bool
    phone_words: Sequence[str]
    cards: Collection[str]
    issuers: Mapping[str, Iterable[int]]
    ids: Mapping[str, Check]
    lettered: Collection[str]
    bare: Collection[str]
    id_words: Sequence[str]
    accounts: Mapping[str, int]
    own_addresses: bool

    @cached_property
    def native(self) -> object:
        """As the extension takes them."""
        extension = native()
        assert extension is not None
        patterns = list(dict.fromkeys(each for plan in self.plans for some in plan.shapes.values() for each in some))
        places = {pattern: place for place, pattern in enumerate(patterns)}
        lines = [
            *(
                f"s{' '.join(map(str, sizes))}:{number}:{places[pattern]}"
                for number, plan in enumerate(self.plans)
                for sizes, some in plan.shapes.items()
                for pattern in some
            ),
            *(f"a{code}:{least}" for code, least in self.abroad.items()),
            *(f"p{word}" for word in self.phone_words),
            *(f"c{form}" for form in self.cards),
            *(f"i{first}:{length}" for first, lengths in self.issuers.items() for length in lengths),
            *(f"f{form}:{check}" for form, check in self.ids.items()),
            *(f"l{form}" for form in self.lettered),
            *(f"w{form}" for form in self.bare),
            *(f"n{word}" for word in self.id_words),
            *(f"b{country}:{length}" for country, length in self.accounts.items()),
            *(["u"] if self.unplanned else []),
            *(["o"] if self.own_addresses else []),
        ]
        written = "".join(f"{line}\n" for line in lines).encode()
        return extension.NumberForms(written, [plan.digits for plan in self.plans], patterns)

    def may_be_phone(self, text: str, start: int, end: int) -> bool:
        """Whether the number there may be one of a phone."""
        number = text[start:end]
        near = _is_near(text, start, end, self.phone_words)
        plus = text[:start].endswith(("+", "+(", "＋", "＋("))
        return any(
            self._is_piece(piece, near, plus and place == 0)
            for pieces in ([number], re.split(r"[ \xa0]", number), number.split("("))
            for place, piece in enumerate(pieces)
        )

    def _is_piece(self, piece: str, near: bool, plus: bool) -> bool:
        groups = _NUMBER.findall(piece)
        digits = _plain(piece)
        if not MIN_DIGITS <= len(digits) <= MAX_DIGITS:
            return False
        abroad = digits if plus else digits[2:] if _plain(groups[0]).startswith("00") else ""
        if any(abroad.startswith(code) and len(abroad) >= least for code, least in self.abroad.items()):
            return True
        sizes = tuple(map(len, groups))
        return (near and self.unplanned) or any(
            (near or any(re.fullmatch(pattern, digits) for pattern in plan.shapes.get(sizes, ())))
            and plan.pattern.fullmatch(digits) is not None
            for plan in self.plans
        )

    def may_be_card(self, text: str, start: int, end: int) -> bool:
        """Whether digits there may be those of a payment card."""
        return any(map(self._is_card, (digits for form, digits in _forms(text[start:end]) if form in self.cards)))

    def _is_card(self, digits: str) -> bool:
        sums = (sum(divmod(2 * int(digit), 10)) if odd % 2 else int(digit) for odd, digit in enumerate(digits[::-1]))
        return any(len(digits) in self.issuers.get(digits[:size], ()) for size in range(1, 5)) and sum(sums) % 10 == 0

    def may_be_id(self, text: str, start: int, end: int) -> bool:
        """Whether digits there may be those of a national id."""
        near = _is_near(text, start, end, self.id_words)
        lettered = _has_letter(text, start, end)
        return any(
            (form in self.ids and _is_right(digits, self.ids[form]))
            or (lettered and form in self.lettered)
            or (near and form in self.bare)
            for form, digits in _forms(text[start:end])
        )

    def may_be_account(self, text: str, start: int) -> bool:
        """Whether a bank account of a country begins there, with its check digits (ISO 7064, modulus 97)."""
        length = self.accounts.get(text[start : start + 2].upper())
        match = (
            re.compile(rf"[A-Za-z0-9](?:[ \xa0-]?[A-Za-z0-9]){{{length - 1}}}").match(text, start) if length else None
        )
        if match is None:
            return False
        plain = re.sub(r"[ \xa0-]", "", match[0])
        return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _plain(number: str) -> str:
    return "".join(str(int(digit)) for group in _NUMBER.findall(number) for digit in group)


def _forms(number: str) -> Iterator[tuple[str, str]]:
    """Successive groups that are joined to no others, as forms, with their digits."""
    groups = list(_NUMBER.finditer(number))
    between = [number[a.end() : b.start()].replace("\xa0", " ") for a, b in pairwise(groups)]
    joined = [False, *(separator in (".", "-") for separator in between), False]
    for first in range(len(groups)):
        for last in range(first + 1, min(len(groups), first + MAX_FORM_GROUPS) + 1):
            if not joined[first] and not joined[last] and all(s in (" ", "-", ".") for s in between[first : last - 1]):
                sizes = [str(len(group[0])) for group in groups[first:last]]
                form = "".join(map("".join, zip(sizes, [*between[first : last - 1], ""], strict=True)))
                yield form, _plain(number[groups[first].start() : groups[last - 1].end()])


def _is_right(digits: str, check: Check) -> bool:
    if check == "mod 97":
        return (int(digits[:-2]) + int(digits[-2:])) % 97 == 0
    if check == "mod 11":
        return sum(int(digit) << place for place, digit in enumerate(digits[::-1])) % 11 == 1
    return True


def _is_near(text: str, start: int, end: int, words: Sequence[str]) -> bool:
    behind = text[max(0, start - BEFORE) : start].rpartition("\n")[2]
    bounded = max(0, len(behind) + end - start - WORD_BEFORE)
    folded, ahead = behind.translate(_FOLDS), text[end : end + AFTER].partition("\n")[0].translate(_FOLDS)
    return (
        _STRANGE in folded + ahead
        or any(word.strip("<>") in ahead for word in words)
        or any(_has_word(folded, bounded, word) for word in words)
    )


def _has_letter(text: str, start: int, end: int) -> bool:
    return bool(
        re.match("[ -]?[A-Zx](?![A-Za-z0-9_])", text[end : end + 3])
        or re.search(r"[AB][ \xa0]?\Z", text[max(0, start - 2) : start])
    )


def _has_word(text: str, bounded: int, word: str) -> bool:
    """`bounded`: from where on a word surely begins where it does; before it, one that is cut may be seen."""
    for match in re.finditer(f"(?={re.escape(word.strip('<>'))})", text):
        place, end = match.start(), match.start() + len(word.strip("<>"))
        begins = place <= bounded or re.match("[a-z0-9_]", text[place - 1]) is None
        ends = re.match("[a-z0-9_]", text[end : end + 1]) is None
        if (begins or not word.startswith("<")) and (ends or not word.endswith(">")):
            return True
    return False
