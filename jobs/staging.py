"""The software environment on every node's own disk before ranks start: thousands of imports from one shared filesystem
take minutes. `python -m jobs.staging ARCHIVE FOLDER` is one node's part.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import UserError
from jobs.shell import run

UNPACKERS = {
    (".sqsh", ".squashfs"): ("unsquashfs", "-quiet", "-no-progress", "-force", "-dest", "{folder}", "{archive}"),
    (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"): ("tar", "-xf", "{archive}", "-C", "{folder}"),
}
UNPACK_S = 1800.0
"""The most that one node may take."""


@dataclass(frozen=True)
class Stage:
    """The keys are described in `site_configs/schema.yaml`."""

    archive: str
    folder: str

    def expanded(self) -> Stage:
        """With the values of $USER and the like. Raises UserError where one is not set."""
        words = os.path.expandvars(self.archive), os.path.expandvars(self.folder)
        if unset := re.search(r"\$\w+", " ".join(words)):
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


def broadcast(stage: Stage, launcher: str) -> None:
    """Raises UserError for an archive that is not there; where sbcast fails, nodes read the archive where it is."""
    stage = stage.expanded()
    if not Path(stage.archive).is_file():
        raise UserError(f"stage.archive: {stage.archive}: no such file")
    argv = broadcast_argv(stage, launcher)
    if argv and (done := run(argv, timeout_s=UNPACK_S, environ=os.environ)).code:
        print(f"jobs: not broadcast, read by each node: {done.stderr.strip()}", file=sys.stderr, flush=True)


def node_command(stage: Stage) -> list[str]:
    """One node's part; variables are the node's own."""
    return [sys.executable, "-m", "jobs.staging", stage.archive, stage.folder]


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
            return
        is_here = stage.copy.is_file() and stage.copy.stat().st_size == seen.st_size
        draft = folder.with_name(f".{folder.name}.draft")
        for leftover in (draft, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        ended = run(unpack_argv(source, stage.copy if is_here else source, draft), timeout_s=UNPACK_S)
        stage.copy.unlink(missing_ok=True)
        if ended.code:
            shutil.rmtree(draft, ignore_errors=True)
            raise UserError(f"stage.archive: {source}: {(ended.stderr or ended.stdout).strip().splitlines()[-1]}")
        draft.rename(folder)
        if (folder / "bin" / "conda-unpack").is_file():  # its prefixes are those of the machine that packed it
            run([str(folder / "bin" / "python3"), str(folder / "bin" / "conda-unpack")], timeout_s=UNPACK_S)
        done.write_text(mark)


if __name__ == "__main__":
    try:
        unpack(Stage(*sys.argv[1:]).expanded())
    except (UserError, OSError) as error:
        sys.exit(f"jobs: error: {os.uname().nodename}: {error}")
