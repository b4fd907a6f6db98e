"""Which documents train, validate and test: GPT-NeoX's split by document count."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neox.config.errors import UserError

PARTS = ("train", "valid", "test")


def split_bounds(split: Sequence[float], num_documents: int) -> dict[str, range]:
    """The documents of each part, in natural order (GPT-NeoX data_utils.get_train_valid_test_split_).

    Rounding's remainder is taken from every bound, as there. UserError for shares that are negative, add up to nothing,
    are more than three, or round to a bound below zero.
    """
    shares = [float(share) for share in split]
    name = f"data.split {shown(shares)}"
    if not 1 <= len(shares) <= 3:
        raise UserError(f"{name}: one to three shares are allowed (train, valid, test)")
    if min(shares) < 0 or sum(shares) <= 0 or not all(map(math.isfinite, shares)):
        raise UserError(f"{name}: shares must not be negative, and one must be above zero")
    shares += [0.0] * (3 - len(shares))
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / sum(shares) * float(num_documents)))
    excess = bounds[-1] - num_documents
    bounds = [0] + [bound - excess for bound in bounds[1:]]
    if min(bounds) < 0:
        raise UserError(
            f"{name}: rounds to the bounds {bounds} over {num_documents} documents; change a share a little"
        )
    return {part: range(bounds[i], bounds[i + 1]) for i, part in enumerate(PARTS)}


def part_bounds(split: Sequence[float], num_documents: int, part: str) -> dict[str, range]:
    """`split_bounds`, of which `part` must hold a document. UserError when it does not."""
    bounds = split_bounds(split, num_documents)
    if not bounds[part]:
        raise UserError(
            f"data.split {shown(split)} leaves none of {num_documents} documents to the part '{part}'; "
            "give it a larger share, or bring more documents"
        )
    return bounds


def shown(split: Sequence[float]) -> str:
    """Shares as a user writes them: 969,30,1."""
    return ",".join(f"{share:g}" for share in split)


def parse_split(text: str) -> tuple[float, ...]:
    """Shares from "969,30,1" or "969/30/1"."""
    try:
        return tuple(float(share) for share in text.replace("/", ",").split(","))
    except ValueError:
        raise UserError(f"split {text!r}: write shares as numbers with commas between, like 969,30,1") from None
