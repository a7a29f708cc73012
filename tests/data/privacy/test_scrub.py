"""Placeholders: their numbers, and that nothing more is found once they stand."""

from __future__ import annotations

import random
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tallow.data.privacy import PrivacyConfig
from tallow.data.privacy.config import KindConfig
from tallow.data.privacy.scrub import scrub, too_many
from tallow.data.read import read_records
from tallow.errors import UsageError
from tallow.kernels.dispatch import using
from tallow.recipe import parse_section

CONFIG = PrivacyConfig()


def scrubbed(text: str, config: PrivacyConfig = CONFIG) -> str:
    [result] = scrub(pa.array([text]), config).texts.to_pylist()
    return result


def test_values_are_numbered_by_their_first_appearance_in_the_document() -> None:
    text = "b@x.org, a@x.org, B@X.ORG; 4111 1111 1111 1111 and 4111111111111111; +1 (212) 736-5000 or call 2127365000"
    expected = "<EMAIL_1>, <EMAIL_2>, <EMAIL_1>; <CARD_1> and <CARD_1>; <PHONE_1> or call <PHONE_1>"
    result = scrub(pa.array([text, "a@x.org"]), CONFIG)
    assert result.texts.to_pylist() == [expected, "<EMAIL_1>"]
    assert {kind: found.tolist() for kind, found in result.counts.items() if found.any()} == {
        "email": [3, 1],
        "card": [2, 0],
        "phone": [2, 0],
    }


def test_placeholders_that_were_there_keep_their_meaning() -> None:
    assert scrubbed("<EMAIL_2> wrote to a@x.org") == "<EMAIL_2> wrote to <EMAIL_3>"
    assert scrubbed("a@x.org <PHONE_7> <EMAIL_x>") == "<EMAIL_1> <PHONE_7> <EMAIL_x>"


def test_the_surer_kind_counts_where_two_overlap() -> None:
    assert scrubbed("https://anna:pa55word@mail.example.org/") == "https://anna:<SECRET_1>@mail.example.org/"
    assert scrubbed("password: anna1@example.org") == "password: <SECRET_1>"


PIECES = st.sampled_from(
    [
        *(
            "a@b.org",
            "@",
            "b.org",
            ".",
            "4111111111111111",
            "4111 1111 1111 1111",
            "+1 212 736 5000",
            "212-736-5000",
            "+",
        ),
        *(
            "8.8.8.8",
            "1.",
            "2001:4860::8888",
            ":",
            "GB82 WEST 1234 5698 7654 32",
            "GB82",
            "219-09-9998",
            "12345678Z",
            "-",
        ),
        *(
            "password=",
            "hunter2!Xy",
            "call ",
            "ИНН ",
            "7707083893",
            "<EMAIL_1>",
            "<PHONE_2>",
            "<",
            ">",
            " ",
            "  ",
            "(",
            ")",
        ),
        *(
            "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2",
            "AKIAIOSFODNN7EXAMPLE",
            "://u:",
            "۱۲۳۴",
            "۰۰۸-۴۵۷۵۹۴-۸",
            "x12",
            "字",
            "\n",
        ),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "0", "1", "2 95 10 99 126 111 93", "A", "д"),
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.sampled_from(["valid", "possible"]))
@example("a@b.org@b.org@b.org", "valid")
@example("4111 1111 1111 1111 212-736-5000 8.8.8.8", "valid")
def test_scrubbing_twice_changes_nothing(text: str, validation) -> None:
    config = PrivacyConfig(phone_validation=validation, private_ips=True)
    first = scrub(pa.array([text]), config)
    second = scrub(first.texts, config)
    assert second.texts == first.texts
    assert not any(found.any() for found in second.counts.values())


@given(st.lists(st.lists(PIECES, max_size=8).map("".join) | st.none(), max_size=4))
def test_a_document_is_scrubbed_alike_in_any_company_and_without_the_extension(texts: list[str | None]) -> None:
    together = scrub(pa.array(["x", *texts], pa.string()).slice(1), CONFIG)
    with using("reference"):
        alone = [scrub(pa.array([text], pa.string()), CONFIG) for text in texts]
    assert together.texts.to_pylist() == [result.texts[0].as_py() for result in alone]
    for kind, found in together.counts.items():
        assert found.tolist() == [result.counts[kind][0] for result in alone]


def test_a_kind_is_replaced_counted_or_ignored() -> None:
    config = parse_section(PrivacyConfig, {"email": {"action": "count"}, "phone": {"action": "ignore"}}, "privacy")
    result = scrub(pa.array(["a@x.org, a@x.org, +1 212 736 5000, 4111111111111111"]), config)
    assert result.texts.to_pylist() == ["a@x.org, a@x.org, +1 212 736 5000, <CARD_1>"]
    assert result.counts["email"].tolist() == [2]
    assert "phone" not in result.counts


def test_a_kind_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"unknown setting privacy\.emial"):
        parse_section(PrivacyConfig, {"emial": {"action": "ignore"}}, "privacy")


@pytest.mark.parametrize(("name", "near"), [("UK", "GB"), ("XX", "MX"), ("usa", "US"), ("de", "DE"), ("9", "US, GB")])
def test_a_country_that_does_not_exist_is_an_error(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"phone_regions: .*{name} is no country .* near are .*{near}"):
        parse_section(PrivacyConfig, {"phone_regions": ["IR", name]}, "privacy")
    assert parse_section(PrivacyConfig, {"phone_regions": ["IR", "NZ"]}, "privacy").phone_regions == ("IR", "NZ")


def test_documents_with_too_many_are_told_by_the_counts() -> None:
    config = PrivacyConfig(email=KindConfig(drop_beyond=1), card=KindConfig(drop_beyond=0))
    texts = pa.array(["a@x.org", "a@x.org b@x.org", "4111111111111111", "", None])
    counts = scrub(texts, config).counts
    assert too_many(counts, config).tolist() == [False, True, True, False, False]
    assert too_many(counts, CONFIG).tolist() == [False] * 5
    assert all(found.dtype == np.int32 for found in counts.values())


def test_names_are_what_a_finder_of_the_caller_finds() -> None:
    def find_names(texts):
        return [[(place, place + 4)] if (place := text.find("Anna")) >= 0 else [] for text in texts]

    texts = pa.array(["Dear Anna, a@x.org", "nobody", None, "anna@Anna.org"])
    assert scrub(texts, CONFIG, find_names).texts.to_pylist() == [
        "Dear <NAME_1>, <EMAIL_1>",
        "nobody",
        None,
        "<EMAIL_1>",
    ]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tallow.data.privacy.finders", None)
    with pytest.raises(UsageError, match="library") as caught:
        scrub(pa.array(["a"]), CONFIG)
    assert "tallow[data]" in caught.value.hint


def test_a_diary_of_before_such_things_has_none() -> None:
    texts = pa.array([record.fields["text"] for record in read_records("tallow:pepys")])
    result = scrub(texts, CONFIG)
    assert result.texts is texts
    assert not any(found.any() for found in result.counts.values())


PLAIN = "It was the best of times, it was the worst of times. "
HOSTILE = ["a@", "1", "1.", ".", ":", "::", "-", "1-", "1 ", "(", "eyJ-", "sk-", "password=", "://a:b@", "<EMAIL_1>"]


def seconds(piece: str, length: int) -> float:
    texts = pa.array([(piece * (length // len(piece) + 1))[:length]])
    begin = time.process_time()
    scrub(texts, CONFIG)
    return time.process_time() - begin


@pytest.fixture(scope="module")
def usual() -> float:
    scrubbed("(212) 736-5000, GB82 WEST")  # what is loaded once
    return seconds(PLAIN + "Write to anna@example.org. ", 1_000_000)


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_of_a_megabyte_takes_little_more_than_text_full_of_addresses(piece: str, usual: float) -> None:
    """Squared, it would be minutes."""
    assert seconds(piece, 1_000_000) < 8 * usual + 0.5


def test_random_bytes_are_no_trouble() -> None:
    numbers = random.Random(0)
    texts = pa.array(["".join(map(chr, numbers.choices(range(1, 0x700), k=2000))) for _ in range(20)])
    assert len(scrub(texts, CONFIG).texts) == 20
