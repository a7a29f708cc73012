"""What is left out before it is looked at exactly is nothing that would be found."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tallow.data.privacy import PrivacyConfig, finders, national, phone, secret, wallet
from tallow.data.privacy.phone_plan import may_be_usual, may_be_valid, numbers_abroad
from tallow.data.privacy.span import Span, literals
from tallow.kernels.dispatch import using
from tallow.kernels.text.candidates import Candidate, find_candidates
from tallow.kernels.text.number_forms import _FOLDS, _STRANGE, NumberPlan

CONFIGS = [
    PrivacyConfig(),
    PrivacyConfig(phone_validation="possible"),
    PrivacyConfig(phone_regions=("IT", "BR", "IN"), countries=("fr", "es")),
]
TOKENS = re.compile("[A-Za-z0-9_-]{15,}")


def ids() -> Iterable[str]:
    """Patterns of ids, cards and phones."""
    for forms in national.FORMS.values():
        for form in forms:
            yield from filter(None, [form.pattern, form.bare])
    yield from (r"4\d{3} \d{4} \d{4} \d{4}", r"4\d{12}", r"3[47]\d{2} \d{6} \d{5}", r"4\d{15}")
    yield from (r"\([2-9]\d{2}\) [2-9]\d{2}-\d{4}", r"0\d \d{2} \d{2} \d{2} \d{2}", r"8 \(\d{3}\) \d{3}-\d{2}-\d{2}")
    yield from (
        r"0\d{2,4} \d{3,8}",
        r"\+?(?:49|0049|86|98|1|55|39)[ -]\d{2,3}[ -]\d{4,8}",
        r"\d{3}[ .-]\d{3}[ .-]\d{3,4}",
    )


NUMBERS = st.one_of(*(st.from_regex(pattern, fullmatch=True) for pattern in ids()))
BETWEEN = st.sampled_from(
    [
        "",
        " ",
        ", ",
        "-",
        ".",
        " (",
        ") ",
        "\n",
        "+",
        "x",
        "A",
        "7",
        " call ",
        " Tel.:",
        "ИНН ",
        "ssn ",
        "کد ملی ",
        "电话",
        " X",
        "é",
    ]
)


@given(st.lists(st.tuples(BETWEEN, NUMBERS, BETWEEN), max_size=4), st.sampled_from(CONFIGS), st.integers(0, 45))
@example([("", "253072B07300470", "")], CONFIGS[2], 0)
@example([("тел. ", "84951234567", "")], CONFIGS[0], 36)
def test_numbers_that_are_left_out_are_nothing(
    parts: list[tuple[str, str, str]], config: PrivacyConfig, far: int
) -> None:
    text = "".join(f"{before}{' ' * far}{number}{behind}" for before, number, behind in parts)
    texts = pa.array([text])
    every = [tuple(row[1:]) for row in find_candidates(texts).tolist()]
    some = [tuple(row[1:]) for row in find_candidates(texts, finders.number_forms(config)).tolist()]
    assert set(some) <= set(every)
    assert set(finders.find(text, some, config)) == set(finders.find(text, every, config))


SECRETS = st.one_of(
    st.from_regex(secret._KEY.pattern.replace("(?<![A-Za-z0-9_-])", "").replace("(?![A-Za-z0-9])", ""), fullmatch=True),
    st.from_regex(
        r"[123LMDTX][1-9A-HJ-NP-Za-km-z]{25,34}|0x[0-9a-f]{40}|(?:bc1|ltc1)[02-9ac-hj-np-z]{8,60}", fullmatch=True
    ),
    st.sampled_from(["1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"]),
)


@given(
    st.lists(
        SECRETS | st.sampled_from([" ", "-", "_", ".", "a", "é", "0x", "sk-", "long-enough-to-be-a-word"]), max_size=5
    )
)
def test_words_that_are_left_out_are_nothing(parts: list[str]) -> None:
    text = "".join(parts)
    rows = find_candidates(pa.array([text])).tolist()
    looked_at = [(start, end) for _, kind, start, end in rows if kind == Candidate.TOKEN]
    assert spans_of(text, looked_at) == spans_of(text, [match.span() for match in TOKENS.finditer(text)])


def spans_of(text: str, words: Iterable[tuple[int, int]]) -> set[Span]:
    return {span for word in words for finder in (secret.find_key, wallet.find) for span in finder(text, *word)}


def examples(region: str) -> Iterable[phonenumbers.PhoneNumber]:
    kinds = phonenumbers.PhoneNumberType.values()
    return filter(None, (phonenumbers.example_number_for_type(region, kind) for kind in kinds))


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS))
def test_a_plan_allows_its_own_numbers_as_they_are_usually_written(region: str) -> None:
    for number in examples(region):
        for form in (phonenumbers.PhoneNumberFormat.NATIONAL, phonenumbers.PhoneNumberFormat.INTERNATIONAL):
            text = phonenumbers.format_number(number, form).lstrip("+")
            check(text, region)
            check(f"{number.country_code} {text}", region)


def check(text: str, region: str) -> None:
    """What phonenumbers finds valid and usual may be so for us."""
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return
    if not phonenumbers.is_valid_number(number):
        return
    groups = re.findall(r"\d+", text)
    plain = "".join(groups)
    assert may_be_valid(region).fullmatch(plain)
    if phone._is_usual(groups, number):
        assert may_be_usual(region, plain, tuple(map(len, groups)))


@given(st.lists(st.from_regex("[0-9]{1,6}", fullmatch=True), min_size=1, max_size=5), st.data())
def test_a_plan_allows_any_number_that_is_valid(groups: list[str], data: st.DataObject) -> None:
    region = data.draw(st.sampled_from(sorted(phonenumbers.SUPPORTED_REGIONS)))
    code = str(phonenumbers.country_code_for_region(region))
    for first in ("", "0", code, f"{code}0", "00", "011"):
        check(" ".join([first, *groups]).strip(), region)


@given(st.from_regex("00[1-9][0-9]{3,13}", fullmatch=True))
def test_numbers_abroad_have_a_code_and_enough_digits(digits: str) -> None:
    try:
        number = phonenumbers.parse(f"+{digits[2:]}")
    except phonenumbers.NumberParseException:
        return
    if phonenumbers.is_valid_number(number):
        abroad = numbers_abroad().items()
        assert any(digits[2:].startswith(code) and len(digits) - 2 >= least for code, least in abroad)


PLAIN_FORMS = replace(finders.number_forms(CONFIGS[0]), plans=[], abroad={}, phone_words=["tel"])


@given(st.data())
def test_the_extension_reads_the_plans_of_countries(data: st.DataObject) -> None:
    pattern = may_be_valid(data.draw(st.sampled_from(sorted(phonenumbers.SUPPORTED_REGIONS))))
    usual = st.from_regex(pattern, fullmatch=True, alphabet="0123456789")
    digits = data.draw(usual | st.from_regex("[0-9]{7,17}", fullmatch=True))
    place = data.draw(st.integers(0, max(0, len(digits) - 1)))
    for written in (digits, digits[:place] + digits[place + 1 :], f"{digits[:place]}7{digits[place + 1 :]}"):
        stands = 7 <= len(written) <= 17 and pattern.fullmatch(written) is not None
        assert is_told(written, pattern.pattern) == stands


@pytest.mark.parametrize(
    ("pattern", "digits", "told"),
    [
        (r"(?:12|[3-5]){2}\d{3,4}", "1231234", True),
        (r"(?:12|[3-5]){2}\d{3,4}", "12121234", True),
        (r"(?:12|[3-5]){2}\d{3,4}", "1261234", False),
        (r"1*(?:2|34?)5{6}", "111355555", False),
        (r"1*(?:2|34?)5{6}", "1113555555", True),
        (r"1*(?:2|34?)5{6}", "34555555", True),
        (r"1{0,2}(2{6})", "1222222", True),
        (r"1{0,2}(2{6})", "111222222", False),
        (r"(?!1)\d{7}", "1222222", True),  # beyond what is understood: all digits
    ],
)
def test_the_extension_reads_patterns_of_digits(pattern: str, digits: str, told: bool) -> None:
    assert is_told(digits, pattern) == told


def is_told(digits: str, pattern: str) -> bool:
    """Whether they may be a phone's of a plan, beside a word."""
    forms = replace(PLAIN_FORMS, plans=[NumberPlan({}, pattern)])
    return Candidate.PHONE in find_candidates(pa.array([f"tel {digits}"]), forms)[:, 1]


def test_letters_that_count_as_the_same_are_folded_or_strange() -> None:
    forms = finders.number_forms(CONFIGS[0])
    letters = {letter for word in (*forms.phone_words, *forms.id_words) for letter in word if letter.isalpha()}
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    alike = set(re.findall(f"[{''.join(letters)}]", everything, re.IGNORECASE))
    assert len(alike) > len(letters)
    for other in alike:
        assert other.translate(_FOLDS) in (
            _STRANGE,
            *(same for same in letters if re.match(same, other, re.IGNORECASE)),
        )


def test_literals_are_in_all_that_a_pattern_matches() -> None:
    assert literals(r"<soc\.? ?sec|id.?nr|Tel>|a.bc") == ["<soc", "nr", "tel>", "bc"]
    for pattern in [phone.WORDS, *(form.words for forms in national.FORMS.values() for form in forms)]:
        assert not set(pattern) & set("[](){}*+^$")


def test_the_extension_and_the_reference_leave_out_the_same() -> None:
    texts = pa.array(["call 0103091200", "2013-05-12 10, 212-736-5000, 1990/12/30, +49 30 123456, 3.14159265358979"])
    found = []
    for versions in ("fast", "reference"):
        with using(versions):
            found.append(sorted(find_candidates(texts, finders.number_forms(CONFIGS[0])).tolist()))
    assert found[0] == found[1]
    phone = Candidate.PHONE
    assert [tuple(row[1:]) for row in found[0]] == [(phone, 5, 15), (phone, 15, 27), (phone, 42, 54)]
