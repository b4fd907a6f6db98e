"""What a scheduler says of jobs: one command for any number of them, and an answer only where there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.scheduler.contract import NOTHING, Batch, Query, Said, Status
from jobs.shell import TIMED_OUT, run
from jobs.state import State


def ask(batch: Batch, job_ids: Sequence[str]) -> dict[str, Status] | None:
    """What is said of each job, UNKNOWN where that is nothing; None when the scheduler does not answer."""
    known: dict[str, Status] = {}
    for i, query in enumerate(batch.queries):
        missing = [job_id for job_id in job_ids if job_id not in known or known[job_id].state is State.UNKNOWN]
        if not missing:
            break
        said = answer(query, missing)
        if said is not None:
            known.update(said)
        elif i == 0:
            return None
    return {job_id: known.get(job_id, NOTHING) for job_id in job_ids}


def answer(query: Query[Said], job_ids: Sequence[str]) -> dict[str, Said] | None:
    """By the query's first way that is answered; a scheduler that is stuck is not asked again. None: by none."""
    for argv in query.argvs:
        done = run(argv(job_ids))
        if query.is_answer(done.code, done.stdout + done.stderr):
            try:
                return query.parse(done.stdout)
            except ValueError:
                continue  # cut off, or from something that stands in the scheduler's place
        if done.code == TIMED_OUT:
            break
    return None


@dataclass(frozen=True)
class Place:
    """Of a waiting job in its queue."""

    position: int
    """1 for the next to start, as far as priorities decide that."""
    length: int
    """Jobs that wait in the same queue."""
    name: str
    """Of the queue; "" where the scheduler has but one."""


def places(batch: Batch) -> dict[str, Place]:
    """Of all jobs that wait, by id; none where the scheduler does not say, or shows each user his own alone.

    A job that may start in several queues, and is listed in each, has its best place.
    """
    done = run(batch.waiting) if batch.waiting else None
    if done is None or done.code != 0 or (batch.hides and batch.hides[1](run(batch.hides[0]).stdout)):
        return {}
    rows = [line.strip().split("|") for line in done.stdout.splitlines()]
    seen: Counter[str] = Counter()
    found: dict[str, tuple[int, str]] = {}
    for job_id, queue in (row for row in rows if len(row) == 2):
        seen[queue] += 1
        found[job_id] = min(found.get(job_id, (seen[queue], queue)), (seen[queue], queue))
    return {job_id: Place(position, seen[queue], queue) for job_id, (position, queue) in found.items()}
