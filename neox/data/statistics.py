"""Token counts of a corpus: its unigram entropy is the loss of a model that knows frequencies and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np


class UnigramCounts:
    """How often each token occurs."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)

    def add(self, tokens: np.ndarray[Any, Any]) -> None:
        """Count a block of tokens, integers of any width."""
        more = np.bincount(tokens, minlength=len(self._counts))
        more[: len(self._counts)] += self._counts
        self._counts = more

    @property
    def total(self) -> int:
        """Tokens counted."""
        return int(self._counts.sum())

    def entropy(self) -> float:
        """Nats per token."""
        if self.total == 0:
            return 0.0
        shares = self._counts[self._counts > 0] / self.total
        return float(-(shares * np.log(shares)).sum())
