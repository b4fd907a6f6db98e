"""How a job and the launches inside it talk past Snakemake and the shells between them: a folder.

The job names the folder in JOBS_ALLOCATION. A launch puts a file named after its process there while it runs, so that
the job knows whom to warn, and leaves its exit code, which Snakemake would hide.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "JOBS_ALLOCATION"
ID_VARIABLE = "JOBS_JOB_ID"
"""The job's id as whoever submitted it knows it; in an element of an array the scheduler's own variable may differ."""
RESTART_VARIABLE = "JOBS_RESTART_COUNT"
"""How many allocations of the job began before this one."""
END_VARIABLE = "JOBS_ALLOCATION_END"
"""When the allocation's walltime is over, in seconds since 1970."""
REFUSED = 2
"""Exit code for: the user's input is wrong, and one line has said how. Running again would not help."""
UNHEALTHY = 84
"""Exit code of a launch whose nodes were not fit: no rank was started."""
SAVED = 85
"""Exit code of a rank, and so of a launch, for: state saved, run me again."""


def folder_of(environ: Mapping[str, str]) -> Path | None:
    """The job's folder, None outside of a job."""
    return Path(environ[VARIABLE]) if environ.get(VARIABLE) else None


@contextmanager
def registered(environ: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, signals of the job reach this process."""
    folder = folder_of(environ)
    file = folder / f"launch_{os.getpid()}" if folder else None
    if file:
        file.touch()
    try:
        yield
    finally:
        if file:
            file.unlink(missing_ok=True)


def follow(environ: Mapping[str, str], run_dir: Path) -> None:
    """Tells the job which run a launch of it trains: by its checkpoints the job knows whether it gets anywhere."""
    folder = folder_of(environ)
    if folder and run_dir.resolve() not in runs_of(folder):
        with _runs_file(folder).open("a") as file:
            file.write(json.dumps(str(run_dir.resolve())) + "\n")


def runs_of(folder: Path) -> list[Path]:
    """The run directories of all launches of a job, in every allocation so far."""
    file = _runs_file(folder)
    return [Path(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def _runs_file(folder: Path) -> Path:
    """Beside the folder, which each allocation clears."""
    return folder.with_name(f"{folder.name}.runs")


def report_outcome(environ: Mapping[str, str], code: int) -> None:
    """Tells the job how this launch ended."""
    if folder := folder_of(environ):
        (folder / "outcome").write_text(str(code))


def warn(folder: Path, pid: int, since_s: float) -> None:
    """Passes on to a launch a warning that came at `since_s`, in seconds since 1970."""
    (folder / "warned").write_text(str(since_s))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR2)


def warned_s(environ: Mapping[str, str]) -> float | None:
    """When the warning came that was passed on to launches; None: none was."""
    file = folder / "warned" if (folder := folder_of(environ)) else None
    return float(file.read_text()) if file and file.exists() else None


def has_saved(environ: Mapping[str, str]) -> bool:
    """Whether a launch of this allocation already asked to be run again: it saved, or its nodes were not fit."""
    folder = folder_of(environ)
    return folder is not None and read_outcome(folder) in (SAVED, UNHEALTHY)


def write_verdict(folder: Path, why: str) -> None:
    """Says to all later allocations of the job that it is over: finished (empty), or failed for good, and why."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.with_name(f"{folder.name}.verdict").write_text(why)


def read_verdict(folder: Path) -> str | None:
    """None while the job is not over."""
    file = folder.with_name(f"{folder.name}.verdict")
    return file.read_text() if file.exists() else None


def exclude(environ: Mapping[str, str], nodes: Iterable[str]) -> None:
    """Has the job's next allocation avoid some nodes."""
    if folder := folder_of(environ):
        with _excluded_file(folder).open("a") as file:
            file.writelines(f"{node}\n" for node in nodes)


def excluded(folder: Path, most: int) -> list[str]:
    """Nodes that the job's next allocation should avoid: those last found, so that it is never left without any."""
    file = _excluded_file(folder)
    nodes = list(dict.fromkeys(reversed(file.read_text().split()))) if file.exists() else []
    return sorted(nodes[:most])


def include_all(folder: Path) -> None:
    """Has the job's next allocation avoid no node."""
    _excluded_file(folder).unlink(missing_ok=True)


def _excluded_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.excluded")


def read_outcome(folder: Path) -> int | None:
    """Exit code of the last launch, None if there was none."""
    file = folder / "outcome"
    return int(file.read_text()) if file.exists() else None


def launches(folder: Path) -> list[int]:
    """Process ids of the launches that now run on this node; one that was killed has left its file, but no process."""
    pids = [int(file.name.removeprefix("launch_")) for file in folder.glob("launch_*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
