"""What many trivial jobs cost their controller: our executor beside snakemake-executor-plugin-slurm, on a real Slurm.

`make bench-jobs` brings up the test cluster and runs both, and an executor that does nothing, whose cost is Snakemake's
own and is taken off. Its jobs end at once; where real ones end a few at a time, Snakemake wakes for each few, and that
stays on the account of both. On the nodes Snakemake is a stub that makes the output, so that wall time and calls are
about what starts it; the Slurm plugin gains by that, for there it would start Snakemake again within srun.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGINS = Path(__file__).with_name("plugins")
PEER = ("snakemake-executor-plugin-slurm==2.8.0", "snakemake-executor-plugin-slurm-jobstep==0.6.1")
TOOLS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sacctmgr", "sinfo", "srun")
SNAKEFILE = """
rule all:
    input: expand("out/{i}", i=range(COUNT))

rule tiny:
    output: "out/{i}"
    shell: "touch {output}"
"""
EXECUTORS = {
    "nothing": ["--executor", "nothing"],
    "submitit": ["--executor", "submitit", "--submitit-site", str(ROOT / "site_configs" / "slurm" / "site.yaml")],
    "slurm": ["--executor", "slurm", "--default-resources", "runtime=10", "mem_mb=100"],
}


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    code: int
    wall_s: float
    controller_s: float
    """Processor time of Snakemake and of the commands that it ran."""
    slurmctld_s: float
    submit_s: float
    """From the first submission to the last, to the second."""
    calls: Counter[str]


def run(executor: str, count: int, cluster: Path, packages: Path) -> Cost:
    """One workflow of `count` jobs in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{executor}-"))
    (folder / "Snakefile").write_text(f"COUNT = {count}\n{SNAKEFILE}")
    (folder / "out").mkdir()
    path = f"{_counting(folder)}:{os.environ['PATH']}"
    python_path = f"{PLUGINS}:{packages}"
    ours = {"SLURM_CONF": str(cluster / "etc" / "slurm.conf"), "PATH": path, "PYTHONPATH": python_path}
    options = [*EXECUTORS[executor], "--jobs", str(count), "--latency-wait", "30", "--nolock", "--quiet", "all"]
    argv = [sys.executable, "-m", "snakemake", *options, "--max-jobs-per-timespan", f"{count}/1s"]
    slurmctld = int((cluster / "run" / "slurmctld.pid").read_text())
    before_s, began = _cpu_s(slurmctld), time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, env={**os.environ, **ours}, stdout=log, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began
    calls = Counter((folder / "calls").read_text().split()) if (folder / "calls").exists() else Counter()
    times = [float(line) for line in (folder / "times").read_text().split()] if (folder / "times").exists() else [0.0]
    code, used_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    if code == 0:
        shutil.rmtree(folder)
    else:
        print(f"{executor}: exit code {code}, see {folder / 'log'}")
    return Cost(code, wall_s, used_s, _cpu_s(slurmctld) - before_s, max(times) - min(times), calls)


def _counting(folder: Path) -> Path:
    """A folder for PATH whose commands note that the controller called them, and when it submitted."""
    commands = folder / "bin"
    commands.mkdir()
    for tool in TOOLS:
        when = f"cut -d' ' -f1 /proc/uptime >> {folder}/times; " if tool == "sbatch" else ""
        note = f'[ -n "$SLURM_JOB_ID" ] || {{ {when}echo {tool} >> {folder}/calls; }}'
        (commands / tool).write_text(f'#!/bin/sh\n{note}\nexec {shutil.which(tool)} "$@"\n')
        (commands / tool).chmod(0o755)
    return commands


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(costs: dict[str, list[Cost]], count: int) -> str:
    """The median run of each executor, by controller time, and the ratio of the peer to ours."""
    median = {name: sorted(runs, key=lambda one: one.controller_s)[len(runs) // 2] for name, runs in costs.items()}
    own_s = median["nothing"].controller_s
    load = f"load {os.getloadavg()[0]:.1f}"
    lines = [f"{count} trivial jobs, {load}; Snakemake's own part: {own_s:.2f} s of controller CPU"]
    lines.append("executor      total  above it  ms/job      wall slurmctld submitted in  calls  a minute")
    rows = {}
    for name in ("submitit", "slurm"):
        cost, calls = median[name], sum(median[name].calls.values())
        above_s, rate = cost.controller_s - own_s, 60 * calls / cost.wall_s
        rows[name] = (above_s, cost.controller_s, cost.wall_s, cost.slurmctld_s, calls)
        seconds = f"{cost.controller_s:8.2f}s {above_s:8.2f}s {1000 * above_s / count:7.2f} {cost.wall_s:8.1f}s"
        seconds += f" {cost.slurmctld_s:8.2f}s {cost.submit_s:11.1f}s"
        lines.append(f"{name:10} {seconds} {calls:6} {rate:9.1f}  {dict(cost.calls)}")
    ratios = [theirs / ours if ours > 0 else float("inf") for ours, theirs in zip(*rows.values(), strict=True)]
    words = "slurm over submitit: controller CPU above it {:.1f}, in all {:.1f}, wall {:.1f}"
    words += ", slurmctld CPU {:.1f}, calls {:.1f}"
    lines.append(words.format(*ratios))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.small_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, in turn")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-jobs-"))
    cluster, packages = scratch / "cluster", scratch / "packages"
    scratch.chmod(0o755)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *PEER]
    subprocess.run(pip, check=True)
    subprocess.run([ROOT / "tests" / "cluster" / "up.sh", cluster], check=True, stdout=subprocess.DEVNULL)
    try:
        costs: dict[str, list[Cost]] = {name: [] for name in EXECUTORS}
        for _ in range(arguments.repeats):
            for name, runs in costs.items():
                runs.append(run(name, arguments.jobs, cluster, packages))
                print(name, runs[-1], flush=True)
        print(table(costs, arguments.jobs))
    finally:
        subprocess.run([ROOT / "tests" / "cluster" / "down.sh", cluster])
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
