"""The jobs that an earlier controller left: those that run still are gone on with, and never submitted again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import executor
from jobs.controller import ActiveJob, ActiveJobs
from jobs.errors import UserError
from jobs.state import State

PATIENCE_S, WAIT_S = 300.0, 5.0
"""How long the scheduler may be silent about them, and how often it is asked."""
UNKNOWN_S = 75.0
"""How long it is asked again where it answers, but knows nothing of one of them: that may be a fault of its own."""


@dataclass(frozen=True)
class Adopted:
    """A job that an earlier controller submitted and that has not ended."""

    notes: Path
    handles: list[Any]
    """submitit's jobs: its own, then those of its successors, in order."""


class Adoption:
    """Of the jobs in a controller's folder, each at most once; the scheduler is asked about all of them at once."""

    def __init__(self, scheduler: str, active: ActiveJobs) -> None:
        self.scheduler, self.active = scheduler, active
        self.left: dict[str, ActiveJob] | None = None
        self.states: dict[str, dict[str, State]] = {}
        """Of the jobs of each scheduler that was asked, by id."""

    def find(self, key: str) -> Adopted | None:
        """The job of a key; None if there was none, or if it ended: then it is forgotten.

        Raises UserError for one that another scheduler runs, and while the scheduler does not answer: the job may run
        still, and must not run twice.
        """
        if self.left is None:
            self.left = self.active.all()
        if key not in self.left:
            return None
        job = self.left[key]
        if job.scheduler not in self.states:
            self.states[job.scheduler] = self._ask(job.scheduler)
        states = self.states[job.scheduler]
        alive = [one for one in job.chain if states.get(one[0]) in (State.PENDING, State.RUNNING)]
        if alive and job.scheduler != self.scheduler:
            raise UserError(f"{job.scheduler} job {alive[0][0]} is at it: go on with its site, or end that job first")
        del self.left[key]
        if not alive:
            self.active.remove(key)
            return None
        handles = [executor.attach(self.scheduler, folder, job_id) for job_id, folder in alive]
        return Adopted(job.notes, handles)

    def _ask(self, scheduler: str) -> dict[str, State]:
        chains = [job.chain for job in (self.left or {}).values() if job.scheduler == scheduler]
        handles = [executor.attach(scheduler, folder, job_id) for chain in chains for job_id, folder in chain]
        is_ours = scheduler == self.scheduler  # of another there may be no trace on this machine
        patience_s, advice = (PATIENCE_S, "try again later") if is_ours else (0.0, f"go on where {scheduler} is")
        began_s = time.monotonic()
        while True:
            said, waited_s = executor.ask(scheduler, handles), time.monotonic() - began_s
            if said is None and waited_s > patience_s:
                ids = ", ".join(handle.job_id for handle in handles)
                raise UserError(f"{scheduler} does not say whether job {ids} still runs; {advice}")
            if said is not None:
                silent = [one for one in handles if said[one.job_id].state is State.UNKNOWN]
                if waited_s > UNKNOWN_S or all(executor.read_result(one) is not None for one in silent):
                    return {job_id: status.state for job_id, status in said.items()}
            time.sleep(WAIT_S)
