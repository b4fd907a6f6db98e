"""When to save between the checkpoints of a recipe, so that failures cost least: Daly's optimum, as saves take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping

from neox.checkpoint.ranks import Ranks
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig

VARIABLE = "NEOX_MTBF_H"
"""Hours between two failures of the nodes of this job, taken together. The launcher sets it from the site's facts."""
FIRST_S = 600.0
"""Before a save has been measured."""
LEAST_TOTALS = 2.0
"""Intervals are at least this many times what a save takes to reach the disk: it must not be written all the time."""


def optimal_interval_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between two saves, each of which costs training `save_s`, with a failure every `mtbf_s`.

    Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22 (2006), equation 37.
    Its leading term is Young's, sqrt(2 save_s mtbf_s).
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def mtbf_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between failures of this job's nodes; None where nobody knows. Raises UserError for what is no number."""
    text = environ.get(VARIABLE)
    try:
        hours = float(text) if text else None
    except ValueError:
        hours = 0.0
    if hours is not None and not hours > 0:
        raise UserError(f"environment: {VARIABLE} = {text!r}: expected hours above 0")
    return None if hours is None else 3600 * hours


def agreed_mtbf_s(ranks: Ranks) -> float | None:
    """The first rank's `mtbf_s`, so that all save alike; every rank calls it. Raises UserError, on every rank."""
    mtbf, mistake = None, None
    if ranks.rank == 0:
        try:
            mtbf = mtbf_s()
        except UserError as error:
            mistake = str(error)
    ranks.agree(mistake)
    agreed: float | None = ranks.broadcast(mtbf)
    return agreed


class Passing:
    """Says when a save is due that makes way for the next one."""

    def __init__(
        self, config: CheckpointConfig, mtbf_s: float | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`mtbf_s`: see `mtbf_s`; None: none is ever due."""
        self._mtbf_s, self._now = mtbf_s if config.between == "auto" else None, now
        self.saved_at = now()
        self.is_on = self._mtbf_s is not None

    def interval_s(self, times: tuple[float, float] | None) -> float:
        """Seconds between saves; `times`: how long training waited for the last save, and it took to the disk."""
        assert self._mtbf_s is not None
        if times is None:
            return min(FIRST_S, self._mtbf_s)
        stall_s, total_s = times
        return max(optimal_interval_s(stall_s, self._mtbf_s), LEAST_TOTALS * total_s)

    def is_due(self, times: tuple[float, float] | None) -> bool:
        return self.is_on and self._now() - self.saved_at >= self.interval_s(times)
