"""The real Slurm that the cluster tests share, and how they run Snakemake on it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.ranks import NUM_PORTS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE = ROOT / "site_configs" / "slurm" / "site.yaml"

SESSION = {"SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_MEM_PER_CPU": "1", "SLURM_NTASKS": "7"}
SESSION |= {"SQUEUE_PARTITION": "none", "SBATCH_EXPORT": "NONE"}
"""What Snakemake's shell has from an interactive job around it and from its user; none of it concerns our jobs."""


class Slurm:
    """Asks the cluster, and runs the mini workflow on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {**os.environ, "SLURM_CONF": str(root / "etc" / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def ask(self, *argv: str) -> list[str]:
        done = subprocess.run(argv, env=self.environ, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split("\n")[:-1]

    def start(self, folder: Path, *arguments: str, site: Path = SITE) -> subprocess.Popen[str]:
        """Snakemake with the submitit executor in `folder`; its output is in `folder`/out.log."""
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", HERE / "Snakefile", "--executor", "submitit"]
        options = ["--submitit-site", str(site), "--jobs", "8", "--nolock", "--rerun-incomplete", "--keep-going"]
        options += [
            "--seconds-between-status-checks",
            "5",
            "--latency-wait",
            "10",
            "--show-failed-logs",
            "--retries",
            "1",
        ]
        config = ["--config", f"site={site}", "--"]
        with (folder / "out.log").open("a") as log:
            return subprocess.Popen(
                [*snakemake, *options, *config, *arguments],
                cwd=folder,
                env={**self.environ, **SESSION},
                stdout=log,
                stderr=log,
                text=True,
            )

    def run(self, folder: Path, *arguments: str, site: Path = SITE) -> tuple[int, str]:
        code = self.start(folder, *arguments, site=site).wait(timeout=150)
        return code, (folder / "out.log").read_text()

    def status(self, folder: Path) -> list[dict[str, Any]]:
        """What `jobs status` says in the folder where Snakemake runs or ran."""
        command = [sys.executable, "-m", "jobs", "status", "--json", "."]
        done = subprocess.run(
            command, cwd=folder, env=self.environ, capture_output=True, text=True, timeout=60, check=True
        )
        return list(json.loads(done.stdout))

    def history(self, name: str) -> list[list[str]]:
        """[job id, state] of every run of the jobs of a rule, requeued runs each on a line, oldest first."""
        wanted = ["sacct", "-X", "-D", "-n", "-P", f"--name={name}", "-o", "JobIDRaw,State"]
        return [line.split("|") for line in self.ask(*wanted)]

    def preempt(self, folder: Path) -> None:
        """Has a short job of higher priority take all nodes."""
        urgent = folder / "urgent.sh"
        urgent.write_text("#!/bin/bash\nsleep 2\n")
        self.ask("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", str(urgent))

    def hosts_of(self, name: str) -> list[str]:
        """Nodes of the running job of that name; none while it waits."""
        lists = self.ask("squeue", "-h", f"--name={name}", "--states=RUNNING", "-o", "%N")
        return self.ask("scontrol", "show", "hostnames", lists[0]) if lists and lists[0] else []

    def restart_controller(self) -> None:
        """Kills slurmctld and starts it again, as after a crash of its machine."""
        os.kill(int((self.root / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
        time.sleep(3)
        self.ask("slurmctld")
        wait_for(
            lambda: subprocess.run(["scontrol", "ping"], env=self.environ, capture_output=True).returncode == 0, 30
        )

    def kill_slurmd(self, node: str) -> None:
        """Slurm will take the node for dead; the processes of its jobs live on."""
        os.kill(int((self.root / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        self.ask("unshare", "--uts", "bash", "-c", f"hostname {node}; exec slurmd -N {node}")
        wait_for(lambda: self.ask("sinfo", "-h", f"--nodes={node}", "--states=down", "-o", "%N") == [], 60)

    def cancel_all(self) -> None:
        self.ask("scancel", "--me")
        wait_for(lambda: not self.ask("squeue", "-h"), 30)


def wait_for(condition: Callable[[], object], limit_s: float) -> None:
    """Polls until the condition holds; fails the test if it never does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def why_not() -> str:
    """What this machine lacks for a cluster, empty if nothing."""
    if os.geteuid() != 0:
        return "not root: the cluster's nodes need host names of their own"
    missing = [tool for tool in ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged") if not shutil.which(tool)]
    if missing and not shutil.which("apt-get"):
        return f"not Debian, and without {', '.join(missing)}"
    return ""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="cluster-"))  # not below pytest's folder: the database has a user of its own
    # Ports follow from job ids: those of another cluster on this machine, which counts from 1 too, are others.
    environ = {**os.environ, "FIRST_JOB_ID": str(random.randrange(1, NUM_PORTS))}
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    up = subprocess.run([HERE / "up.sh", root], env=environ, timeout=400, **said)
    assert up.returncode == 0, up.stdout
    try:
        yield Slurm(root)
    finally:
        subprocess.run([HERE / "down.sh", root], timeout=60)


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[str], int], int]:
    """Sends a signal and waits for the end."""

    def send(process: subprocess.Popen[str], number: int) -> int:
        process.send_signal(signal.Signals(number))
        return process.wait(timeout=60)

    return send
