"""Why a run should stop before its end: a signal from the scheduler, or a deadline; read at step boundaries."""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class StopRequest:
    """Remembers the first reason to stop that this process saw."""

    def __init__(self, stop_after_min: float | None = None) -> None:
        """`stop_after_min`: minutes from now, None for no deadline. Takes over SIGNALS."""
        self._deadline = None if stop_after_min is None else time.monotonic() + 60 * stop_after_min
        self._reason: str | None = None
        self.catch_signals()

    def catch_signals(self) -> None:
        """Takes the signals over; called again after libraries were loaded that may have done the same."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def ignore_signals(self) -> None:
        """From now on nothing asks this process to stop: its exit code is settled, and its exit is near.

        Without this a launcher that signals the other ranks when the first exits would replace their exit codes, for
        Python gives signals their deadly defaults back while it shuts down; an ignored signal stays ignored.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or f"signal {signal.Signals(number).name}"

    @property
    def reason(self) -> str | None:
        """Why this process should stop; None to go on."""
        if self._reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._reason = "the time of --stop-after is over"
        return self._reason
