"""The software environment on every node's own disk before ranks start: thousands of imports from one shared filesystem
take minutes. `python -m jobs.staging ARCHIVE FOLDER REPORTS` is one node's part.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import UserError
from jobs.examination import ask_nodes
from jobs.health import Report, write_report
from jobs.shell import run
from jobs.spec import Launch

UNPACKERS = {
    (".sqsh", ".squashfs"): ("unsquashfs", "-quiet", "-no-progress", "-force", "-dest", "{folder}", "{archive}"),
    (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"): ("tar", "-xf", "{archive}", "-C", "{folder}"),
}
UNPACK_S = 1800
"""The most that one node may take."""


@dataclass(frozen=True)
class Stage:
    """The keys are described in `site_configs/schema.yaml`."""

    archive: str
    folder: str

    def expanded(self) -> Stage:
        """With the values of $USER and the like. Raises UserError where one is not set."""
        words = os.path.expandvars(self.archive), os.path.expandvars(self.folder)
        if unset := re.search(r"\$(?:\w+|\{[^}]*\})", " ".join(words)):
            raise UserError(f"stage: {unset[0]}: not set here")
        return Stage(*words)

    @property
    def copy(self) -> Path:
        """The archive on the node, until it is unpacked."""
        return Path(f"{self.folder}.archive")


def unpack_argv(archive: Path, copy: Path, folder: Path) -> list[str]:
    """What unpacks a copy of an archive, by the archive's name. Raises UserError for a name that says nothing."""
    for suffixes, words in UNPACKERS.items():
        if archive.name.endswith(suffixes):
            return [{"{archive}": str(copy), "{folder}": str(folder)}.get(word, word) for word in words]
    known = ", ".join(suffix for suffixes in UNPACKERS for suffix in suffixes)
    raise UserError(f"stage.archive: {archive}: must end in one of {known}")


def variables(stage: Stage | None, environ: Mapping[str, str]) -> dict[str, str]:
    """What ranks must have so that the node's own environment is theirs."""
    return {"PATH": f"{stage.expanded().folder}/bin:{environ.get('PATH', os.defpath)}"} if stage else {}


def python(stage: Stage | None) -> str:
    """What runs the wrapper around each rank; empty: as ever."""
    return f"{stage.expanded().folder}/bin/python3" if stage else ""


def broadcast_argv(stage: Stage, launcher: str) -> list[str] | None:
    """Slurm's own way of a file to all nodes of an allocation, from node to node; None under other launchers."""
    return ["sbcast", "--force", "--preserve", stage.archive, str(stage.copy)] if launcher == "srun" else None


def require(stage: Stage) -> None:
    """Raises UserError for an archive that is not there."""
    if not Path(archive := stage.expanded().archive).is_file():
        raise UserError(f"stage.archive: {archive}: no such file")


def stage_nodes(stage: Stage, launcher: str, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """Brings the environment to the disk of every node of a launch; problems by node name, none if all have it.

    Raises LauncherError.
    """
    _broadcast(stage.expanded(), launcher)
    folder = Path(tempfile.mkdtemp(prefix="staging-", dir=launch.folder))
    limit_s = 2 * UNPACK_S  # another job on the node may be at it
    words = [stage.archive, stage.folder]  # variables are the node's own
    return ask_nodes(launcher, launch, "jobs.staging", words, folder, environ, limit_s)[1]


def _broadcast(stage: Stage, launcher: str) -> None:
    """Where sbcast fails, nodes read the archive where it is."""
    argv = broadcast_argv(stage, launcher)
    if argv and (done := run(argv, timeout_s=UNPACK_S, environ=os.environ)).code:
        print(f"jobs: not broadcast, read by each node: {done.stderr.strip()}", file=sys.stderr, flush=True)


def unpack(stage: Stage) -> None:
    """This node's part: unpacks the archive, or the copy that is here already, unless that was done before.

    Whole or not at all, also where several jobs share the node. Raises UserError with the unpacker's own words.
    """
    source, folder = Path(stage.archive), Path(stage.folder)
    seen = source.stat()
    mark = f"{source.resolve()} {seen.st_size} {seen.st_mtime_ns}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".staged"
        if done.is_file() and done.read_text() == mark:
            stage.copy.unlink(missing_ok=True)
            return
        is_here = stage.copy.is_file() and stage.copy.stat().st_size == seen.st_size
        draft = folder.with_name(f".{folder.name}.draft")
        for leftover in (draft, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        ended = run(unpack_argv(source, stage.copy if is_here else source, draft), timeout_s=UNPACK_S)
        stage.copy.unlink(missing_ok=True)
        if not ended.code:
            draft.rename(folder)
            conda_unpack = folder / "bin" / "conda-unpack"  # the prefixes are those of the machine that packed it
            if conda_unpack.is_file():
                ended = run([str(folder / "bin" / "python3"), str(conda_unpack)], timeout_s=UNPACK_S)
        if ended.code:
            for leftover in (draft, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            said = (ended.stderr or ended.stdout).strip().splitlines() or [f"exit code {ended.code}"]
            raise UserError(f"stage.archive: {source}: {said[-1]}")
        done.write_text(mark)


def main(archive: str, folder: str, reports: str) -> int:
    """Leaves what went wrong in the folder `reports`; always 0, for a launcher would end the others."""
    problems: tuple[str, ...] = ()
    try:
        unpack(Stage(archive, folder).expanded())
    except (UserError, OSError) as error:
        problems = (str(error),)
    write_report(Path(reports), Report(int(os.environ["RANK"]), socket.gethostname(), problems))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
