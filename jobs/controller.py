"""The controller's own state in its folder: one controller at a time, and which jobs are on their way."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import UserError

ACTIVE = "active.jsonl"
"""The journal of `ActiveJobs` in a controller's folder."""


class Lock:
    """Held while this process lives: the kernel drops it with the process, however that dies."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when another controller holds it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.fdopen(os.open(folder / "controller.lock", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            raise UserError(f"{folder}: another controller works here ({holder}); end it first") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class ActiveJob:
    """What outlives the controller of a job on its way."""

    job_id: str
    scheduler: str
    folder: Path
    """submitit's; of this submission alone, for a new cluster counts its jobs from 1 again."""
    name: str
    outputs: tuple[str, ...]
    """Relative to the folder the controller worked in."""
    notes: Path
    """Where its allocations leave notes for each other."""
    successors: tuple[tuple[str, Path], ...] = ()
    """Id and folder of the jobs that wait for its end, in order."""

    @property
    def chain(self) -> list[tuple[str, Path]]:
        """Id and folder of the job and of its successors."""
        return [(self.job_id, self.folder), *self.successors]


@dataclass(frozen=True)
class ActiveJobs:
    """A journal of the jobs on their way, so that the next controller finds those of a dead one.

    One line for a job that begins, and one where it ends: shared filesystems make files far slower than lines.
    """

    file: Path

    @staticmethod
    def key(name: str, outputs: Sequence[str]) -> str:
        """What makes it the same job in every run."""
        return hashlib.sha256(json.dumps([name, sorted(outputs)]).encode()).hexdigest()[:32]

    def add(self, jobs: Mapping[str, ActiveJob]) -> None:
        """Notes jobs by their keys; one that is known by its key already is another from now on."""
        self._append([{"key": key, **vars(job)} for key, job in jobs.items()])

    def remove(self, key: str) -> None:
        self._append([{"key": key}])

    def all(self) -> dict[str, ActiveJob]:
        """Every job on its way by its key, whoever submitted it. Raises UserError for a line of another version."""
        found: dict[str, ActiveJob | None] = {}
        for line in self.file.read_text(errors="replace").splitlines() if self.file.exists() else ():
            try:
                data = json.loads(line)
            except ValueError:
                continue  # the disk was full, or it is being written
            try:
                found[data["key"]] = _active_job(data)
            except (AttributeError, KeyError, TypeError):
                raise UserError(f"{self.file}: not of this version, or damaged: {line[:80]}") from None
        return {key: job for key, job in found.items() if job}

    def compact(self) -> None:
        """Leaves the lines of jobs on their way alone; for a controller that begins."""
        draft = self.file.with_suffix(".tmp")
        draft.unlink(missing_ok=True)
        ActiveJobs(draft).add(self.all())
        draft.replace(self.file)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Begins a line of its own: the last one may have been cut off by a full disk."""
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = "".join(f"\n{json.dumps(record, default=str)}" for record in records)
        with os.fdopen(os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as stream:
            stream.write(f"{lines}\n")


def _active_job(data: dict[str, Any]) -> ActiveJob | None:
    """None: it has ended."""
    data = {name: value for name, value in data.items() if name != "key"}
    if not data:
        return None
    successors = tuple((job_id, Path(folder)) for job_id, folder in data["successors"])
    paths = {"folder": Path(data["folder"]), "notes": Path(data["notes"])}
    return ActiveJob(**{**data, **paths, "outputs": tuple(data["outputs"]), "successors": successors})
