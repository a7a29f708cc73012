"""What looks exactly at the places where something private may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from tallow.data.privacy import card, email, iban, ip, national, phone, phone_plan, secret, wallet
from tallow.data.privacy.config import Country, PrivacyConfig
from tallow.data.privacy.span import Span, literals
from tallow.kernels.text.candidates import Candidate
from tallow.kernels.text.number_forms import NumberForms, NumberPlan


def number_forms(config: PrivacyConfig) -> NumberForms:
    """Numbers at which `find` may find something."""
    return _number_forms(
        config.phone_regions, config.countries, config.phone_validation == "possible", config.private_ips
    )


@lru_cache(8)
def _number_forms(
    regions: tuple[str, ...], countries: tuple[Country, ...], possible: bool, private_ips: bool
) -> NumberForms:
    ids = [form for country in countries for form in national.FORMS[country]]
    return NumberForms(
        plans=[NumberPlan(phone_plan.usual_shapes(each), phone_plan.may_be_valid(each).pattern) for each in regions],
        abroad=phone_plan.numbers_abroad(),
        unplanned=possible,
        phone_words=literals(phone.WORDS),
        cards=card.FORMS,
        issuers=card.lengths(),
        ids={written: form.check for form in ids for written in form.digits},
        lettered={written for form in ids for written in form.beside_letter},
        bare={written for form in ids for written in form.beside_word},
        id_words=[word for form in ids if form.words for word in literals(form.words)],
        accounts=iban.lengths(),
        own_addresses=private_ips,
    )


def find(text: str, candidates: Sequence[Sequence[int]], config: PrivacyConfig) -> list[Span]:
    """What is private at some candidates (`Candidate`, first character, that behind the last), of the kinds sought."""
    sought = set(config.sought)
    found = {span for candidate in candidates for span in _look(text, candidate[0], candidate[1], candidate[2], config)}
    return [span for span in found if span.kind in sought]


def _look(text: str, kind: int, start: int, end: int, config: PrivacyConfig) -> Iterator[Span]:
    if kind == Candidate.TOKEN:
        yield from secret.find_key(text, start, end)
        yield from wallet.find(text, start, end)
    elif kind == Candidate.CARD:
        yield from card.find(text, start, end)
    elif kind == Candidate.ID:
        yield from national.find(text, start, end, config.countries)
    elif kind == Candidate.PHONE:
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
