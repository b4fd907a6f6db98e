"""One line per allocation in a run's `segments.jsonl`: what held it, when, which steps, and why it ended.

An allocation that ends without a word leaves its note, and whoever finds that (the next one, or the controller) writes
the line.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobs import warning
from jobs.failure import tail, telling_line
from jobs.scheduler.contract import Scheduler
from jobs.shell import run
from jobs.state import State

LOG = Path("logs", "train.log")
_STEP = re.compile(r'\{"step": (\d+),')
EARLY_S, SLACK_S = 60.0, 40.0
"""Slurm may send its warning up to 60 s early (sbatch(1), --signal); the rest is how late our own clock began, and how
late a signal may be seen."""
LOG_WAIT_S, LOG_POLL_S = 2.0, 0.1
"""What the ranks said last reaches the log through a pipe, a moment later."""
_KINDS = {
    "no space": re.compile(r"No space left on device|Disk quota exceeded"),
    "out of memory": re.compile(r"out of memory|oom[-_ ]?kill|OutOfMemory", re.IGNORECASE),
}
_NODE_FAILURE = re.compile(r"^(?:srun: error: (?=Node failure on )|pdsh@\S+: (?=.+ exit code 255$))(.+)", re.MULTILINE)
"""srun says so before it ends the ranks elsewhere, whose deaths it then tells of. 255 is ssh's own code, for a node
that it does not reach, or not any more."""
_LOST = {
    State.TIMEOUT: ("walltime", "ran into the end of its walltime before it had saved"),
    State.PREEMPTED: ("preemption", "preempted before it had saved"),
    State.NODE_FAIL: ("node failure", "lost a node"),
    State.OUT_OF_MEMORY: ("out of memory", "killed for want of memory"),
    State.CANCELLED: ("cancelled", "cancelled before it had saved"),
}
_SILENT = ("unknown", "ended without a word: killed, or its node was lost")


def now() -> str:
    """UTC time to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class End:
    """How an allocation ended."""

    code: int | None
    """Exit code of its launch; None where there was none to say it."""
    kind: str
    """finished, saved, walltime, preemption, cancelled, node failure, unfit nodes, out of memory, no space, killed,
    crash or unknown."""
    cause: str
    """The same for people, with what the run itself said."""


@dataclass(frozen=True)
class Held:
    """An allocation that holds a run, from the moment its launch begins."""

    job_id: str | None
    restart: int
    nodes: str
    start: str
    scheduler: str = ""
    """Its name and, where it says so, the cluster's: ids mean nothing elsewhere."""

    def finish(self, run_dir: Path, end: End) -> None:
        """Appends the allocation's line, and takes its note away; a copy believed dead has its line already."""
        if left(run_dir) != self:
            return
        first_step, last_step = steps(run_dir)
        line = {**asdict(self), "end": now(), "first_step": first_step, "last_step": last_step}
        line |= {"exit_code": end.code, "kind": end.kind, "cause": end.cause}
        with (run_dir / "segments.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        _note(run_dir).unlink(missing_ok=True)


def begin(run_dir: Path, scheduler: Scheduler, environ: Mapping[str, str]) -> Held:
    """Notes that an allocation holds the run; a run directory that is not there yet is made.

    One before it that left its note is written down as ended without a word, with what the scheduler knows of it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    words = {ours: environ.get(theirs) for ours, theirs in scheduler.environment.items()}
    restart = int(environ.get(warning.RESTART_VARIABLE, 0))
    job_id = environ.get(warning.ID_VARIABLE) or words.get("job_id")
    where = " ".join(filter(None, (scheduler.name, words.get("cluster"))))
    held = Held(job_id, restart, words.get("nodes") or os.uname().nodename, now(), where)
    if before := left(run_dir):
        before.finish(run_dir, lost(_last_state(scheduler, before, held)))
    draft = run_dir / ".allocation.tmp"
    draft.write_text(json.dumps(asdict(held)))
    draft.replace(_note(run_dir))
    return held


def left(run_dir: Path) -> Held | None:
    """The allocation that holds the run, or that ended without a word."""
    try:
        return Held(**json.loads(_note(run_dir).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _note(run_dir: Path) -> Path:
    return run_dir / ".allocation.json"


def lost(state: State | None) -> End:
    """The end of an allocation that said nothing, from what the scheduler calls it."""
    return End(None, *_LOST.get(state or State.UNKNOWN, _SILENT))


def _last_state(scheduler: Scheduler, before: Held, held: Held) -> State | None:
    """How the allocation before ours ended, where the scheduler keeps that and can be asked from here.

    None also where its record says that it was queued again: those before it are about other allocations.
    """
    if before.job_id is None or before.scheduler != held.scheduler:
        return None
    if scheduler.batch is None or scheduler.batch.ends is None:
        return None
    argv, parse = scheduler.batch.ends
    done = run(argv(before.job_id), timeout_s=10)
    states = parse(done.stdout) if done.code == 0 else []
    # The last record of our own job is ours, once it runs there: Slurm 22.05 takes over that of a lost node.
    ended = states[:-1] if before.job_id == held.job_id and states[-1:] == [State.RUNNING] else states
    return ended[-1] if ended and not ended[-1].is_active else None


def ending(scheduler: Scheduler, job_id: str | None) -> State:
    """Whether the scheduler, where it can be asked, ends a running job in favour of another, or for a lost node."""
    if job_id is None or scheduler.batch is None:
        return State.UNKNOWN
    for argv, parse in scheduler.batch.ending:
        done = run(argv(job_id), timeout_s=10)
        if done.code == 0 and (state := parse(done.stdout)) in (State.PREEMPTED, State.NODE_FAIL):
            return state
    return State.UNKNOWN


def warned(code: int, signals: list[str], left_s: float, signal_delay_s: int, ask: Callable[[], State]) -> End:
    """The end of a launch that finished, or that `signals` ended, the first `left_s` before the walltime's end.

    The warning that was asked for comes at its time, and at another from who preempts; a site that preempts without it,
    or that lost the node of the batch script, ends a job as who cancels it does. Then `ask` tells, as `ending`.
    """
    if code == 0:
        return End(code, "finished", "finished")
    if not signals:
        # Slurm's TERM goes to the ranks themselves; whether it was one, only Slurm knows.
        return End(code, _LOST.get(ask(), ("saved",))[0], "saved")
    is_warning = signals[0] not in ("SIGTERM", "SIGINT")
    first_s, last_s = (signal_delay_s + EARLY_S, signal_delay_s) if is_warning else (0.0, float("-inf"))
    is_due = last_s - SLACK_S <= left_s <= first_s + SLACK_S
    otherwise = "walltime" if is_due else "cancelled"
    kind = "preemption" if is_warning and not is_due else _LOST.get(ask(), (otherwise,))[0]
    saved = code == warning.SAVED
    return End(code, kind, f"saved after {signals[0]}" if saved else f"ended by {signals[0]} before it had saved")


def log_size(run_dir: Path | None) -> int:
    """Bytes in a run's log by now: what comes behind them is of the allocation that begins."""
    log = run_dir / LOG if run_dir else None
    return log.stat().st_size if log and log.exists() else 0


def lost_node(run_dir: Path, offset: int) -> str:
    """What srun or pdsh says of a lost node behind `offset` in the run's log; empty where they do not."""
    match = _NODE_FAILURE.search("\n".join(tail(run_dir / LOG, start=offset)))
    return match[1] if match else ""


def failed(code: int, victim: str, run_dir: Path, offset: int) -> End:
    """The end of a launch that failed; `victim`: which rank was killed first; the log tells more, behind `offset`."""
    log, deadline_s = run_dir / LOG, time.monotonic() + LOG_WAIT_S
    while not (said := telling_line(tail(log, start=offset))) and log.exists() and time.monotonic() < deadline_s:
        time.sleep(LOG_POLL_S)
    if cause := lost_node(run_dir, offset):
        return End(code, "node failure", cause)
    kind = next((kind for kind, pattern in _KINDS.items() if pattern.search(said)), "killed" if victim else "crash")
    what = victim or (f"killed by signal {code - 128}" if code > 128 else f"failed with exit code {code}")
    return End(code, kind, f"{what}: {said}" if said and not (victim and kind == "killed") else what)


def steps(run_dir: Path) -> tuple[int | None, int | None]:
    """First and last step of the training that just ended here; None where it did not come to that.

    The trainer leaves its first step's number in segment.json, which is taken away, and each step in metrics.jsonl.
    """
    try:
        first = int(json.loads((run_dir / "segment.json").read_text())["first_step"])
        (run_dir / "segment.json").unlink()
    except (OSError, ValueError, KeyError):
        return None, None
    numbers = [int(match[1]) for line in tail(run_dir / "metrics.jsonl") if (match := _STEP.match(line))]
    return (first, numbers[-1]) if numbers and numbers[-1] >= first else (None, None)
