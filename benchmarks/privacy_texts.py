"""Texts of nothing but numbers and addresses, made by chance from fixed seeds, and the standard library's source."""

from __future__ import annotations

import sysconfig
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import phonenumbers
from phonenumbers import PhoneNumberFormat

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
PATHS = (
    "/",
    "/index.html",
    "/images/logo.png",
    "/api/v1/items?page=3",
    "/robots.txt",
    "/archive/2019/04/12/report.pdf",
)
NAMES = ("anna", "boris", "chen", "dora", "emil", "fatima", "george", "hana", "ivan", "julia", "karl", "lena")
PLANS = {
    "US": "{area}{three}{four}",
    "GB": "20{four}{last}",
    "DE": "30{four}{last}",
    "FR": "1{four}{last}",
    "RU": "495{three}{four}",
    "CN": "138{four}{last}",
}
"""Countries, and numbers of which many are valid."""


def number_texts(size: int) -> Mapping[str, str]:
    """So many characters of each kind of text, by its name."""
    made = {name: _lines(line, size, name) for name, line in LINES.items()}
    return made | {"source code": _source_code(size)}


def _lines(line: Callable[[Random], str], size: int, seed: str) -> str:
    numbers = Random(seed)
    lines, length = list[str](), 0
    while length <= size:  # a line break behind each but the last
        lines.append(line(numbers))
        length += len(lines[-1]) + 1
    return "\n".join(lines)[:size]


def _source_code(size: int) -> str:
    texts = (path.read_text("utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    return "\n".join(texts)[:size]


def _access(numbers: Random, address: str) -> str:
    when = f"{numbers.randint(1, 28):02}/{numbers.choice(MONTHS)}/20{numbers.randint(10, 24)}"
    clock = ":".join(f"{numbers.randrange(60):02}" for _ in range(2))
    return (
        f"{address} - - [{when}:{numbers.randrange(24):02}:{clock} +0000] "
        f'"GET {numbers.choice(PATHS)} HTTP/1.1" {numbers.choice((200, 200, 304, 404))} {numbers.randrange(100, 99999)}'
    )


def _access_abroad(numbers: Random) -> str:
    first = numbers.choice((8, 23, 52, 81, 104, 151, 185, 203))
    return _access(numbers, ".".join(str(part) for part in (first, *(numbers.randrange(256) for _ in range(3)))))


def _access_at_home(numbers: Random) -> str:
    return _access(numbers, f"10.0.{numbers.randrange(256)}.{numbers.randrange(256)}")


def _service(numbers: Random) -> str:
    date = f"20{numbers.randint(15, 24)}-{numbers.randint(1, 12):02}-{numbers.randint(1, 28):02}"
    clock = f"{numbers.randrange(24):02}:{numbers.randrange(60):02}:{numbers.random() * 60:09.6f}"
    process = (
        f"{numbers.choice(('INFO', 'WARN', 'DEBUG'))} [worker-{numbers.randrange(9)}] pid={numbers.randrange(99999)}"
    )
    return f"{date} {clock} {process} took {numbers.random() * 99:.3f} ms"


def _prices(numbers: Random) -> str:
    date = f"20{numbers.randint(10, 24)}-{numbers.randint(1, 12):02}-{numbers.randint(1, 28):02}"
    prices = ",".join(f"{numbers.uniform(10, 2000):.2f}" for _ in range(4))
    return f"{date},{prices},{numbers.randrange(10**5, 10**8)}"


def _table(numbers: Random) -> str:
    return "\t".join(f"{numbers.gauss(0, 1):.8f}" for _ in range(8))


def _spaced_table(numbers: Random) -> str:
    return " ".join(f"{numbers.randrange(10 ** numbers.randint(1, 7))}" for _ in range(12))


def _identifiers(numbers: Random) -> str:
    lengths = (10, 13, 16)
    return ";".join(f"{numbers.randrange(10 ** (length - 1), 10**length)}" for length in lengths)


def _phone(numbers: Random) -> str:
    region = numbers.choice([*PLANS])
    while True:
        digits = PLANS[region].format(
            area=numbers.choice((212, 305, 415, 617)),
            three=numbers.randrange(200, 999),
            four=f"{numbers.randrange(10**4):04}",
            last=f"{numbers.randrange(10**4):04}",
        )
        number = phonenumbers.parse(digits, region)
        if phonenumbers.is_valid_number(number):
            form = numbers.choice((PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL))
            return f"{numbers.choice(NAMES)}\t{phonenumbers.format_number(number, form)}"


def _no_phone(numbers: Random) -> str:
    first, last = numbers.randrange(200), numbers.randrange(10**4)
    form = numbers.choice(("({:03}) {:03}-{:04}", "{:03}-{:03}-{:04}", "{:03} {:03} {:04}", "+999 {:03} {:03} {:04}"))
    return f"{numbers.choice(NAMES)}\t{form.format(first, numbers.randrange(200), last)}"


def _hex(numbers: Random) -> str:
    data = numbers.randbytes(16)
    words = " ".join(data[at : at + 2].hex() for at in range(0, 16, 2))
    return f"{numbers.randrange(2**28) & ~15:08x}: {words}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in data)}"


def _uuid(numbers: Random) -> str:
    return f"{uuid.UUID(int=numbers.getrandbits(128), version=4)} {numbers.randbytes(20).hex()}"


def _email(numbers: Random) -> str:
    name = f"{numbers.choice(NAMES)}.{numbers.choice(NAMES)}{numbers.randrange(1000)}"
    return f"{name}@mail{numbers.randrange(50)}.example.org"


LINES: Mapping[str, Callable[[Random], str]] = {
    "access log, addresses at home": _access_at_home,
    "log of a service": _service,
    "CSV of dates and prices": _prices,
    "table of decimals": _table,
    "table of integers": _spaced_table,
    "numbers like phones": _no_phone,
    "hex dump": _hex,
    "UUIDs and hashes": _uuid,
    "identifiers": _identifiers,
    "access log": _access_abroad,
    "phones": _phone,
    "e-mail addresses": _email,
}
"""How a line of each kind is made; the last four have much in them that is private, or looks so."""
