"""What runs first in an allocation: a job's command, its warnings, and its way back into the queue."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jobs import inquiry, warning
from jobs.errors import PayloadError
from jobs.restarts import Restarts
from jobs.scheduler import SCHEDULERS
from jobs.shell import Process, exit_code, run, start
from jobs.state import State

POLL_S = 0.2
LATE_SIGNAL_S = 1.0
"""A scheduler that ends a job signals all its processes; the command may be seen dead before our own TERM arrives."""
LATE_START_S = 10.0
"""The walltime runs from before our first line: a prolog, a script, Python's start."""
REQUEUE_ATTEMPTS, REQUEUE_WAIT_S = 24, 5.0
"""How often a scheduler is asked to requeue a job, or whether it has, while its commands fail; and how far apart."""


@dataclass
class Allocation:
    """Callable that submitit pickles: runs `command` and returns 0, or raises PayloadError for an end that is final.

    A warning (USR2) goes to the `jobs launch` processes inside. When the command ends because they saved (exit 85), or
    fails after a new checkpoint, the job is requeued under its own id; where it cannot be, 85 is returned, and whoever
    submitted it submits it anew. When the scheduler ends the job (TERM), no result is written: whether it comes
    back is the scheduler's to say.
    """

    command: list[str]
    cwd: Path
    scheduler: str
    grace_s: int
    max_idle: int
    folder: Path
    """Where this job's processes leave notes; private to the job."""
    runtime_min: int
    """The walltime that was asked for."""
    signal_delay_s: int = 0
    """How long before the end of the walltime the job warns itself; 0 where the scheduler does."""
    has_successor: bool = False
    """Whether a job that goes on already waits for the end of this one, which then is not requeued."""
    warned_s: float = 0.0
    """When the warning came, in seconds since 1970; 0: it did not."""
    ending: str = ""
    warned: set[int] = field(default_factory=set)
    end_s: float = 0.0

    def __call__(self) -> int:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if (verdict := warning.read_verdict(self.folder)) is not None:
            return self._leave_to_predecessor(verdict)
        restarts = Restarts(self.folder, self.max_idle)
        self.end_s = time.time() + 60 * self.runtime_min - LATE_START_S
        while True:
            if refusal := restarts.refusal():  # the scheduler itself may start a job again for ever
                self._fail(refusal)
            count = restarts.begin(self._job_id())
            code = self._run_command(count)
            outcome = warning.read_outcome(self.folder)
            if (code and outcome != warning.SAVED and self._is_believed_dead()) or restarts.is_overtaken(count):
                self._leave_to_another()
            if code == 0:
                warning.write_verdict(self.folder, "")
                return 0
            if outcome == warning.UNHEALTHY and SCHEDULERS[self.scheduler].batch is not None:
                return warning.SAVED  # not requeued: the same nodes would be as good as any
            if outcome != warning.SAVED and (outcome in (None, warning.REFUSED) or not restarts.has_progress()):
                self._fail(f"exit code {code}")
            if refusal := restarts.refusal():
                self._fail(refusal)
            why = "state saved" if outcome == warning.SAVED else f"failed (exit code {code}) after a new checkpoint"
            print(f"jobs: {why}, runs again", file=sys.stderr, flush=True)
            if SCHEDULERS[self.scheduler].batch is not None:
                if not self.has_successor:
                    self._requeue(restarts, count)
                return warning.SAVED

    def _fail(self, why: str) -> NoReturn:
        """An end that is final, for the jobs that wait for this one too."""
        warning.write_verdict(self.folder, why)
        raise PayloadError(why)

    def _leave_to_predecessor(self, verdict: str) -> int:
        """What this job is there for is settled: nothing is started."""
        print("jobs: an allocation before this one has settled it", file=sys.stderr, flush=True)
        if verdict:
            raise PayloadError(verdict)
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        print(f"jobs: received {name}", file=sys.stderr, flush=True)
        if number == signal.SIGUSR2:
            self.warned_s = time.time()
        else:
            self.ending = name

    def _run_command(self, restart: int) -> int:
        """Runs the command once; does not return when the scheduler ends the job."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        self.warned.clear()
        self.warned_s = 0.0
        words = {warning.RESTART_VARIABLE: str(restart), warning.END_VARIABLE: str(self.end_s)}
        environ = {**os.environ, warning.VARIABLE: str(self.folder), **words}
        process = start(self.command, environ, cwd=self.cwd, new_session=True)
        while (code := process.poll()) is None:
            self._warn_launches()
            if self.ending or _is_abandoned():
                self.ending = self.ending or "SIGTERM"
                self._end(process)
            time.sleep(POLL_S)
        self._leave_if_ending(LATE_SIGNAL_S if code else 0)
        return exit_code(code)

    def _warn_launches(self) -> None:
        """Passes the warning on, also to launches that begin after it came."""
        if self.signal_delay_s and not self.warned_s and time.time() > self.end_s - self.signal_delay_s:
            self.warned_s = time.time()
        if self.warned_s:
            for pid in set(warning.launches(self.folder)) - self.warned:
                self.warned.add(pid)
                warning.warn(self.folder, pid, self.warned_s)

    def _end(self, process: Process) -> None:
        """The job is ended: let launches save, then kill all, then leave.

        INT is a user's Ctrl-C on this machine, who does not wait, or the first of LSF's INT, TERM, KILL.
        """
        may_save = self.ending == "SIGTERM" or SCHEDULERS[self.scheduler].batch is not None
        pids = warning.launches(self.folder) if may_save else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not pids:
            os.killpg(process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + (self.grace_s if pids else 0.5)
        # The shell around a launch may die of the same TERM at once; the launch is not done before its ranks are.
        while (process.poll() is None or warning.launches(self.folder)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._leave_if_ending(0)

    def _leave_if_ending(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while not self.ending and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if self.ending:
            _leave(128 + signal.Signals[self.ending])

    def _is_believed_dead(self) -> bool:
        """Whether the job waits or has ended, though it runs here: the scheduler has lost sight of this node.

        Asked until it knows the job: with its node lost, what would be final here is not the job's end.
        """
        batch = SCHEDULERS[self.scheduler].batch
        if batch is None:
            return False
        for _ in range(REQUEUE_ATTEMPTS):
            said = inquiry.ask(batch, [self._job_id()])
            if said and (state := said[self._job_id()].state) is not State.UNKNOWN:
                return state is not State.RUNNING
            self._leave_if_ending(REQUEUE_WAIT_S)
        return False

    def _leave_to_another(self) -> NoReturn:
        """A copy that is believed dead settles nothing, and asks for nothing: the job goes on elsewhere."""
        print("jobs: the job runs again elsewhere: this copy is believed dead", file=sys.stderr)
        _leave(1)

    def _job_id(self) -> str:
        # An array's last element has the array's own id in Slurm's variable: all elements would run again.
        own = SCHEDULERS[self.scheduler].environment["job_id"]
        return os.environ.get(warning.ID_VARIABLE) or os.environ.get(own, "")

    def _requeue(self, restarts: Restarts, count: int) -> None:
        """Asks for the same job again and waits to be ended; returns if the scheduler cannot or will not."""
        scheduler = SCHEDULERS[self.scheduler]
        assert scheduler.batch is not None
        if scheduler.batch.requeue is None:
            return
        argv = scheduler.batch.requeue(self._job_id())
        for _ in range(REQUEUE_ATTEMPTS):
            if restarts.is_overtaken(count):
                self._leave_to_another()
            done = run(argv)
            self._leave_if_ending(120 if done.code == 0 else REQUEUE_WAIT_S)
        print(f"jobs: not requeued: {' '.join(argv)}: {done.stderr.strip()}", file=sys.stderr, flush=True)


def _is_abandoned() -> bool:
    """Whether nobody reads what we say any more: the Flux broker above was killed, and sends no signal.

    Snakemake would fail to say how its job ended, and wait for ever.
    """
    poller = select.poll()
    poller.register(sys.stderr.fileno(), 0)
    return bool(poller.poll(0))


def _leave(code: int) -> NoReturn:
    """Ends this process without a result, as sys.exit would not: submitit would write an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
