"""Which layers each pipeline stage holds: pure arithmetic."""

from __future__ import annotations

import itertools


def deal_uniform(num_layers: int, num_stages: int) -> list[int]:
    """First block of each stage, and num_layers at the end: counts differ by one at most, the later stages get more."""
    return [num_layers * stage // num_stages for stage in range(num_stages + 1)]


def deal_by_weight(weights: list[int], num_stages: int) -> list[int]:
    """Boundaries as `deal_uniform`: every stage at least one block, the heaviest stage as light as possible.

    Args:
        weights: per block, e.g. its parameters (the first with the embedding, the last with the head).
    """
    sums = [0, *itertools.accumulate(weights)]
    # best[end] = (weight of the heaviest stage, boundaries) of the first `end` blocks dealt to the stages so far
    best = {end: (sums[end], [0, end]) for end in range(1, len(weights) + 1)}
    for stage in range(2, num_stages + 1):
        best = {
            end: min((max(best[cut][0], sums[end] - sums[cut]), [*best[cut][1], end]) for cut in range(stage - 1, end))
            for end in range(stage, len(weights) + 1)
        }
    return best[len(weights)][1]
