"""Values of each kind are found in texts of four languages, and what is nearly one is left."""

from __future__ import annotations

import base64
import json

import pyarrow as pa
import pytest

from tallow.data.privacy import PrivacyConfig
from tallow.data.privacy.card import is_card
from tallow.data.privacy.keccak import keccak_256
from tallow.data.privacy.scrub import scrub

CONTEXTS = ("Please note {} and answer.", "Запишите {} и ответьте.", "لطفاً {} را بنویسید.", "请记下{}，谢谢。")
PERSIAN_DIGITS = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")
WIDE_DIGITS = str.maketrans("0123456789", "０１２３４５６７８９")


def scrubbed(text: str, **settings) -> str:
    [result] = scrub(pa.array([text]), PrivacyConfig.model_validate(settings)).texts.to_pylist()
    return result


JWT = ".".join(
    base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
    for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "x"}, "signature")
)
NOT_JWT = JWT.replace("eyJhbGci", "eyJhbGdi", 1)
PEM = "-----BEGIN {0}PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END {0}PRIVATE KEY-----"

VALID = [
    ("email", "", "anna.smith+news@mail.example.org"),
    ("email", "", "o'brien@example.co.uk"),
    ("email", "", "иван.петров@пример.рф"),
    ("email", "", "x@xn--e1afmkfd.xn--p1ai"),
    ("phone", "", "+44 20 7946 0958"),
    ("phone", "", "+1-212-736-5000"),
    ("phone", "", "+7 (495) 123-45-67"),
    ("phone", "", "+98 912 345 6789"),
    ("phone", "", "0086 138 0013 8000"),
    ("phone", "", "(212) 736-5000"),
    ("phone", "", "(212) 736-5000 ext. 12"),
    ("phone", "", "8 (495) 123-45-67"),
    ("phone", "", "138 0013 8000"),
    ("phone", "", "01.42.68.53.00"),
    ("phone", "тел. ", "84951234567"),
    ("phone", "تلفن ", "021-88776655"),
    ("phone", "电话", "13800138000"),
    ("ip", "", "8.8.8.8"),
    ("ip", "", "2001:4860:4860::8888"),
    ("ip", "", "4f8a:c99e:dc86:faf9:5988:5f63:375e:8a2a"),
    ("card", "", "4111111111111111"),
    ("card", "", "4111-1111-1111-1111"),
    ("card", "", "5500 0055 5555 5559"),
    ("card", "", "3782 822463 10005"),
    ("card", "", "6011111111111117"),
    ("card", "", "3530111333300000"),
    ("card", "", "2201 3820 0000 0013"),
    ("card", "", "6037-9911-1111-1112"),
    ("iban", "", "GB82 WEST 1234 5698 7654 32"),
    ("iban", "", "gb82west12345698765432"),
    ("iban", "", "DE89370400440532013000"),
    ("iban", "", "IR580540105180021273113007"),
    ("iban", "", "FR14 2004 1010 0505 0001 3M02 606"),
    ("national_id", "", "219-09-9998"),
    ("national_id", "SSN ", "219099998"),
    ("national_id", "ИНН ", "7707083893"),
    ("national_id", "ИНН: ", "500100732259"),
    ("national_id", "", "112-233-445 95"),
    ("national_id", "СНИЛС ", "11223344595"),
    ("national_id", "کد ملی ", "0084575948"),
    ("national_id", "", "008-457594-8"),
    ("national_id", "", "11010519491231002X"),
    ("national_id", "Steuer-ID ", "86 095 742 719"),
    ("national_id", "Steueridentifikationsnummer: ", "86095742719"),
    ("national_id", "", "2 95 10 99 126 111 93"),
    ("national_id", "", "253072B07300470"),
    ("national_id", "", "12345678Z"),
    ("national_id", "", "12.345.678-Z"),
    ("national_id", "", "X-1234567-L"),
    ("secret", "", "AKIAIOSFODNN7EXAMPLE"),
    ("secret", "", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
    ("secret", "", "sk-proj-a8Kd93mXz0Qw7Lr2Tn5Vb1Yc4"),
    ("secret", "", "xox" + "b-1234567890-abcdefghijkl"),
    ("secret", "", "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"),
    ("secret", "", JWT),
    ("secret", "", PEM.format("RSA ")),
    ("secret", "", PEM.format("")),
    ("secret", "password=", "hunter2!Xy"),
    ("secret", '"api_key": "', "0a1b2c3d4e5f6a7b8c9d"),
    ("secret", "Authorization token: Bearer ", "0a1b2c3d4e5f6a7b8c9d"),
    ("secret", "session_token=", "FwoGZXIvYXdzE1BY" * 40 + "=="),
    ("secret", "пароль: ", "Sol0vey-R4zb"),
    ("secret", "密码：", "Qw3rty!uiop"),
    ("secret", "postgres://anna:", "t0psecret"),
    ("wallet", "", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
    ("wallet", "", "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy"),
    ("wallet", "", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
    ("wallet", "", "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4"),
    ("wallet", "", "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr"),
    ("wallet", "", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"),
    ("wallet", "", "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"),
]
BEHIND = {"postgres://anna:": "@localhost/db", '"api_key": "': '"'}


@pytest.mark.parametrize(("kind", "before", "value"), VALID)
@pytest.mark.parametrize("context", CONTEXTS, ids=["en", "ru", "fa", "zh"])
def test_a_value_is_replaced_and_nothing_else(context: str, kind: str, before: str, value: str) -> None:
    behind = BEHIND.get(before, "")
    text = context.format(f"{before}{value}{behind}")
    assert scrubbed(text) == context.format(f"{before}<{kind.upper()}_1>{behind}")


@pytest.mark.parametrize(
    ("kind", "before", "value"), [case for case in VALID if case[0] in ("phone", "card", "national_id")]
)
def test_digits_may_be_persian_or_wide(kind: str, before: str, value: str) -> None:
    for digits in (PERSIAN_DIGITS, WIDE_DIGITS):
        assert scrubbed(f"{before}{value.translate(digits)}") == f"{before}<{kind.upper()}_1>"


NEARLY = [
    *("anna@", "@anna", "anna@mail", "a..b@example.org", "icon@2x.png", "a @ b.org", "logo@3.png", "a@b.c"),
    *("+44 00 7946 0958", "+7 095 123-45-67", "+1 112 736 5000", "(012) 736-5000", "call 123", "212 7365000 12345678"),
    *(
        "2127365000",
        "212736-5000",
        "2013-05-12",
        "12/05/2013",
        "call 2013-05-12",
        "$212-736-5000",
        "1990-1995",
        "1 234 567 890",
    ),
    *("978-3-16-148410-0", "978 0 306 40615 7", "3.14159265358979", "0.03525160", "page 1234567"),
    *(
        "8.8.8.256",
        "8.8.8",
        "8.8.8.8.8",
        "v8.8.8.8",
        "version 1.2.3.4",
        "08.08.08.08",
        "10.0.0.1",
        "127.0.0.1",
        "192.168.1.1",
    ),
    *(
        "2001:4860:4860::8888::1",
        "2001:4860:4860:8888",
        "std::vector",
        "a::b",
        "::1",
        "fe80::1",
        "12:30:45",
        "g001:4860::8888",
    ),
    *(
        "4111 1111 1111 1112",
        "4111-1111 1111-1111",
        "1111111111111117",
        "411111111111111",
        "41111111111111110",
        "4222222222222",
    ),
    *("GB82 WEST 1234 5698 7654 33", "GB83WEST12345698765432", "GB82WEST1234569876543", "XX82WEST12345698765432"),
    *("219-09-9998-1", "000-12-3456", "666-12-3456", "900-12-3456", "219-00-9998", "219-09-0000", "219099998"),
    *("ИНН 7707083894", "ИНН 500100732258", "112-233-445 96", "СНИЛС 11223344596", "11223344595", "500100732259"),
    *("کد ملی 0084575949", "008-457594-9", "کد ملی 1111111111", "0084575948"),
    *("110105194912310021", "11010519491331002X", "990105194912310023"),
    *("Steuer-ID 86 095 742 718", "86095742719", "2 95 10 99 126 111 94", "2 95 13 99 126 111 93", "253072C07300443"),
    *("12345678A", "X1234567M", "12345678z", "123456789Z"),
    *(
        "AKIAIOSFODNN7EXAMPL",
        "AKIAIOSFODNN1EXAMPLE",
        "ghp_0123456789abcdefghijABCDEFGHIJ01234",
        "sk-learn-estimator-text-repr",
    ),
    *(
        "xox" + "b-letters-only",
        "AIza" + "SyA1b2C3",
        NOT_JWT,
        PEM.format("RSA ").replace("END", "STOP"),
        PEM.format("X").lower(),
    ),
    *(
        "password=",
        "password: required",
        "token: a",
        "the secret: never ask",
        "token = os.environ['GH_TOKEN1']",
        "pwd=$PASSWORD1",
    ),
    *("password: https://a.example/b1", "secret: 2013-05-12 12:00", "tokens: 12345678", "http://example.org:8080/a@b"),
    *("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5", "tb1qqqqqqqqqqqqqqqq"),
    *("bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcq", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"),
    *(
        "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beae",
        "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed0",
        "Responsibilities-of-everyone",
    ),
]


@pytest.mark.parametrize("value", NEARLY)
@pytest.mark.parametrize("context", CONTEXTS, ids=["en", "ru", "fa", "zh"])
def test_what_is_nearly_a_value_stays(context: str, value: str) -> None:
    assert scrubbed(context.format(value)) == context.format(value)


@pytest.mark.parametrize("value", [value for kind, _, value in VALID if kind in ("card", "iban")])
def test_a_check_digit_tells_of_any_wrong_digit(value: str) -> None:
    for place, character in enumerate(value):
        if character.isdecimal():
            wrong = f"{value[:place]}{(int(character) + 1) % 10}{value[place + 1 :]}"
            assert scrubbed(f"Note {wrong}.") == f"Note {wrong}."


def test_cards_have_the_first_digits_and_the_length_of_an_issuer() -> None:
    assert is_card("4111111111111111")
    assert not is_card("411111111111116")  # Luhn's digit is right, and no Visa has fifteen
    assert not is_card("0000000000000000")
    assert scrubbed("card 4222222222222") == "card <CARD_1>"  # thirteen digits only where a word says so


def test_a_plus_begins_a_number_also_behind_the_number_of_another_cell() -> None:
    assert scrubbed("7,+34612341001,Madrid\n8;+34612341002") == "7,<PHONE_1>,Madrid\n8;<PHONE_2>"
    for sum_ in ("a1+34612341001", "2+34612341001", "$+34612341001"):
        assert scrubbed(sum_) == sum_


def test_numbers_beside_placeholders_are_judged_by_themselves() -> None:
    """The first replaces +49 30 13203202; `PHONE` is no word that makes a phone of what is beside it."""
    assert scrubbed("+49 30 13203202\t0.36641574\t2127365000") == "<PHONE_1>\t0.36641574\t2127365000"
    assert scrubbed("PHONE_NUMBER=2127365000; phone_1: 2127365000") == "PHONE_NUMBER=<PHONE_1>; phone_1: <PHONE_1>"


def test_settings_widen_what_is_found() -> None:
    assert scrubbed("at 10.0.0.1, ::1", private_ips=True) == "at <IP_1>, ::1"
    assert scrubbed("8.8.8.8 is at\n8.8.8.8") == "<IP_1> is at\n<IP_1>"
    assert scrubbed("at fe80::1", private_ips=True) == "at <IP_1>"
    here = {"phone_regions": ["US"]}
    assert scrubbed("call 123-456-7890 now", **here) == "call 123-456-7890 now"
    assert scrubbed("call 123-456-7890 now", **here, phone_validation="possible") == "call <PHONE_1> now"
    assert scrubbed("note 123-456-7890 now", **here, phone_validation="possible") == "note 123-456-7890 now"
    assert scrubbed("(212) 736-5000", phone_regions=["GB"]) == "(212) 736-5000"
    assert scrubbed("112-233-445 95", countries=["us"]) == "112-233-445 95"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        (b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
        (b"a" * 136, None),
    ],
)
def test_keccak(message: bytes, expected: str | None) -> None:
    assert expected is None or keccak_256(message).hex() == expected
    assert len(keccak_256(message)) == 32
