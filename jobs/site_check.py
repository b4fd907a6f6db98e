"""`jobs site check`: compares a site's profile with the machine, and says line by line what agrees and what differs."""

from __future__ import annotations

import getpass
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import UserError
from jobs.launch import LAUNCHERS
from jobs.machine import Machine, read_machine
from jobs.scheduler.slurm_show import Node, Partition
from jobs.shell import run
from jobs.site import Queue, Site
from jobs.spec import Launch

OLDEST = (20, 2)
"""squeue --me, which every poll uses, is of Slurm 20.02."""
MEMORY_SHARE = 0.9
"""A profile that asks for less than this of a node's memory leaves too much of it idle to be meant."""


@dataclass(frozen=True)
class Finding:
    """One thing compared. `agrees` None: worth knowing, but neither right nor wrong."""

    agrees: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "agrees", False: "differs", None: "note"}[self.agrees]
        return f"{word:<8} {self.text}"


def check(site: Site, folder: Path) -> list[Finding]:
    """Compares the site of a profile folder with this login node. Raises UserError where its scheduler is not asked."""
    if site.scheduler != "slurm":
        raise UserError(f"jobs site check {site.name}: scheduler {site.scheduler}: only Slurm can be asked so far")
    machine = read_machine()
    wanted = default_resources(folder / "config.yaml")
    findings = [_version(machine), *_partitions(site, machine, wanted), *_preemption(site, machine)]
    return [*findings, *_rights(wanted), *_launcher(site), *_modules(site), _filesystem(Path.cwd())]


def default_resources(file: Path) -> dict[str, str]:
    """`default-resources` of a Snakemake profile, without `slurm_`; none where there is no such file."""
    if not file.is_file():
        return {}
    given = (yaml.safe_load(file.read_text()) or {}).get("default-resources") or []
    pairs: Mapping[str, Any] = given if isinstance(given, dict) else dict(item.split("=", 1) for item in given)
    return {key.removeprefix("slurm_"): str(value) for key, value in pairs.items()}


def _version(machine: Machine) -> Finding:
    numbers = tuple(int(part) for part in machine.version.split(".")[:2] if part.isdigit())
    what = f"Slurm {machine.version} of cluster {machine.cluster}"
    return Finding(numbers >= OLDEST, what if numbers >= OLDEST else f"{what}: 20.02 is the oldest that will do")


def _partitions(site: Site, machine: Machine, wanted: Mapping[str, str]) -> Iterator[Finding]:
    """Partitions of `queues` and of config.yaml, and the shape of their nodes."""
    queues = [*site.queues]
    if not queues or "partition" in wanted:
        default = machine.partition(wanted.get("partition"))
        name = wanted.get("partition") or (default.name if default else "")
        if name not in {queue.partition for queue in queues}:
            queues.append(Queue(name, None, max_nodes=default.max_nodes if default else 1))
    shapes: set[str] = set()
    for queue in queues:
        partition = machine.partition(queue.partition) if queue.partition else None
        if partition is None:
            known = ", ".join(p.name for p in machine.partitions)
            yield Finding(False, f"partition {queue.partition or '(none is the default)'}: absent; there are {known}")
            continue
        yield from _queue(queue, partition)
        if partition.name not in shapes:
            shapes.add(partition.name)
            yield from _shape(site, partition, machine.nodes_of(partition.name))


def _queue(queue: Queue, partition: Partition) -> Iterator[Finding]:
    where = f"partition {partition.name}"
    if not partition.is_open:
        yield Finding(False, f"{where}: is not open to jobs of users")
    fits = queue.max_nodes <= partition.max_nodes and queue.min_nodes >= partition.min_nodes
    has = f"allows {partition.min_nodes} to {partition.max_nodes}"
    yield Finding(fits, f"{where}: {queue.min_nodes} to {queue.max_nodes} nodes" + ("" if fits else f"; it {has}"))
    most = partition.walltime_max_min
    if queue.walltime_max_min is not None:
        fits = most is None or queue.walltime_max_min <= most
        text = f"{where}: walltime up to {queue.walltime_max_min} minutes"
        yield Finding(fits, text + ("" if fits else f"; it allows {most}"))


def _shape(site: Site, partition: Partition, nodes: list[Node]) -> Iterator[Finding]:
    """Cores and GPUs must be those of every node; memory no more than the least, and no small part of it."""
    where = f"nodes of {partition.name}"
    if not nodes:
        yield Finding(False, f"{where}: there are none")
        return
    for what, ours, theirs in (
        ("cores", site.cores, sorted({node.cores for node in nodes})),
        ("GPUs", site.gpus, sorted({node.gpus for node in nodes})),
    ):
        found = " or ".join(map(str, theirs))
        agrees = theirs == [ours]
        yield Finding(agrees, f"{where}: {ours} {what}" + ("" if agrees else f"; they have {found}"))
    least_gb = min(node.memory_mb for node in nodes) / 1024
    agrees = least_gb * MEMORY_SHARE <= site.memory_gb <= least_gb
    yield Finding(agrees, f"{where}: {site.memory_gb:g} GB of memory" + ("" if agrees else f"; they have {least_gb:g}"))
    if partition.whole_nodes != site.whole_nodes:
        yield Finding(False, f"{where}: whole_nodes is {site.whole_nodes}; the partition gives {partition.whole_nodes}")


def _preemption(site: Site, machine: Machine) -> Iterator[Finding]:
    requeue = (
        "may be run again (JobRequeue=1)" if machine.requeues else "must ask to be run again (JobRequeue=0), and do"
    )
    yield Finding(None, f"preempted jobs {requeue}")
    for partition in machine.partitions:
        if partition.preempt_mode == "OFF" or not partition.is_open:
            continue
        where = f"partition {partition.name}: PreemptMode={partition.preempt_mode}"
        # Without a grace time a job is ended at once, as a cancelled one is.
        name, most_s = ("GraceTime", partition.grace_s) if partition.grace_s else ("KillWait", machine.kill_wait_s)
        yield Finding(site.grace_s < most_s, f"{where}, {name} {most_s} s; grace_s is {site.grace_s}")
        if not machine.warns_before_preemption:
            yield Finding(None, f"{where}, without the job's own warning: its ranks get TERM")
    if site.grace_s > machine.kill_wait_s:
        waits = f"KillWait is {machine.kill_wait_s} s, less than grace_s ({site.grace_s})"
        yield Finding(None, f"{waits}: a cancelled job may be killed before it has saved")


def _rights(wanted: Mapping[str, str]) -> Iterator[Finding]:
    """Account and QOS of config.yaml against what accounting grants this user."""
    if not {"account", "qos"} & set(wanted):
        return
    user = f"user={getpass.getuser()}"  # by name: a number is nobody to sacctmgr
    done = run(["sacctmgr", "--noheader", "--parsable2", "show", "associations", user, "format=account,qos"])
    rows = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    if done.code or not rows:
        yield Finding(None, "account and QOS: accounting does not say what this user may use")
        return
    granted = {
        "account": {row[0] for row in rows},
        "qos": {name for row in rows for name in row[1].split(",") if name},
    }
    for key in ("account", "qos"):
        if key in wanted:
            agrees = wanted[key] in granted[key]
            has = "" if agrees else f"; this user has {', '.join(sorted(granted[key]))}"
            yield Finding(agrees, f"{key} {wanted[key]}{has}")


def _launcher(site: Site) -> Iterator[Finding]:
    launch = Launch(("true",), 1, 1, 1, Path(), hosts=("localhost",))
    program = LAUNCHERS[site.launcher].argv(launch)[0]
    path = shutil.which(program)
    what = f"launcher {site.launcher}: {path or program}"
    yield Finding(path is not None, what if path else f"{what} is not found here; a module of `setup` may bring it")


def _modules(site: Site) -> Iterator[Finding]:
    """Names that lines of `setup` load, asked of the module command of a login shell."""
    words = [shlex.split(line) for line in site.setup if line.split()[:2] == ["module", "load"]]
    for name in (name for line in words for name in line[2:]):
        done = run(["bash", "-lc", 'type module >/dev/null 2>&1 || exit 9; module is-avail "$1"', "bash", name])
        why = "" if done.code == 0 else "; there is no module command" if done.code == 9 else "; not available"
        yield Finding(done.code == 0, f"module {name}{why}")


def _filesystem(folder: Path) -> Finding:
    """What the runs will lie on; whether other nodes see it only they can tell."""
    rows = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    mounts = [(row[1], row[2]) for row in rows if folder.is_relative_to(row[1])]
    where, kind = max(mounts, key=lambda item: len(item[0]))
    return Finding(None, f"{folder} is on {where} ({kind}): all nodes must see it")
