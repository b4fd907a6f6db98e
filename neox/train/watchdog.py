"""Ends a process whose step hangs, after writing down where each of its threads is."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

LEAST_LIMIT_S, MEDIANS = 300.0, 20
"""By default a step may take this long, or this many times the median of the recent steps, whichever is longer."""
SLACK = 12
"""The first step, and what lies between steps (validation, save), may take this many times a step's limit: an hour at
least by default. They may compile, load, or wait for a filesystem."""
RECENT_STEPS = 50
POLL_S = 1.0
EXIT_DELAY_S = 5.0
"""The other ranks notice at about the same time; a rank that leaves at once would break what they wait in first."""
STDERR = 2


def step_limit_s(timeout_s: float | None, recent_s: Sequence[float]) -> float:
    """How long the next step may take: train.step_timeout_s, or what the docstrings above say."""
    if timeout_s is not None:
        return timeout_s
    return max(LEAST_LIMIT_S, MEDIANS * statistics.median(recent_s or [0.0]))


class Watchdog:
    """Watches this process while it is entered. Every rank has one: what hangs is mostly another rank's fault.

    It is a thread, which runs while the others wait in a collective or for a file. Where it cannot run itself, for one
    of them keeps Python's lock or the logs' filesystem is what hangs, faulthandler's timer, which needs neither, prints
    the stacks to stderr and ends the process a little later.
    """

    def __init__(self, folder: Path, rank: int, timeout_s: float | None) -> None:
        """`folder`: of the stacks. `timeout_s`: train.step_timeout_s; 0 watches nothing."""
        self.stacks = folder / f"stacks_rank_{rank:05d}.txt"
        self._rank, self._timeout_s = rank, timeout_s
        self._recent_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._deadline, self._what = float("inf"), ""

    def __enter__(self) -> Watchdog:
        if self._timeout_s != 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._allow("what comes before the first step", SLACK)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around optimizer step `number`."""
        self._allow(f"step {number}", 1 if self._recent_s else SLACK)
        begin = time.monotonic()
        yield
        self._recent_s.append(time.monotonic() - begin)
        self._allow(f"what follows step {number}", SLACK)

    def _allow(self, what: str, times: float) -> None:
        """Begins `what`, which may take that many times a step's limit."""
        if self._thread is None:
            return
        limit_s = times * step_limit_s(self._timeout_s, self._recent_s)
        self._what = f"{what} did not end within {limit_s:.0f} s"
        self._deadline = time.monotonic() + limit_s

    def _watch(self) -> None:
        left_s = self._deadline - time.monotonic()
        while left_s > 0:
            faulthandler.dump_traceback_later(left_s + 2 * EXIT_DELAY_S, exit=True, file=STDERR)
            if self._is_over.wait(min(POLL_S, left_s)):
                return
            left_s = self._deadline - time.monotonic()
        self._give_up()

    def _give_up(self) -> None:
        why = f"rank {self._rank}: {self._what} (train.step_timeout_s)"
        print(f"neox: error: {why}; where it is: {self.stacks}", file=sys.stderr, flush=True)
        self.stacks.parent.mkdir(exist_ok=True)
        with self.stacks.open("w", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {why}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(EXIT_DELAY_S)
        os._exit(1)
