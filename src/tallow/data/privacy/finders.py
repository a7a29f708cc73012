"""What looks exactly at the places where something private may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from tallow.data.privacy import card, email, iban, ip, national, phone, phone_plan, secret, wallet
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.privacy.span import Span, literals
from tallow.kernels.text.candidates import Candidate
from tallow.kernels.text.number_forms import NumberForms


def number_forms(config: PrivacyConfig) -> NumberForms:
    """Numbers at which `find` may find something."""
    return _number_forms(config.phone_regions)


@lru_cache(8)
def _number_forms(regions: tuple[str, ...]) -> NumberForms:
    pieces: dict[tuple[int, ...], frozenset[str]] = {}
    for region in regions:
        for sizes, firsts in phone_plan.usual_shapes(region).items():
            pieces[sizes] = pieces.get(sizes, frozenset()) | firsts
    ids = [form for forms in national.FORMS.values() for form in forms]
    words = [word for form in ids if form.words for word in literals(form.words)]
    return NumberForms(
        pieces=pieces,
        abroad=phone_plan.numbers_abroad(),
        anywhere=card.SIZES.union(*(form.sizes for form in ids)),
        lettered=frozenset[tuple[int, ...]]().union(*(form.beside_letter for form in ids)),
        words=[*literals(phone.WORDS), *words],
    )


def find(text: str, candidates: Sequence[tuple[int, int, int]], config: PrivacyConfig) -> list[Span]:
    """What is private at some candidates (`Candidate`, first character, that behind the last), of the kinds sought."""
    sought = set(config.sought)
    found = {span for candidate in candidates for span in _look(text, *candidate, config)}
    return [span for span in found if span.kind in sought]


def _look(text: str, kind: int, start: int, end: int, config: PrivacyConfig) -> Iterator[Span]:
    if kind == Candidate.TOKEN:
        yield from secret.find_key(text, start, end)
        yield from wallet.find(text, start, end)
    elif kind == Candidate.NUMBER:
        yield from card.find(text, start, end)
        yield from national.find(text, start, end, config.countries)
        yield from phone.find(text, start, end, config.phone_regions, config.phone_validation == "possible")
    elif kind == Candidate.AT:
        yield from email.find(text, start)
        yield from secret.find_in_url(text, start)
    elif kind in (Candidate.IPV4, Candidate.IPV6):
        yield from ip.find(text, start, end, config.private_ips)
    elif kind == Candidate.IBAN:
        yield from iban.find(text, start)
    elif kind == Candidate.ASSIGNMENT:
        yield from secret.find_value(text, end)
    elif kind == Candidate.PEM:
        yield from secret.find_pem(text, start)
