"""What is done about each kind of private thing."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tallow.data.privacy.span import KINDS, Kind
from tallow.models.setting import ModelPath
from tallow.recipe import Section

Country = Literal["us", "ru", "ir", "cn", "de", "fr", "es"]


class KindConfig(Section):
    """What is done about one kind.

    Args:
        action: `replace` by a placeholder, only `count`, or `ignore`.
        drop_beyond: Documents with more of them are dropped; None: none is.
    """

    action: Literal["replace", "count", "ignore"] = "replace"
    drop_beyond: int | None = Field(default=None, ge=0)


class NameConfig(KindConfig):
    """What is done about names of people, and the model that finds them.

    Args:
        model: A directory as on the hub: an encoder that labels tokens (`BertForTokenClassification`) with its
            tokenizer; or a name in the local store.
        labels: Of the kinds of entities that it labels, those that are names: `PER` stands for `B-PER` and `I-PER`,
            too.
        min_score: A word is of a name if these labels have so much of the probability together; lower finds more.
        window: Tokens that the model sees at once, its own at the ends among them; no more than it has positions.
        overlap: Tokens that two windows share, at most half of one.
    """

    model: ModelPath
    labels: tuple[str, ...] = Field(default=("PER", "PERSON"), min_length=1)
    min_score: float = Field(default=0.5, gt=0, lt=1)
    window: int = Field(default=256, ge=8)
    overlap: int = Field(default=64, ge=0)

    @model_validator(mode="after")
    def _windows_go_on(self) -> Self:
        if self.overlap > self.window // 2:
            raise ValueError(f"an overlap of {self.overlap} is more than half of a window of {self.window}")
        return self


class PrivacyConfig(Section):
    """What is done about each kind, and how some are told.

    Args:
        email: Addresses with a name, an @ and a domain.
        phone: Numbers that their country's plan has: with the country's code; in one of `phone_regions` in its usual
            grouping; or in any beside a word such as "call".
        ip: IPv4 and IPv6.
        card: Payment cards: Luhn's check digit, an issuer's first digits and its lengths.
        iban: Bank accounts: the check digits (mod 97) and the country's form.
        national_id: Those of `countries`, by their check digits, or the rules for US social security numbers.
        secret: Keys and tokens by their form, private keys, passwords in URLs, and what looks random behind
            `password=` and the like.
        wallet: Bitcoin (and what writes addresses as it does) by their check sums; Ethereum by its own, or by its
            form where that is in one case.
        name: Names of people, which a model finds; None: they are not sought.
        private_ips: Addresses that mean something only in a network of one's own (private, loopback, link-local) too.
        phone_regions: Countries (ISO 3166) whose numbers are told without the country's code, in this order.
        phone_validation: `possible`: beside a word such as "call" the right length suffices.
        countries: Whose national ids are told: social security numbers (us), INN and SNILS (ru), national codes (ir),
            resident ids (cn), Steuer-IDs (de), NIR (fr), DNI and NIE (es).
    """

    email: KindConfig = KindConfig()
    phone: KindConfig = KindConfig()
    ip: KindConfig = KindConfig()
    card: KindConfig = KindConfig()
    iban: KindConfig = KindConfig()
    national_id: KindConfig = KindConfig()
    secret: KindConfig = KindConfig()
    wallet: KindConfig = KindConfig()
    name: NameConfig | None = None
    private_ips: bool = False
    phone_regions: tuple[str, ...] = ("US", "GB", "DE", "FR", "ES", "RU", "IR", "CN")
    phone_validation: Literal["valid", "possible"] = "valid"
    countries: tuple[Country, ...] = ("us", "ru", "ir", "cn", "de", "fr", "es")

    def of(self, kind: Kind) -> KindConfig:
        """What is done about a kind."""
        return getattr(self, kind) or KindConfig()  # names that a finder of the caller's finds

    @property
    def sought(self) -> tuple[Kind, ...]:
        """The kinds that are not ignored; names, if there is a model for them."""
        there = self.name is not None
        return tuple(kind for kind in KINDS if self.of(kind).action != "ignore" and (there or kind != "name"))
