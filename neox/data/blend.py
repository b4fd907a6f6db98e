"""Blending: which of several token files gives each sample, byte for byte as GPT-NeoX deals them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NUM_LANES = 1 << 12
"""Stretches of the sequence that are dealt side by side, as long as there are MIN_LANE samples for each."""
MIN_LANE = 1 << 8
BLOCK = 1 << 12
"""Samples between two stored counts of what each file gave."""


def normalised(weights: Sequence[float]) -> list[float]:
    """Weights that add up to one."""
    total = sum(weights)
    return [weight / total for weight in weights]


def weights_by_documents(num_documents: Sequence[int], alpha: float, compat: str) -> list[float]:
    """Weights of token files of so many documents: n^alpha, normalised (arXiv 1911.02116, section 3.1).

    GPT-NeoX multiplies them by 1 - n/N, so that even alpha = 1 is not proportional (data_utils.weights_by_num_docs).
    """
    if len(num_documents) == 1:
        return [1.0]
    shares = normalised(num_documents)
    weights = normalised([share**alpha for share in shares])
    if compat == "none":
        return weights
    return normalised([weight * (1 - share) for weight, share in zip(weights, shares, strict=True)])


def requested_of_each(weights: Sequence[float], num_samples: int) -> list[int]:
    """Samples to have of each token file: its share, and half a per cent more for where dealing is uneven."""
    return [math.ceil(num_samples * weight * 1.005) for weight in weights]


def deal(weights: Sequence[float], num_samples: int) -> Array:
    """dataset_index [num_samples] uint8: which token file gives sample i (helpers.cpp, build_blending_indices).

    It is the one whose share of the samples before i, w·max(i, 1), most exceeds what it gave; the first where several
    do. Each choice depends on all before it, so stretches are dealt side by side from a guess of what was given before
    them, and dealt again until each begins where the one before ended: the choices are those of a plain loop.
    """
    shares = np.array(weights, np.float64)
    shares /= np.sum(shares)
    length = max(MIN_LANE, -(-num_samples // NUM_LANES))
    starts = np.arange(0, num_samples, length)
    given = _guess(shares, starts)
    # What each stretch was found to deal, and to leave, after what was given: few possibilities, as errors stay small.
    known: list[dict[bytes, tuple[Array, Array]]] = [{} for _ in starts]
    while new := [lane for lane in range(len(starts)) if given[lane].tobytes() not in known[lane]]:
        for lane, *found in zip(new, *_deal_lanes(shares, starts[new], given[new], length), strict=True):
            known[lane][given[lane].tobytes()] = (found[0], found[1])
        for lane in range(len(starts) - 1):
            if given[lane].tobytes() in known[lane]:
                given[lane + 1] = known[lane][given[lane].tobytes()][1]
    rows = [known[lane][given[lane].tobytes()][0] for lane in range(len(starts))]
    return np.concatenate([np.empty(0, np.uint8), *rows])[:num_samples]


def counts_before(dataset_index: Array, num_files: int) -> Array:
    """[blocks, num_files] int64: samples that each file gave before every BLOCK-th sample."""
    counts = np.empty((-(-len(dataset_index) // BLOCK), num_files), np.int64)
    for block in range(len(counts)):
        counts[block] = np.bincount(dataset_index[block * BLOCK : (block + 1) * BLOCK], minlength=num_files)
    before: Array = np.cumsum(counts, axis=0) - counts
    return before


def _guess(shares: Array, starts: Array) -> Array:
    """[lanes, files] float64: samples each file probably gave before `starts`, its share rounded so that all add up."""
    exact = shares * starts[:, None]
    given: Array = np.floor(exact)
    rank = np.argsort(np.argsort(given - exact, axis=1, kind="stable"), axis=1)
    given += rank < (starts - given.sum(axis=1))[:, None]
    return given


def _deal_lanes(shares: Array, starts: Array, given: Array, length: int) -> tuple[Array, Array]:
    """`length` samples from each of `starts` on, after `given` [lanes, files]: [lanes, length], and what is given then.

    Products and differences are rounded as in the plain loop, so that ties fall alike.
    """
    lanes = np.arange(len(starts))
    counts = given.T.copy()  # [files, lanes]: float64 holds them exactly
    position = starts.astype(np.float64)
    out = np.empty((length, len(starts)), np.uint8)
    for step in range(length):
        sample = np.maximum(position + step, 1.0)
        most = shares[0] * sample - counts[0]
        choice = np.zeros(len(starts), np.intp)
        for number in range(1, len(shares)):
            error = shares[number] * sample - counts[number]
            choice[error > most] = number
            np.maximum(most, error, out=most)
        counts[choice, lanes] += 1.0
        out[step] = choice
    return out.T, counts.T.copy()
