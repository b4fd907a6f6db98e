"""The controller's own state in its folder: one controller at a time, and which jobs are on their way."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import UserError


class Lock:
    """Held while this process lives: the kernel drops it with the process, however that dies."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when another controller holds it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = (folder / "controller.lock").open("a+")
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
    """One file per job on its way, so that the next controller finds the jobs of a dead one."""

    folder: Path

    def key(self, name: str, outputs: Sequence[str]) -> Path:
        """The file of a job, from what makes it the same job in every run."""
        text = json.dumps([name, sorted(outputs)])
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def add(self, key: Path, job: ActiveJob) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = key.with_suffix(".tmp")
        draft.write_text(json.dumps(vars(job), default=str))
        draft.replace(key)

    def find(self, key: Path) -> ActiveJob | None:
        """The job of a key if it was on its way; None also where it ends at this moment."""
        try:
            data = json.loads(key.read_text())
        except FileNotFoundError:
            return None
        return ActiveJob(
            job_id=data["job_id"],
            scheduler=data["scheduler"],
            folder=Path(data["folder"]),
            name=data["name"],
            outputs=tuple(data["outputs"]),
            notes=Path(data["notes"]),
            successors=tuple((job_id, Path(folder)) for job_id, folder in data["successors"]),
        )

    def all(self) -> dict[Path, ActiveJob]:
        """Every job on its way, whoever submitted it, by its file."""
        files = [file for file in self.folder.glob("*") if not file.suffix]
        return {file: job for file in files if (job := self.find(file))}
