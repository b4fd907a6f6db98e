"""Checkpoints copied to an object store behind training: a process of its own, so that training never waits for it.

An object store has no rename: a checkpoint's files come first and its manifest last, so a copy without a manifest is
none. What goes is first robbed of its manifest.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from neox.checkpoint import manifest as manifests
from neox.checkpoint.reading import hold
from neox.checkpoint.store import STEP, Store, step_name
from neox.config.derive import is_kept_for_ever
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig
from neox.data import s3
from neox.data.s3 import Place

METRICS = "metrics.jsonl"
"""Beside the checkpoints, so that a run that goes on elsewhere keeps its curve."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 300.0
"""Before a copy that failed is tried again: at first, and after many failures."""
LAST_TRIES = 5
"""Times that a copy may fail in a row once the run has ended."""


def mirror_of(config: CheckpointConfig, run_dir: Path) -> Place | None:
    """Where the checkpoints of a run are copied to; None: nowhere."""
    return s3.place(config.mirror) / run_dir.absolute().name if config.mirror else None


def steps_at(target: Place) -> dict[int, set[str]]:
    """The files of every checkpoint that is there or was begun, by step; a complete one has a manifest."""
    found: dict[int, set[str]] = {}
    for key in s3.keys(target):
        folder, _, name = key.partition("/")
        if match := STEP.fullmatch(folder):
            found.setdefault(int(match[1]), set()).add(name)
    return found


def complete_steps(target: Place) -> list[int]:
    """Steps with a complete copy, ascending."""
    return sorted(step for step, names in steps_at(target).items() if manifests.NAME in names)


class Mirror:
    """The process that copies the checkpoints of one run; a context manager, whose end is the process's."""

    def __init__(self, store: Store, target: Place | None, config: CheckpointConfig) -> None:
        """`target` None: nothing is copied, and all methods do nothing."""
        self._arguments = (store.folder, target, config)
        self._process: SpawnProcess | None = None
        self._pipe, self._far_pipe = multiprocessing.Pipe()

    def __enter__(self) -> Mirror:
        if self._arguments[1] is None:
            return self
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(self._far_pipe, *self._arguments), name="mirror")
        # What asks training to stop is often sent to all processes: this one ends when training has.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._far_pipe.close()  # so that it is closed when the process is gone
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.join()

    def wake(self) -> None:
        """There may be a new checkpoint."""
        self._tell("look")

    def finish(self, timeout_s: float | None = None) -> bool:
        """Waits until all checkpoints are copied, at most `timeout_s`; returns whether they are."""
        if self._process is None:
            return True
        self._tell("end")
        self._process.join(timeout_s)
        return self._process.exitcode == 0

    def _tell(self, word: str) -> None:
        with contextlib.suppress(OSError):
            if self._process:
                self._pipe.send(word)


def _serve(pipe: Connection, folder: Path, target: Place, config: CheckpointConfig) -> None:
    """What the process does: copies until training has ended, or died."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.nice(10)  # training's threads get the cores first
    copying, is_last, failures = Copying(Store(folder), target, config), False, 0
    while True:
        try:
            is_behind = copying.copy_one(is_last)
            failures = 0
        except (OSError, UserError) as error:
            is_behind, failures = True, failures + 1
            _say(f"warning: not copied to {target}, and tried again: {error}")
        if is_last and (not is_behind or failures >= LAST_TRIES):
            sys.exit(int(is_behind))
        pause_s = min(FIRST_PAUSE_S * 2 ** (failures - 1), MAX_PAUSE_S) if failures else 0.0 if is_behind else None
        try:
            while pipe.poll(pause_s):
                is_last = pipe.recv() == "end" or is_last
                pause_s = 0.0
        except EOFError:
            sys.exit(1)  # training died


def copy_all(store: Store, target: Place, config: CheckpointConfig) -> None:
    """Copies every checkpoint that is not copied, in this process; StorageError or UserError when that fails."""
    copying = Copying(store, target, config)
    while copying.copy_one():
        pass


class Copying:
    """What of a run's checkpoints is copied already, and copying the rest."""

    def __init__(self, store: Store, target: Place, config: CheckpointConfig) -> None:
        self._store, self._target, self._config = store, target, config
        self._copied: set[int] | None = None
        """None: nobody has looked yet."""
        self._passing: set[int] = set()
        """Checkpoints that go when a newer one stands."""

    def copy_one(self, is_last: bool = False) -> bool:
        """Copies the newest checkpoint that is not copied, if there is one; returns whether there may be another.

        One that makes way for the next is gone before it could be of use there, unless it `is_last`.

        Raises:
            StorageError: the store failed; nothing that is visible is incomplete. UserError: it refuses.
        """
        if self._copied is None:
            s3.abort_uploads(self._target)
            self._copied = set(complete_steps(self._target))
        steps = self._store.steps()
        ignored = self._copied | (self._passing - set(steps[-1:]) if is_last else self._passing)
        missing = [step for step in steps if step not in ignored]
        if not missing:
            return False
        begin = time.perf_counter()
        try:
            reader = hold(self._store.path(missing[-1]))
        except UserError:
            return True  # pruned meanwhile
        with reader:
            if manifests.read(self._store.path(missing[-1])).state.get("is_passing", False):
                self._passing.add(missing[-1])
                if not (is_last and missing[-1] == steps[-1]):
                    return True
            self._copy(missing[-1])
        self._copied.add(missing[-1])
        _say(f"copied step {missing[-1]} to {self._target} in {time.perf_counter() - begin:.1f} s")
        self._prune()
        return True

    def _copy(self, step: int) -> None:
        folder, target = self._store.path(step), self._target / step_name(step)
        for file in manifests.read(folder).files:
            if s3.sha256_of(target / file.name) != file.sha256:
                s3.upload(folder / file.name, target / file.name, self._config.mirror_part_bytes, file.sha256)
        metrics = self._store.folder.parent / METRICS
        if metrics.is_file():
            s3.upload(metrics, self._target / METRICS, self._config.mirror_part_bytes)
        s3.upload(folder / manifests.NAME, target / manifests.NAME, self._config.mirror_part_bytes)

    def _prune(self) -> None:
        """Removes there what the rules of `Store.prune` would remove, and what was begun and will not be finished."""
        there = steps_at(self._target)
        complete = sorted(step for step, names in there.items() if manifests.NAME in names)
        doomed = set(there) - set(complete) - set(self._store.steps())
        if self._config.keep_last is not None:
            counted = [step for step in complete if not is_kept_for_ever(self._config, step)]
            doomed |= set([step for step in counted if step not in self._passing][: -self._config.keep_last])
        for step in doomed:
            for name in sorted(there[step], key=lambda name: name != manifests.NAME):
                s3.remove(self._target / step_name(step) / name)


def _say(line: str) -> None:
    print(" ".join(line.split()), flush=True)
