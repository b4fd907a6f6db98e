"""The one place that starts processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

Process = subprocess.Popen[bytes]
TIMED_OUT = 124
"""Exit code of `run` for a command that did not answer, as of timeout(1)."""
VIEWS = ("SQUEUE_", "SACCT_", "SINFO_", "BSUB_", "LSB_BJOBS_")
"""Variables by which users narrow or reshape what these commands show them; we must see all of it, in our form.
BSUB_QUIET would hide a job's id, BSUB_BLOCK wait for its end."""
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Which cluster it is."""
FLUX_OUTSIDE = "JOBS_FLUX_URI"
"""The Flux that a job of ours is a job of; the job's own is found by FLUX_URI, and knows nothing of it."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Result:
    """How a finished command ended."""

    code: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], timeout_s: float = 60, environ: Mapping[str, str] | None = None) -> Result:
    """Runs a short command to its end. Absent or stuck commands are results too (127, 124), never exceptions.

    Without `environ` the command knows nothing of an allocation around us. It does not hear Ctrl-C at our terminal.
    """
    env = plain_environment(os.environ) if environ is None else dict(environ)
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
    except FileNotFoundError:
        return Result(127, "", f"{argv[0]}: command not found")
    except OSError as error:
        return Result(126, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Result(TIMED_OUT, "", f"{argv[0]}: no answer within {timeout_s:.0f} s")
    return Result(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def interrupted_late() -> Iterator[None]:
    """Ctrl-C takes effect at the end, so that no answer is lost of what was begun; a second one at once."""
    if threading.current_thread() is not threading.main_thread():  # no other hears signals
        yield
        return
    before, came = signal.getsignal(signal.SIGINT), list[int]()

    def wait(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a scheduler's commands, the same in every shell.

    From inside an allocation (an interactive session) a submitted job would inherit its variables, which srun takes for
    options: the session's CPU mask, memory and number of tasks. A batch job of Flux is an instance of its own.
    """
    hidden = (*VIEWS, *(("SLURM_", "SLURMD_", "SRUN_") if "SLURM_JOB_ID" in environ else ()))
    env = {name: value for name, value in environ.items() if name.startswith(KEPT) or not name.startswith(hidden)}
    return {**env, "FLUX_URI": env[FLUX_OUTSIDE]} if FLUX_OUTSIDE in env else env


def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | None = None,
    new_session: bool = False,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    is_deaf: bool = False,
) -> Process:
    """Starts a long command that dies with this process.

    It ignores USR1 and USR2 until it installs handlers of its own: a warning that comes while a trainer still
    imports must not kill it. And INT: of a job that LSF ends all processes get it, and whoever ends it in order says
    TERM; that too is ignored by one that `is_deaf`.
    """

    def prepare() -> None:
        signal_on_parent_death(signal.SIGKILL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if is_deaf else signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    return subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        start_new_session=new_session,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=prepare,
    )


def tee(file: Path) -> Process:
    """Copies what is written to its `stdin` to the end of a file and to our own output.

    It ends when the last writer does, however that ends and whoever else is told to: no last line is lost. A full disk
    costs the copy in the file alone.
    """

    def prepare() -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(["tee", "-a", file], stdin=subprocess.PIPE, start_new_session=True, preexec_fn=prepare)


def drain(copy: Process, wait_s: float) -> None:
    """Ends a `tee` once its other writers have; one that outlives them is waited for so long."""
    assert copy.stdin is not None
    copy.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        copy.wait(wait_s)


def signal_on_parent_death(number: int) -> None:
    """Has the kernel send this process a signal when its parent dies, however that happens; 0: none."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def exit_code(returncode: int) -> int:
    """A process's return code as a shell shows it: 128 + N for death by signal N."""
    return 128 - returncode if returncode < 0 else returncode
