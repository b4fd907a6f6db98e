"""Token counts of a corpus: its unigram entropy is the loss of a model that knows frequencies and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np


class UnigramCounts:
    """How often each token occurs."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)
        self._wide = np.empty(0, np.intp)  # as bincount wants tokens; kept, since new pages take longer than counting
        self.total = 0
        """Tokens seen."""

    def add(self, tokens: np.ndarray[Any, Any]) -> None:
        """Count a block of tokens, integers of any width; labels below 0 and rewards are seen, and none of them."""
        self.total += len(tokens)
        if tokens.dtype.kind == "f":
            return
        known = tokens[tokens >= 0] if tokens.dtype.kind == "i" else tokens
        if len(self._wide) < len(known):
            self._wide = np.empty(len(known), np.intp)
        wide = self._wide[: len(known)]
        wide[:] = known
        more = np.bincount(wide, minlength=len(self._counts))
        more[: len(self._counts)] += self._counts
        self._counts = more

    def entropy(self) -> float:
        """Nats per token that was counted."""
        if not self._counts.any():
            return 0.0
        shares = self._counts[self._counts > 0] / self._counts.sum()
        return float(-(shares * np.log(shares)).sum())
