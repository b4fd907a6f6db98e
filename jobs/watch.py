"""What `jobs status`, `logs` and `cancel` know: run directories, jobs on their way, and what the scheduler says."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs import executor
from jobs.controller import ACTIVE, ActiveJob, ActiveJobs
from jobs.errors import UserError
from jobs.inquiry import Place
from jobs.ranks import log_file
from jobs.runs import SUMMARY, Progress, find_runs, read_progress
from jobs.scheduler.contract import Status
from jobs.segments import LOG
from jobs.state import State
from jobs.warning import write_verdict

FOLLOW_POLL_S = 0.5
PART = 1 << 20
"""Characters of a log at a time: some are larger than a login node's memory."""
LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class Row:
    """A run, or a job that is none (then `progress` is None)."""

    name: str
    state: str
    """For people; of a job on its way what the scheduler calls it."""
    job_id: str
    progress: Progress | None
    status: Status | None = None
    """What the scheduler says of its job; None where there is none, or no answer."""
    place: Place | None = None
    """In the queue, while it waits there."""


def overview(folders: Sequence[Path], state_folder: Path) -> list[Row]:
    """Every run below `folders` and every other job on its way.

    One call to the scheduler, however many there are, and two more where some of them wait. `state_folder` is the
    executor's (.snakemake/submitit). Raises UserError when a folder is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name the results of a workflow, or a run directory")
    active = list(ActiveJobs(state_folder / ACTIVE).all().values())
    said = _ask(active)
    by_run = {run_of(job): job for job in active if run_of(job) is not None}
    runs = {*find_runs(folders), *(run for run in by_run if run is not None)}
    rows = [_run_row(run, by_run.get(run), said) for run in sorted(runs)]
    return rows + [replace(said[job.job_id], name=job.name) for job in active if run_of(job) is None]


def run_of(job: ActiveJob) -> Path | None:
    """The run directory that a job trains, None for jobs of other rules."""
    return next((Path(output).parent for output in job.outputs if Path(output).name == SUMMARY), None)


def _ask(active: Sequence[ActiveJob]) -> dict[str, Row]:
    """What is known of each job, by its id."""
    rows: dict[str, Row] = {}
    for scheduler, group in itertools.groupby(sorted(active, key=_scheduler), key=_scheduler):
        jobs = [executor.attach(scheduler, job.folder, job.job_id) for job in group]
        said = executor.ask(scheduler, jobs)
        waits = said is not None and any(status.state is State.PENDING for status in said.values())
        places = executor.places(scheduler) if waits else {}
        for job_id in (job.job_id for job in jobs):
            status = said[job_id] if said else None
            state = status.state.value if status else f"{scheduler} does not answer"
            place = places.get(job_id) if status and status.state is State.PENDING else None  # not of one begun since
            rows[job_id] = Row("", state, job_id, None, status, place)
    return rows


def _scheduler(job: ActiveJob) -> str:
    return job.scheduler


def _run_row(run: Path, job: ActiveJob | None, said: dict[str, Row]) -> Row:
    try:
        progress = read_progress(run)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:  # one damaged file, among many runs
        return Row(str(run), f"unreadable: {error!r}", job.job_id if job else "", None)
    if job and not progress.is_finished:
        return replace(said[job.job_id], name=str(run), progress=progress)
    if progress.is_finished:
        state = "finished"
    elif _is_locked(run / "lock"):
        state = "running"
    else:
        state = f"stopped: {progress.cause}" if progress.cause else "stopped"
    return Row(str(run), state, job.job_id if job else "", progress)


def _is_locked(file: Path) -> bool:
    """Whether a process of this machine holds the lock that the training rule takes."""
    try:
        inode = file.stat().st_ino
        return any(line.split()[5].endswith(f":{inode}") for line in LOCKS.read_text().splitlines())
    except OSError:
        return False


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Rows as a person reads them; the first is the heading."""
    heading = ["run or job", "state", "job", "step", "loss", "tokens/s", "MFU", "ETA", "last save", "segments"]
    return [heading, *(_cells(row) for row in rows)]


def _cells(row: Row) -> list[str]:
    at = row.progress
    if at is None:
        return [row.name, _state(row), row.job_id, *[""] * 7]
    saved = "" if at.saved_step is None else f"{at.saved_step} ({_duration(at.saved_ago_s)} ago)"
    return [
        row.name,
        _state(row),
        row.job_id,
        f"{at.step or 0}/{at.steps}" if at.steps else "",
        "" if at.loss is None else f"{at.loss:.4f}",
        "" if at.tokens_per_s is None else f"{at.tokens_per_s:,.0f}",
        "" if at.mfu is None else f"{at.mfu:.1%}",
        _duration(at.eta_s),
        saved,
        str(at.segments),
    ]


def _state(row: Row) -> str:
    """`pending, 3 of 17 in batch: Priority, starts 2026-11-21T10:00:00`, as much of it as is known."""
    place = f", {row.place.position} of {row.place.length}" if row.place else ""
    queue = f" in {row.place.name}" if row.place and row.place.name else ""
    why = [row.status.reason, f"starts {row.status.start}" if row.status.start else ""] if row.status else []
    return f"{row.state}{place}{queue}" + (": " if any(why) else "") + ", ".join(filter(None, why))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}:{minutes:02}" if days else f"{hours}:{minutes:02}:{rest:02}"


def record(row: Row) -> dict[str, Any]:
    """A row for --json: everything that is known, under the names of its fields."""
    progress = asdict(row.progress) if row.progress else {}
    progress.pop("folder", None)
    waits = {"reason": row.status.reason, "estimated_start": row.status.start} if row.status else {}
    waits |= {f"queue_{key}": value for key, value in asdict(row.place).items()} if row.place else {}
    known = {"name": row.name, "state": row.state, "job_id": row.job_id, **waits}
    # JSON has no NaN, which the loss of a run may be
    return {key: None if value == "" or value != value else value for key, value in (known | progress).items()}


def find_run(name: str, results: Path) -> Path:
    """A run directory by its path, or by its name below `results`. Raises UserError unless it is one."""
    if Path(name).is_dir():
        return Path(name)
    found = sorted(path for path in results.glob(f"*/runs/{name}") if path.is_dir())
    if len(found) != 1:
        known = sorted(path.name for path in results.glob("*/runs/*"))
        what = f"is {len(found)} runs: {', '.join(map(str, found))}" if found else f"no such run below {results}"
        others = f", or one of {', '.join(known)}" if known and not found else ""
        raise UserError(f"{name}: {what}; name its folder{others}")
    return found[0]


def log_text(run: Path, follow: bool, rank: int | None = None) -> Iterator[str]:
    """The training log of a run, or what one rank said; then, with `follow`, what is added to it.

    Raises UserError if there is none.
    """
    file = run / LOG if rank is None else log_file((run / LOG).parent, rank)
    if not file.is_file():
        known = sorted(int(one.stem.removeprefix("rank_")) for one in file.parent.glob("rank_[0-9]*.log"))
        why = f"ranks 0 to {known[-1]} have logs" if known and rank is not None else "training has not begun"
        raise UserError(f"{file}: no such file; {why}")
    with file.open(errors="replace") as stream:
        while (added := stream.read(PART)) or follow:
            if added:
                yield added
            else:
                time.sleep(FOLLOW_POLL_S)


def cancel(runs: Sequence[Path], state_folder: Path) -> list[ActiveJob]:
    """Cancels the training jobs of some runs, which save first; returns them.

    Raises UserError if a run has none, or if the scheduler does not take it.
    """
    active = ActiveJobs(state_folder / ACTIVE).all().values()
    by_run = {run.resolve(): job for job in active if (run := run_of(job))}
    missing = [str(run) for run in runs if run.resolve() not in by_run]
    if missing:
        raise UserError(f"{', '.join(missing)}: no job on its way in {state_folder}; see `jobs status`")
    jobs = [by_run[run.resolve()] for run in runs]
    for scheduler, group in itertools.groupby(sorted(jobs, key=_scheduler), key=_scheduler):
        chains = [reversed(job.chain) for job in group]  # successors first, or they would start
        handles = [executor.attach(scheduler, folder, job_id) for chain in chains for job_id, folder in chain]
        if why_not := executor.cancel(scheduler, handles):
            raise UserError(f"{scheduler}: not cancelled: {', '.join(one.job_id for one in handles)}: {why_not}")
    for job in jobs:
        write_verdict(job.notes, "cancelled")  # for what its controller may submit anew
    return jobs
