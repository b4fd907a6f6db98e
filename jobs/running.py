"""A launcher that runs: the signals on their way to its ranks, and how they ended."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from jobs import runs, segments, warning
from jobs.launch.contract import Launcher
from jobs.ranks import code_file, failed_file, signal_file, started_file, write_environment
from jobs.shell import exit_code, run, start
from jobs.spec import Launch
from jobs.state import State

POLL_S = 0.1
LINGER_S = 2.0
"""How long a launcher may outlive ranks that were told to save, or of which one failed; and how often it is looked."""
SAVE_POLL_S, SLACK_S = 2.0, 15.0
"""How often the time that a save takes is looked up, and what is added to it."""
ATTEMPTS = 3
"""How often a launcher is started that gets no rank to begin: the scheduler may be away, which srun asks."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def attempts(is_back: Callable[[], object]) -> Iterator[int]:
    """Numbers the attempts: the first is made at once, each further one when the scheduler `is_back`, or none."""
    for number in range(ATTEMPTS):
        if number and not is_back():
            return
        yield number


class Running:
    """A launcher, and the signals that wait until its ranks can take them."""

    def __init__(
        self,
        launcher: Launcher,
        launch: Launch,
        environ: Mapping[str, str],
        run_dir: Path | None,
        signal_delay_s: int,
        is_back: Callable[[Callable[[], object]], bool],
    ) -> None:
        """`run_dir`: of the run that is trained; the time that it takes to save is known from there. `is_back`: waits
        until the scheduler answers, or what it is given says that all is over; says whether it does."""
        self.launcher, self.launch, self.folder, self.environ = launcher, launch, launch.folder, environ
        self.is_back = is_back
        self.world_size, self.lingers = launch.world_size, False
        self.run_dir, self.signal_delay_s = run_dir, signal_delay_s
        self.end_s = float(environ.get(warning.END_VARIABLE, "inf"))
        self.log_size = segments.log_size(run_dir)
        self.looked_s = self.counted_s = time.monotonic()
        self.signals: list[str] = []
        self.left_s = float("inf")
        """Of the walltime, when the first signal came."""
        self.num_forwarded = 0
        for number in FORWARDED:
            signal.signal(number, self.on_signal)
        if not launcher.keeps_environment:
            write_environment(launch, environ)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.signals:
            # The job passes its warning on to launches that begin after it came.
            passed_on_s = warning.warned_s(self.environ) if number == signal.SIGUSR2 else None
            self.left_s = self.end_s - (passed_on_s or time.time())
        self.signals.append(signal.Signals(number).name)

    def was_ended(self, code: int) -> bool:
        """Whether `code` is a death by a signal that was passed on: the ranks had no handler for it yet.

        Or by KILL, which follows TERM: Flux ends the launcher so, while its ranks still save.
        """
        passed_on = [128 + signal.Signals[_passed_on(name)] for name in self.signals[: self.num_forwarded]]
        return code in passed_on or (code == 128 + signal.SIGKILL and signal.SIGTERM.name in self.signals)

    def warn_in_time(self) -> None:
        """The scheduler warns a fixed time before the walltime ends; a run that needs longer to save, we do."""
        if self.signals or self.run_dir is None or time.monotonic() < self.looked_s + SAVE_POLL_S:
            return
        self.looked_s = time.monotonic()
        needed_s = runs.time_to_save_s(self.run_dir)
        if needed_s is not None and time.time() > self.end_s - needed_s - SLACK_S:
            print(f"jobs: saving takes up to {needed_s:.0f} s, and the walltime ends: ranks save", file=sys.stderr)
            self.left_s = self.signal_delay_s  # it is that warning, come early
            self.signals.append(signal.SIGUSR2.name)

    def end(self, code: int, victim: str, ask: Callable[[], State]) -> segments.End:
        """How an allocation of the run ended whose launch says `code`."""
        assert self.run_dir
        if code not in (0, warning.SAVED) and not self.was_ended(code):
            return segments.failed(code, victim, self.run_dir, self.log_size)
        # Which ends the ranks elsewhere as a cancellation does; they may save in time.
        if code and (cause := segments.lost_node(self.run_dir, self.log_size)):
            return segments.End(code, "node failure", cause)
        return segments.warned(code, self.signals, self.left_s, self.signal_delay_s, ask)

    def forward(self) -> None:
        """srun killed before its step exists would take the warning for its own; so wait for the first rank."""
        if not started_file(self.folder).exists():
            return
        while self.num_forwarded < len(self.signals):
            name = _passed_on(self.signals[self.num_forwarded])
            if self.launcher.forwards_signals:
                self.process.send_signal(signal.Signals[name])
            else:
                with signal_file(self.folder).open("a") as file:
                    file.write(f"{name}\n")
            self.num_forwarded += 1

    def end_launcher(self) -> None:
        """mpirun that ends its ranks sleeps for as long as they might need, also when none is left; srun does not."""
        linger_s = POLL_S if signal.SIGTERM.name in self.signals else LINGER_S  # KILL follows soon
        if self.launcher.forwards_signals or time.monotonic() < self.counted_s + linger_s:
            return
        self.counted_s = time.monotonic()
        if not (self.signals or failed_file(self.folder).exists()):
            return
        if self.lingers:
            self.process.kill()
        self.lingers = len(ends(self.folder, self.world_size)) == self.world_size

    def run(self) -> int:
        """The launcher's exit code, of the last attempt to start ranks."""
        if self.launcher.apart and int(self.environ.get(warning.RESTART_VARIABLE, 0)) % 2:
            run(self.launcher.apart, environ=self.environ)
        for _ in attempts(lambda: self.is_back(lambda: self.signals)):
            # In a session of its own: Ctrl-C at a terminal reaches only us, and the ranks get to save.
            self.process = start(self.launcher.argv(self.launch), self.environ, new_session=True)
            while self.process.poll() is None:
                self.warn_in_time()
                self.forward()
                self.end_launcher()
                time.sleep(POLL_S)
            code = exit_code(self.process.returncode)
            if code == 0 or started_file(self.folder).exists() or ends(self.folder, self.world_size):
                break
            print(f"jobs: no rank has begun (exit code {code})", file=sys.stderr, flush=True)
        return code


def _passed_on(name: str) -> str:
    """What ranks get for a signal: Ctrl-C asks to save and stop."""
    return name.replace("SIGINT", "SIGTERM")


def ends(folder: Path, world_size: int) -> list[tuple[int, int]]:
    """Rank and exit code of the ranks that left one, first to end first."""
    files = [(rank, file) for rank in range(world_size) if (file := code_file(folder, rank)).exists()]
    files.sort(key=lambda item: item[1].stat().st_mtime_ns)
    return [(rank, int(file.read_text())) for rank, file in files]


def killed_first(folder: Path, world_size: int) -> str:
    """Names the first rank to end if something killed it: whatever the other ranks say then is but the consequence."""
    for rank, code in ends(folder, world_size)[:1]:
        if code > 128 and code - 128 not in FORWARDED:
            return f"rank {rank} was killed by {signal.Signals(code - 128).name}"
    return ""


def combine(folder: Path, world_size: int, launcher_code: int) -> int:
    """One exit code: all 0 → 0; a failure (neither 0 nor 85) → the first one; else 85.

    Deaths by signal count only where nothing else is to blame: they are mostly the other ranks being torn down. Ranks
    that left no code (killed with their wrapper) make the launcher's own code count.
    """
    codes = [code for _, code in ends(folder, world_size)]
    failures = sorted((code for code in codes if code not in (0, warning.SAVED)), key=lambda code: code > 128)
    if failures:
        return failures[0]
    if len(codes) < world_size:
        return launcher_code if launcher_code not in (0, warning.SAVED) else 1
    return max(codes)
