"""What runs first in an allocation: a job's command, its warnings, and its way back into the queue."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from jobs import warning
from jobs.errors import PayloadError
from jobs.scheduler import SCHEDULERS
from jobs.scheduler.contract import RESTART_VARIABLE
from jobs.shell import Process, exit_code, run, start

POLL_S = 0.2
LATE_SIGNAL_S = 1.0
"""A scheduler that ends a job signals all its processes; the command may be seen dead before our own TERM arrives."""
REQUEUE_ATTEMPTS, REQUEUE_WAIT_S = 6, 5.0


@dataclass
class Allocation:
    """Callable that submitit pickles: runs `command` and returns 0, or raises PayloadError for an end that is final.

    A warning (USR2) goes to the `jobs launch` processes inside. When the command ends because they saved (exit 85),
    the job is requeued under its own id. When the scheduler ends the job (TERM), no result is written: whether it comes
    back is the scheduler's to say.
    """

    command: list[str]
    cwd: Path
    scheduler: str
    grace_s: int
    max_restarts: int
    folder: Path
    """Where this job's processes leave notes; private to the job."""
    was_warned: bool = False
    ending: str = ""
    warned: set[int] = field(default_factory=set)

    def __call__(self) -> int:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        batch = SCHEDULERS[self.scheduler].batch
        for restart in range(self._restarts(), self.max_restarts + 1):
            code = self._run_command()
            if code == 0:
                return 0
            if warning.read_outcome(self.folder) != warning.SAVED:
                raise PayloadError(f"exit code {code}")
            print(f"jobs: state saved, runs again (restart {restart + 1})", file=sys.stderr, flush=True)
            if batch is not None and restart < self.max_restarts:
                self._requeue()
        raise PayloadError(f"saved, but already restarted {self.max_restarts} times (requeue.max_restarts of the site)")

    def _restarts(self) -> int:
        """How often this job was started before: the scheduler says, or where it does not, our own count."""
        told = os.environ.get(SCHEDULERS[self.scheduler].environment.get("restart_count", ""))
        if told is None and self._count_file.exists():
            told = self._count_file.read_text()
        return int(told or 0)

    @property
    def _count_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.restarts")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        print(f"jobs: received {name}", file=sys.stderr, flush=True)
        if number == signal.SIGUSR2:
            self.was_warned = True
        else:
            self.ending = name

    def _run_command(self) -> int:
        """Runs the command once; does not return when the scheduler ends the job."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        self.warned.clear()
        self.was_warned = False
        environ = {**os.environ, warning.VARIABLE: str(self.folder), RESTART_VARIABLE: str(self._restarts())}
        process = start(self.command, environ, cwd=self.cwd, new_session=True)
        while (code := process.poll()) is None:
            self._warn_launches()
            if self.ending:
                self._end(process)
            time.sleep(POLL_S)
        self._leave_if_ending(LATE_SIGNAL_S if code else 0)
        return exit_code(code)

    def _warn_launches(self) -> None:
        """Passes the warning on, also to launches that begin after it came."""
        if self.was_warned:
            for pid in set(warning.launches(self.folder)) - self.warned:
                self.warned.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)

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
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + signal.Signals[self.ending])  # not sys.exit: submitit would write an error result

    def _requeue(self) -> None:
        """Asks for the same job again, then waits to be ended; raises PayloadError if the scheduler refuses."""
        scheduler = SCHEDULERS[self.scheduler]
        if scheduler.batch is None or scheduler.batch.requeue is None:
            raise PayloadError(f"saved, but {scheduler.name} cannot requeue")
        argv = scheduler.batch.requeue(os.environ[scheduler.environment["job_id"]])
        self._count_file.write_text(str(self._restarts() + 1))
        for _ in range(REQUEUE_ATTEMPTS):
            done = run(argv)
            self._leave_if_ending(120 if done.code == 0 else REQUEUE_WAIT_S)
        raise PayloadError(f"saved, but not requeued: {' '.join(argv)}: {done.stderr.strip()}")
