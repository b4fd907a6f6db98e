"""How far a transfer is, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_INTERVAL_S = 10.0


class Progress:
    """Of one file at a time; a context manager."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task(self._name, total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, have: int, total: int | None) -> None:
        """That `have` bytes of `total` are there; None: nobody knows of how many."""
        if self._bar:
            self._bar.update(self._task, completed=have, total=total)
        elif time.monotonic() - self._last >= LINE_INTERVAL_S:
            self._last = time.monotonic()
            print(f"{self._name}: {have} of {total or '?'} bytes", file=sys.stderr, flush=True)


def _make_bar() -> Any:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)
