"""From ranks of tokens to the pairs that are merged.

Some formats rank tokens: whatever two tokens side by side make a token are merged, the one of the smallest rank first.
Others, and the library `tokenizers`, list the pairs. Where every token comes about when it is encoded by the tokens of
smaller rank, the last two tokens that make it are the only ones that ever do, and a list of these pairs is an
equivalent vocabulary. For assume that two others make it, in some text. All merges of smaller rank are done by then,
and none of them went across the token's ends. So those within it were done as in the token alone, which leaves the
pair.

Where there are other tokens (in Llama 3's vocabulary), all pairs that make a token are listed by its rank. Only of
several pairs that make the same token at places that overlap another one than the leftmost might then go first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import AnyStr

LONGEST = 512
"""Of a token that is encoded; that takes the square of its length."""


def last_pairs(ranks: Mapping[AnyStr, int]) -> list[tuple[AnyStr, AnyStr]] | None:
    """The two tokens that each longer token is made of last, by rank; None if there is one without."""
    pairs = list[tuple[AnyStr, AnyStr]]()
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _encode(token, ranks, rank) if len(token) <= LONGEST else []
            if len(parts) != 2:
                return None
            pairs.append((parts[0], parts[1]))
    return pairs


def all_pairs(ranks: Mapping[AnyStr, int]) -> list[tuple[AnyStr, AnyStr]]:
    """All pairs of tokens that make a token, by its rank, then by those of the parts."""
    found = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _encode(token: AnyStr, ranks: Mapping[AnyStr, int], limit: int) -> list[AnyStr]:
    """The byte-pair encoding of a token by tokens of smaller rank than `limit`."""
    if len(token) == 2:
        return [token[:1], token[1:]]
    parts = [token[at : at + 1] for at in range(len(token))]
    costs = [ranks.get(token[at : at + 2], limit) for at in range(len(token) - 1)]
    while costs and (cost := min(costs)) < limit:
        at = costs.index(cost)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del costs[at]
        if at:
            costs[at - 1] = ranks.get(parts[at - 1] + parts[at], limit)
        if at < len(costs):
            costs[at] = ranks.get(parts[at] + parts[at + 1], limit)
    return parts
