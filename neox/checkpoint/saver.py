"""Saving behind training: the training thread copies, a thread writes, and the first rank's commits when all have."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from neox.checkpoint import generation
from neox.checkpoint.ranks import Ranks, SaveError, fail_together
from neox.checkpoint.save import commit, parts, write_rank
from neox.checkpoint.staging import Staging
from neox.checkpoint.store import Store
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig
from neox.parallel.pieces import Piece

NICENESS = 10
"""Of the writing thread on Linux: training's threads get the cores first."""
POLL_S, MAX_POLL_S = 0.02, 1.0
"""Seconds between two looks at what other ranks have done: at first, and after many."""
FENCE_INTERVAL_S = 10.0
"""Seconds between two looks at the token while nothing is saved."""


class Saver:
    """Saves one checkpoint at a time; every rank has one and calls its methods alike, in its training thread.

    The writing threads use files alone, never a collective, so they cannot come between training's; what the ranks
    must agree on, they agree on at step boundaries. A rank that dies in training does not keep the others' files, once
    all are written, from becoming a checkpoint.
    """

    def __init__(
        self,
        store: Store,
        ranks: Ranks,
        config: CheckpointConfig,
        say: Callable[[str], None],
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """`store` is claimed (`generation.claim`); `say` prints a line of the first rank's.

        `after_commit` is called in the first rank's writing thread.
        """
        self._store, self._ranks, self._config, self._say = store, ranks, config, say
        self._after_commit = after_commit
        self._staging = Staging()
        self._writing: _Writing | None = None
        self._fence_checked = time.monotonic()
        self.times: tuple[float, float] | None = None
        """Seconds that training waited for the last save, and that it took to the disk; on the first rank."""
        self.passing: list[int] = []
        """Checkpoints that go when a newer one stands."""

    @property
    def is_writing(self) -> bool:
        """Whether the next save would wait; as of the last `poll`, and so alike on every rank."""
        return self._writing is not None

    def reserve(self, pieces: Iterable[Piece]) -> None:
        """Makes the memory for the copies ready, so that the first save is no slower than the others."""
        self._staging.copy(pieces)

    def start(
        self,
        step: int,
        pieces: Iterable[Piece],
        state: dict[str, Any],
        flush_logs: Callable[[], None],
        is_passing: bool = False,
    ) -> None:
        """Copies the state and goes on; waits first while the save before is still being written.

        Args:
            state: JSON-able, not changed afterwards. flush_logs: waits until what belongs to the steps so far is on
                the disk; the first rank's writing thread calls it before it commits. is_passing: whether the checkpoint
                goes when a newer one stands.

        Raises:
            SaveError: on every rank, when the save before has failed on one of them.
        """
        begin = time.perf_counter()
        self.wait()
        copies = self._staging.copy(pieces)
        stall_s = time.perf_counter() - begin

        def finish() -> None:
            flush_logs()
            commit(self._store, step, state)
            generation.check(self._store)  # it may have been stopped since: what follows is the later start's affair
            total_s = time.perf_counter() - begin
            self._note_times(step, stall_s, total_s)
            self._say(f"saved step {step}: training waited {stall_s:.2f} s, on disk after {total_s:.2f} s")
            self._after_commit()
            self._prune([step] * is_passing)

        self._writing = _Writing(self._store, self._ranks, step, copies, finish)
        self._writing.start()

    def poll(self) -> bool:
        """Whether a save is still being written; to be called at every step boundary.

        Raises:
            SaveError: on every rank, when one of them could not write (a full disk, say).
        """
        writing = self._writing
        if writing is None:
            return False
        try:
            fail_together(self._ranks, self._store.path(writing.step), writing.error)
        except SaveError:
            self._abandon(writing)
            self.check_not_overtaken()  # then that is the reason: the folder was taken away
            raise
        if not self._ranks.any_rank(writing.is_committed):
            return True
        self._writing = None
        return False

    def wait(self) -> None:
        """Until the save that is being written stands.

        Raises:
            SaveError: as `poll`.
        """
        while self.poll():
            time.sleep(POLL_S)

    def is_overtaken(self) -> bool:
        """Whether a later start was seen to have taken the run over; the first rank looks every FENCE_INTERVAL_S."""
        if self._ranks.rank != 0 or time.monotonic() < self._fence_checked + FENCE_INTERVAL_S:
            return False
        self._fence_checked = time.monotonic()
        return isinstance(self._check_fence(), generation.FencedError)

    def check_not_overtaken(self) -> None:
        """Raises SaveError, on every rank, if a later start has taken the run over."""
        fail_together(self._ranks, self._store.folder, self._check_fence())

    def _check_fence(self) -> OSError | None:
        """What the first rank finds against writing here."""
        try:
            if self._ranks.rank == 0:
                generation.check(self._store)
        except OSError as error:
            return error
        return None

    def _note_times(self, step: int, stall_s: float, total_s: float) -> None:
        """For whoever plans saves from outside, as before a walltime's end; of a save that stands already."""
        self.times = (stall_s, total_s)
        with contextlib.suppress(OSError):
            note = {"step": step, "stall_s": stall_s, "total_s": total_s}
            (self._store.folder.parent / "last_save.json").write_text(json.dumps(note))

    def _prune(self, newest: list[int]) -> None:
        """What the rules let go, and the passing ones but `newest`; one that someone reads goes the next time."""
        old, self.passing = self.passing, self.passing + newest
        try:
            self._store.prune(self._config, self.passing)
            there = self._store.steps()
            self.passing = [step for step in old if step in there and not self._store.remove(step)] + newest
        except (OSError, UserError) as error:
            self._say(f"warning: old checkpoints are still there: {error}")

    def _abandon(self, writing: _Writing) -> None:
        self._writing = None
        writing.abandon()
        self._ranks.any_rank(False)  # every rank's thread has ended
        if self._ranks.rank == 0:
            shutil.rmtree(self._store.temporary(writing.step), ignore_errors=True)


class _Writing(threading.Thread):
    """One save on its way to the disk; even its folder is made here, for a busy disk may take long to do so."""

    def __init__(self, store: Store, ranks: Ranks, step: int, pieces: list[Piece], finish: Callable[[], None]) -> None:
        """`finish` follows on the first rank, once all ranks have written their pieces."""
        super().__init__(name=f"save-{step}", daemon=True)
        self.step = step
        self.error: Exception | None = None
        self.is_committed = False
        self._store, self._rank, self._world_size = store, ranks.rank, ranks.world_size
        self._folder, self._pieces, self._finish = store.temporary(step), pieces, finish
        self._abandoned = threading.Event()

    def run(self) -> None:
        """What goes wrong is in `error`; what is not the disk's fault is shown with its traceback too."""
        try:
            _yield_cores()
            if self._rank == 0:
                generation.check(self._store)
                self._folder.mkdir()
            if self._wait_until(self._folder.is_dir):
                write_rank(self._folder, self._rank, self._pieces)
            if self._rank == 0 and self._wait_until(self._all_written):
                self._finish()
                self.is_committed = True
        except OSError as error:
            self.error = error
        except Exception as error:
            self.error = error
            raise

    def abandon(self) -> None:
        """Ends the thread; a file that it is writing is finished first."""
        self._abandoned.set()
        self.join()

    def _all_written(self) -> bool:
        generation.check(self._store)  # once overtaken, there is no folder left to wait for
        return len(parts(self._folder)) == self._world_size

    def _wait_until(self, is_so: Callable[[], bool]) -> bool:
        """False: the save was abandoned meanwhile."""
        pause_s = POLL_S
        while not is_so():
            if self._abandoned.wait(pause_s):
                return False
            pause_s = min(2 * pause_s, MAX_POLL_S)
        return True


def _yield_cores() -> None:
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
