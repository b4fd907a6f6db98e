"""The jobs of one controller: submitted, adopted, asked after with few calls, ended with one clear line."""

from __future__ import annotations

import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import executor, segments
from jobs.adoption import Adoption
from jobs.allocation import Allocation
from jobs.controller import ACTIVE, ActiveJob, ActiveJobs, Lock
from jobs.errors import RefusalError, UserError
from jobs.failure import error_line
from jobs.restarts import Restarts
from jobs.scheduler.contract import NOTHING
from jobs.site import Site
from jobs.spec import JobSpec
from jobs.state import State
from jobs.warning import SAVED, excluded, include_all, runs_of

CONFIRMATIONS = 2
"""Answers that must agree that a job without a result ended: shared files lag, and so does a requeue."""
UNKNOWN_S = 600.0
"""How long answers may say nothing of a job before it is given up."""
MIN_INTERVAL_S, MAX_INTERVAL_S = 2.0, 60.0
BACKOFF = 1.5
"""By how much longer the next question waits after an answer by which no job is lost."""
FIRST_WAIT_S, LONGEST_WAIT_S, GROWTH = 60.0, 600.0, 10
"""How long it waits between allocations that never begin: a node that was lost may be back by then."""
LOST = (State.TIMEOUT, State.NODE_FAIL, State.PREEMPTED)
"""Ends that are the machine's doing: the job is submitted anew until it gets nowhere."""


@dataclass(frozen=True)
class Submission:
    """What is submitted, as often as it takes."""

    spec: JobSpec
    outputs: tuple[str, ...]
    command: list[str]
    cwd: Path
    num_successors: int = 0
    """Jobs that wait behind it and go on where it ends."""

    @property
    def key(self) -> str:
        return ActiveJobs.key(self.spec.name, self.outputs)


@dataclass
class QueuedJob:
    """A job on its way."""

    submission: Submission
    restarts: Restarts
    handles: list[Any]
    """submitit's jobs: the one it is now, then those that wait for its end, in order."""

    def __post_init__(self) -> None:
        self.take(self.handles)

    def take(self, handles: list[Any]) -> None:
        """Goes on as others of submitit's jobs, of which nothing is known yet."""
        self.handles, self.handle = handles, handles[0]
        result_file = self.handle.paths.result_pickle
        self.folder, self.result_name = result_file.parent, result_file.name
        self.status = NOTHING
        self.result: int | str | None = None
        """What it returned, or raised, as of the last look."""
        self.num_ended = 0
        """Answers in a row by which it has ended."""
        self.known_s = time.monotonic()
        """When an answer last knew it."""
        self.due_s = 0.0
        """When it is tried again, as its last allocation was refused or never began; 0: that is not the case."""

    @property
    def notes(self) -> Path:
        """What its allocations tell each other is in this folder and beside it."""
        return self.restarts.notes

    @property
    def job_id(self) -> str:
        return str(self.handle.job_id)

    @property
    def logs(self) -> list[Path]:
        return [path for path in (self.handle.paths.stderr, self.handle.paths.stdout) if path.exists()]


class Queue:
    """All jobs of one controller on one site. Holds the folder's lock while it lives."""

    def __init__(self, site: Site, folder: Path, interval_s: float) -> None:
        """`interval_s`: how often the scheduler may be asked while a job may be lost, down to once in MAX_INTERVAL_S.

        Raises UserError if the folder has a controller, or a name that submitit or Slurm would not leave as it is.
        """
        if pattern := re.search(r"%[Ajat]|\\", str(folder)):
            raise UserError(f"{folder}: to submitit or Slurm {pattern[0]} in a name is no part of it; work elsewhere")
        self.site, self.folder, self.interval_s = site, folder, interval_s
        self.has_arrays = executor.has_arrays(site.scheduler)
        self.lock = Lock(folder)
        self.active = ActiveJobs(folder / ACTIVE)
        self.active.compact()
        self.asked_s, self.wait_s = float("-inf"), interval_s
        self.adoption = Adoption(site.scheduler, self.active)

    def submit(self, submissions: Sequence[Submission]) -> list[QueuedJob]:
        """Submits commands with one spec; several, where `has_arrays`, as one job array without successors.

        Raises RefusalError when the scheduler refuses: then it has none of them; UserError when nobody knows.
        """
        spec, first = submissions[0].spec, self.folder / "allocations" / uuid.uuid4().hex
        restarts = [Restarts(Path(f"{first}_{number}"), self.site.max_idle) for number in range(len(submissions))]
        allocations = [self._allocation(s, r.notes) for s, r in zip(submissions, restarts, strict=True)]
        handles = executor.submit_all(self.site, self._new_folder(spec), spec, allocations)
        jobs = [QueuedJob(s, r, [h]) for s, r, h in zip(submissions, restarts, handles, strict=True)]
        self._remember(jobs)
        for job in jobs:
            self._fill_chain(job)
        return jobs

    def _new_folder(self, spec: JobSpec) -> Path:
        return self.folder / spec.name / uuid.uuid4().hex[:8]

    def _fill_chain(self, job: QueuedJob) -> None:
        """Queues what is missing behind a job; a scheduler that takes no more of them is asked again later."""
        try:
            while len(job.handles) <= job.submission.num_successors:
                job.handles.append(self._submit(job.submission, job.notes, after=str(job.handles[-1].job_id)))
                self._remember([job])
        except UserError as error:
            print(f"jobs: no successor waits behind job {job.job_id}: {error}", file=sys.stderr, flush=True)

    def _remember(self, jobs: Sequence[QueuedJob]) -> None:
        """For the next controller, should this one die; and there is news to expect."""
        self.wait_s = self.interval_s
        self.active.add({job.submission.key: self._active_job(job) for job in jobs})

    def _active_job(self, job: QueuedJob) -> ActiveJob:
        waiting = tuple((str(one.job_id), one.paths.folder) for one in job.handles[1:])
        spec, outputs = job.submission.spec, job.submission.outputs
        return ActiveJob(job.job_id, self.site.scheduler, job.folder, spec.name, outputs, job.notes, waiting)

    def _allocation(self, submission: Submission, notes: Path) -> Allocation:
        site, spec = self.site, submission.spec
        return Allocation(
            submission.command,
            submission.cwd,
            site.scheduler,
            site.grace_s,
            site.max_idle,
            notes,
            spec.runtime_min,
            executor.own_warning_s(site.scheduler, spec),
            has_successor=submission.num_successors > 0,
        )

    def _submit(self, submission: Submission, notes: Path, after: str | None = None) -> Any:
        site, spec = self.site, replace(submission.spec, after=after)
        allocation, folder = self._allocation(submission, notes), self._new_folder(spec)
        avoid = tuple(excluded(notes, site.health.max_excluded)) if site.health else ()
        try:
            return executor.submit(site, folder, replace(spec, exclude=avoid), allocation)
        except RefusalError:
            if not avoid:
                raise
            return executor.submit(site, folder, spec, allocation)  # too few nodes are left without them

    def adopt(self, submission: Submission) -> QueuedJob | None:
        """The same job if an earlier controller submitted it and it has not ended.

        Raises UserError while the scheduler does not answer: the job may run still, and must not run twice.
        """
        found = self.adoption.find(submission.key)
        return QueuedJob(submission, Restarts(found.notes, self.site.max_idle), found.handles) if found else None

    def refresh(self, jobs: Sequence[QueuedJob]) -> None:
        """Asks the scheduler about all jobs at once, when due, or sooner when one of them left an error; then looks for
        results, by one listing of each folder.
        """
        jobs = [job for job in jobs if not job.due_s]
        wait_s = MIN_INTERVAL_S if any(job.result for job in jobs) else self.wait_s
        if jobs and time.monotonic() >= self.asked_s + wait_s:
            self._ask(jobs)
        folders = {folder for folder in {job.folder for job in jobs} if folder.exists()}
        files = {folder: {file.name for file in os.scandir(folder)} for folder in folders}
        for job in jobs:
            job.result = executor.read_result(job.handle) if job.result_name in files.get(job.folder, ()) else None
        if any(job.num_ended and job.result is None for job in jobs):
            self.wait_s = self.interval_s  # it may be lost; other ends are told by results

    def _ask(self, jobs: Sequence[QueuedJob]) -> None:
        """What the jobs do now; they stay as they are when the scheduler does not answer."""
        self.asked_s = time.monotonic()
        self.wait_s = min(BACKOFF * self.wait_s, max(MAX_INTERVAL_S, self.interval_s))
        if said := executor.ask(self.site.scheduler, [job.handle for job in jobs]):
            for job in jobs:
                job.status = said[job.job_id]
                executor.release(self.site.scheduler, job.handle, job.status)
                job.num_ended = 0 if job.status.state.is_active else job.num_ended + 1
                if job.status.state is not State.UNKNOWN:
                    job.known_s = self.asked_s

    def end(self, job: QueuedJob, logs: Iterable[str]) -> str | None:
        """None while the job may still do something, "" after success, else one line that says what went wrong.

        An error result alone is no end: the scheduler may have killed the command and queued the job again. A job that
        ended through no fault of its own is submitted anew, and is the same job still.
        """
        result = job.result
        if result == 0:
            self._forget(job)
            return ""
        is_over = job.due_s or job.num_ended >= (CONFIRMATIONS if result is None else 1)
        if not is_over and self.asked_s < job.known_s + UNKNOWN_S:
            return None
        self._note_end(job)
        refusal = self._run_on(job) if job.due_s or self._may_run_on(job) else ""
        if refusal is None:
            return None
        self._forget(job)
        silent = f"{job.status.state.value}, no result"
        how = result.rpartition("PayloadError: ")[2] if isinstance(result, str) else silent
        why = refusal or error_line([*job.logs, *map(Path, logs)]) or job.status.reason
        return f"job {job.job_id} failed ({how})" + (f": {why}" if why else "")

    def _may_run_on(self, job: QueuedJob) -> bool:
        """Whether it goes on: it saved, was lost, or died after a save, or before it began where an earlier one had."""
        if job.result is not None:
            return job.result == SAVED
        state, begun = job.status.state, job.restarts.begun()
        if state is State.TIMEOUT and not runs_of(job.notes):
            return False  # what does not save would only time out again
        died = state in (State.FAILED, State.OUT_OF_MEMORY)
        return state in LOST or (died and bool(begun) and (job.restarts.has_progress() or job.job_id not in begun))

    def _note_end(self, job: QueuedJob) -> None:
        """Writes down how the job's last allocation ended, where it could not do so itself."""
        for run in runs_of(job.notes):
            if (held := segments.left(run)) and held.job_id == job.job_id:
                held.finish(run, segments.lost(job.status.state))

    def _forget(self, job: QueuedJob) -> None:
        """Nobody shall adopt it, and none of its successors is wanted."""
        if job.handles[1:]:
            executor.cancel(self.site.scheduler, job.handles[1:])
        self.active.remove(job.submission.key)

    def _run_on(self, job: QueuedJob) -> str | None:
        """The job's successor takes its place, or it is submitted anew; returns why not, once it gets nowhere."""
        if not job.due_s and job.job_id not in job.restarts.begun():
            include_all(job.notes)  # Flux takes a job that has too few nodes left, and fails it later
            return self._miss(job, job.status.reason or job.status.state.value)
        if time.monotonic() < job.due_s:
            return None
        if refusal := job.restarts.refusal():
            return refusal
        old, how = job.job_id, job.status.state.value
        try:
            job.take(job.handles[1:] or [self._submit(job.submission, job.notes)])
        except RefusalError as error:
            return self._miss(job, str(error))
        except UserError as error:
            return f"not submitted anew: {error}"
        self._remember([job])
        self._fill_chain(job)
        print(f"jobs: job {old} ended ({how}) and runs on as job {job.job_id}", file=sys.stderr, flush=True)
        return None

    def _miss(self, job: QueuedJob, why: str) -> str | None:
        """Counts an allocation that did not begin; the next is tried later each time. Returns why there is none."""
        job.restarts.miss(job.job_id)
        if refusal := job.restarts.refusal():
            return f"{refusal}: {why}"
        wait_s = min(FIRST_WAIT_S * GROWTH ** (job.restarts.num_idle() - 1), LONGEST_WAIT_S)
        job.due_s = time.monotonic() + wait_s
        print(f"jobs: job {job.job_id} is tried again in {wait_s:.0f} s: {why}", file=sys.stderr, flush=True)
        return None

    def cancel(self, jobs: Sequence[QueuedJob]) -> None:
        """Cancels all of them; none is left to adopt, unless the scheduler cannot be told."""
        handles = [handle for job in jobs for handle in reversed(job.handles)]
        if jobs and (why_not := executor.cancel(self.site.scheduler, handles)):
            ids = ", ".join(job.job_id for job in jobs)
            print(f"jobs: error: not cancelled: {ids}: {why_not}; the same command adopts them", file=sys.stderr)
            return
        for job in jobs:
            self.active.remove(job.submission.key)

    def close(self) -> None:
        self.lock.release()
