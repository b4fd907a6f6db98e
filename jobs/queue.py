"""The jobs of one controller: submitted, adopted, asked after with few calls, ended with one clear line."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import executor
from jobs.allocation import Allocation
from jobs.controller import ActiveJob, ActiveJobs, Lock
from jobs.errors import UserError
from jobs.failure import error_line
from jobs.site import Site
from jobs.spec import JobSpec
from jobs.state import State

CONFIRMATIONS = 2
"""Answers that must agree that a job without a result ended: shared files lag, and so does a requeue."""
MAX_UNKNOWN = 30
"""Answers without a word about a job before it is given up."""
MIN_INTERVAL_S = 2.0


@dataclass
class QueuedJob:
    """A job on its way."""

    handle: Any
    """submitit's job."""
    key: Path
    state: State = State.UNKNOWN
    num_ended: int = 0
    num_unknown: int = 0

    @property
    def job_id(self) -> str:
        return str(self.handle.job_id)

    @property
    def logs(self) -> list[Path]:
        return [path for path in (self.handle.paths.stderr, self.handle.paths.stdout) if path.exists()]


class Queue:
    """All jobs of one controller on one site. Holds the folder's lock while it lives."""

    def __init__(self, site: Site, folder: Path, interval_s: float) -> None:
        """`interval_s`: how often the scheduler may be asked. Raises UserError if the folder has a controller."""
        self.site, self.folder, self.interval_s = site, folder, interval_s
        self.lock = Lock(folder)
        self.active = ActiveJobs(folder / "active")
        self.asked_s = float("-inf")

    def submit(self, spec: JobSpec, outputs: Sequence[str], command: list[str], cwd: Path) -> QueuedJob:
        """Submits a command. Raises UserError when the scheduler refuses."""
        key = self.active.key(spec.name, outputs)
        notes = self.folder / "allocations" / uuid.uuid4().hex
        site = self.site
        allocation = Allocation(command, cwd, site.scheduler, site.grace_s, site.max_restarts, notes)
        folder = self.folder / spec.name / "%j"
        handle = executor.submit(site, folder, spec, allocation)
        self.active.add(key, ActiveJob(handle.job_id, site.scheduler, folder, spec.name, tuple(outputs)))
        return QueuedJob(handle, key)

    def adopt(self, name: str, outputs: Sequence[str]) -> QueuedJob | None:
        """The same job if an earlier controller submitted it and it has not ended.

        Raises UserError while the scheduler does not answer: the job may run still, and must not run twice.
        """
        key = self.active.key(name, outputs)
        found = self.active.find(key)
        if found is None:
            return None
        job = QueuedJob(executor.attach(self.site.scheduler, found.folder, found.job_id), key)
        if not self._ask([job]):
            raise UserError(
                f"{self.site.scheduler} does not say whether job {found.job_id} still runs; try again later"
            )
        if job.state in (State.PENDING, State.RUNNING):
            return job
        key.unlink()
        return None

    def refresh(self, jobs: Sequence[QueuedJob]) -> None:
        """Asks the scheduler about all jobs at once: when due, or sooner when one of them left an error."""
        waited_s = time.monotonic() - self.asked_s
        wait_s = MIN_INTERVAL_S if any(executor.read_result(job.handle) for job in jobs) else self.interval_s
        if jobs and waited_s >= wait_s:
            self._ask(jobs)

    def _ask(self, jobs: Sequence[QueuedJob]) -> bool:
        """False, and nothing is changed, when the scheduler does not answer."""
        self.asked_s = time.monotonic()
        states = executor.ask(self.site.scheduler, [job.handle for job in jobs])
        if states is None:
            return False
        for job in jobs:
            job.state = states[job.job_id]
            job.num_ended = 0 if job.state.is_active else job.num_ended + 1
            job.num_unknown = job.num_unknown + 1 if job.state is State.UNKNOWN else 0
        return True

    def end(self, job: QueuedJob, logs: Sequence[Path]) -> str | None:
        """None while the job may still do something, "" after success, else one line that says what went wrong.

        An error result alone is no end: the scheduler may have killed the command and queued the job again.
        """
        result = executor.read_result(job.handle)
        confirmed = job.num_ended >= (1 if result else CONFIRMATIONS)
        if result != "" and not confirmed and job.num_unknown < MAX_UNKNOWN:
            return None
        job.key.unlink(missing_ok=True)
        if result == "":
            return ""
        how = result.rpartition("PayloadError: ")[2] if result else f"{job.state.value}, no result"
        why = error_line([*job.logs, *logs])
        return f"job {job.job_id} failed ({how})" + (f": {why}" if why else "")

    def cancel(self, jobs: Sequence[QueuedJob]) -> None:
        """Cancels all of them; none is left to adopt."""
        if jobs:
            executor.cancel(self.site.scheduler, [job.handle for job in jobs])
        for job in jobs:
            job.key.unlink(missing_ok=True)

    def close(self) -> None:
        self.lock.release()
