"""Which of several settings is faster: paired ratios with confidence intervals that assume no distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""That all intervals of a ranking hold together; each one's own share of the error is smaller (Bonferroni)."""


@dataclass(frozen=True)
class Ranked:
    """A candidate's time as a ratio to the baseline's in the same round."""

    name: str
    ratio: float
    """Median over the rounds."""
    low: float
    high: float
    """Interval of the median."""
    rounds: int

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval lies below the baseline."""
        return self.high < 1

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def least_rounds(num_candidates: int) -> int:
    """Rounds below which no interval is narrow enough to exist at the confidence of `rank`."""
    return math.ceil(math.log2(2 * num_candidates / (1 - CONFIDENCE)))


def rank(seconds: Mapping[str, Sequence[float]], baseline: str) -> list[Ranked]:
    """The candidates, fastest first; `seconds` has one value per round of each, the baseline's included.

    The interval is that of a median by order statistics (Conover, Practical Nonparametric Statistics, 3.2).
    """
    candidates = [name for name in seconds if name != baseline]
    error = (1 - CONFIDENCE) / max(1, len(candidates))
    ranked = []
    for name in candidates:
        ratios = sorted(ours / base for ours, base in zip(seconds[name], seconds[baseline], strict=True))
        skip = skipped_at_each_end(len(ratios), error)
        ranked.append(Ranked(name, statistics.median(ratios), ratios[skip], ratios[-1 - skip], len(ratios)))
    return sorted(ranked, key=lambda one: one.ratio)


def skipped_at_each_end(num_values: int, error: float) -> int:
    """How many of the sorted values lie outside of the interval, at each end.

    The median is below the k-th smallest value with the probability that fewer than k of n fair coins show heads.
    """
    tail, skip = 0.5**num_values, 0
    while tail + math.comb(num_values, skip + 1) * 0.5**num_values <= error / 2:
        skip += 1
        tail += math.comb(num_values, skip) * 0.5**num_values
    return skip
