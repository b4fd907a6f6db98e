"""Submit and cancel commands that fail for a while: no job is lost, and none is submitted twice."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import inquiry
from jobs.errors import RefusalError, UserError
from jobs.scheduler.contract import Batch
from jobs.shell import TIMED_OUT, Result, run

PATIENCE_S = 600.0
"""How long a scheduler may be silent before a submission is given up: a restart of its controller takes minutes."""
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 30.0
EMPTY_S = 75.0
"""How long a list without any job is not believed: a command that fails may print nothing, and say that all is well."""
LATE_S = 30.0
"""How long a job is looked for whose submit command got no answer: what it sent may lie unread with the scheduler."""
CANCEL_ATTEMPTS, CANCEL_WAIT_S = 4, 3.0
_ALREADY_OVER = re.compile(
    r"already (?:complet|finish)|invalid job id|no matching job|job is inactive|unknown job id", re.IGNORECASE
)
"""What scancel, bkill and flux cancel say of a job that ended by itself; the other jobs of the line are cancelled."""


def place(batch: Batch, argv: list[str], script: Path) -> str:
    """Submits `script`, whose name no other submission has, and returns the job's id.

    Where the submit command fails on its way, or gives no id, the scheduler may have the job all the same: it is asked
    for the script's name, and only once it has answered that there is no such job is the job submitted again.

    Raises RefusalError with the scheduler's own words when it refuses; UserError when it does not answer for
    PATIENCE_S: then it may have the job.
    """
    deadline_s, wait_s = time.monotonic() + PATIENCE_S, FIRST_WAIT_S
    while True:
        done = run(argv)
        if done.code == 0:
            with contextlib.suppress(UserError):
                return batch.parse_id(done.stdout)
        elif done.code != TIMED_OUT and batch.is_refusal(done.stderr + done.stdout):
            raise RefusalError(_words(argv, done))
        print(f"jobs: not submitted yet: {_words(argv, done)}", file=sys.stderr, flush=True)
        failed_s, may_be_late = time.monotonic(), done.code == TIMED_OUT or "timed out" in _words(argv, done)
        while True:
            if time.monotonic() > deadline_s:
                raise UserError(f"given up after {PATIENCE_S:.0f} s: {_words(argv, done)}")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            listed = inquiry.answer(batch.listing, ())
            if listed is None:
                continue
            if found := next((job_id for job_id, text in listed.items() if script.stem in text), None):
                print(f"jobs: it was: as job {found}", file=sys.stderr, flush=True)
                return found
            patience_s = (LATE_S if may_be_late else 0.0) if listed else EMPTY_S
            if time.monotonic() > failed_s + patience_s:
                break


def cancel(batch: Batch, job_ids: Sequence[str]) -> str:
    """Cancels jobs, trying for a few seconds, but a command that hangs once: somebody waits.

    Returns what the scheduler says if it does not, else nothing.
    """
    for attempt in range(CANCEL_ATTEMPTS):
        if attempt:
            time.sleep(CANCEL_WAIT_S)
        done = run(batch.cancel(job_ids))
        if done.code == 0 or _ALREADY_OVER.search(done.stderr + done.stdout):
            return ""
        if done.code == TIMED_OUT:
            break
    return _words(batch.cancel(job_ids), done)


def _words(argv: Sequence[str], done: Result) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "; ".join(lines) or f"{argv[0]}: exit code {done.code}"
