"""`python -m jobs.health`: one node looks at itself and at its neighbours before the ranks of a launch start on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.meeting import meet
from jobs.ranks import free_port, is_free
from jobs.shell import run


@dataclass(frozen=True)
class Health:
    """What a site wants of a node; the keys are described in `site_configs/schema.yaml`."""

    timeout_s: int
    memory_free_gb: float = 0
    disk_free_gb: float = 0
    clock_offset_s: float | None = None
    folders: tuple[str, ...] = ()
    """With environment variables, which are the node's own."""
    link_factor: float = 5.0
    """A node is slow if even its fastest link takes this many times what the median node's does."""
    max_excluded: int = 4


@dataclass(frozen=True)
class Report:
    """What a node says of itself."""

    rank: int
    node: str
    problems: tuple[str, ...]
    links: tuple[tuple[int, float], ...] = ()
    """Rank of another node, and how long the data took that were sent to it, in seconds."""
    apart: str = ""
    """Why it and the master, which has rank 0, did not meet: the fault of either."""
    free_port: int = 0
    """Of the master, where somebody has taken the launch's: one for it instead. Then it did not look at itself yet."""


def gpu_problems(expected: int) -> Iterator[str]:
    """GPUs must be there, and nobody else's process on them. Says nothing where neither vendor's tool is installed."""
    if not expected:
        return
    if shutil.which("nvidia-smi"):
        listed = run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"])
        used = run(["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"])
        found, pids = len(listed.stdout.split()), re.findall(r"^\d+$", used.stdout, re.MULTILINE)
    elif shutil.which("rocm-smi"):
        listed = run(["rocm-smi", "--showuniqueid", "--json"])
        used = run(["rocm-smi", "--showpids"])
        found = len(re.findall(r'"card\d+"', listed.stdout))
        # PID, name, GPUs, bytes of their memory, ...; what only watches them, as AMD's own agents do, holds no memory.
        rows = (line.split() for line in used.stdout.splitlines() if re.match(r"\d+\s", line))
        pids = [row[0] for row in rows if row[-3:-2] != ["0"]]
    else:
        return
    if listed.code or found != expected:
        yield f"{found} of {expected} GPUs visible"
    if pids:
        yield f"GPUs are in use by process {', '.join(pids)}"


def memory_problems(needed_gb: float) -> Iterator[str]:
    """MemAvailable of /proc/meminfo."""
    match = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free_gb = int(match[1]) / 2**20 if match else 0.0
    if free_gb < needed_gb:
        yield f"{free_gb:.1f} GB of memory free, {needed_gb:g} wanted"


def folder_problems(folder: str, needed_gb: float) -> Iterator[str]:
    """A file must go in, through to the disk, and there must be room for more."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".health-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free_gb = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        yield f"{folder}: {error.strerror}"
        return
    if free_gb < needed_gb:
        yield f"{folder}: {free_gb:.1f} GB free, {needed_gb:g} wanted"


def examine(health: Health, gpus: int, environ: Mapping[str, str]) -> Report:
    """Everything about this node; `environ` holds a rank's place, one rank per node."""
    rank, world_size, port = (int(environ[word]) for word in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if rank == 0 and not is_free(port):
        return Report(rank, socket.gethostname(), (), free_port=free_port())
    problems = [*gpu_problems(gpus), *memory_problems(health.memory_free_gb)]
    for folder in health.folders:
        problems += folder_problems(os.path.expandvars(folder), health.disk_free_gb)
    seen = meet(rank, world_size, environ["MASTER_ADDR"], port, health.timeout_s / 2)
    if health.clock_offset_s is not None and abs(seen.clock_offset_s) > health.clock_offset_s:
        problems.append(f"clock is {-seen.clock_offset_s:+.1f} s off the master's")
    return Report(rank, socket.gethostname(), tuple(problems), tuple(seen.links.items()), seen.problem)


def report_file(folder: Path, rank: int) -> Path:
    return folder / f"health_{rank:05d}.json"


def write_report(folder: Path, report: Report) -> None:
    """Whoever reads it finds all of it."""
    draft = report_file(folder, report.rank).with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(report)))
    draft.rename(report_file(folder, report.rank))


def main(folder: Path) -> int:
    """Reads what is wanted from `folder`, leaves the report there.

    Returns 0, for a launcher would end the others; 1 where that is wanted: they wait at a port that is somebody's.
    """
    wanted = json.loads((folder / "health.json").read_text())
    report = examine(Health(**wanted["health"]), wanted["gpus"], os.environ)
    write_report(folder, report)
    return int(report.free_port > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
