"""`jobs site new`: writes a profile for a Slurm cluster that nobody has described, from what the cluster says."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.errors import UserError
from jobs.machine import Machine
from jobs.scheduler.slurm_show import Node, Partition
from jobs.site import FOLDER, load_site
from jobs.site_check import MEMORY_SHARE

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
SIGNAL_DELAY_S = 300
SHARE_OF_GRACE = 0.8
"""Of the time that Slurm leaves an ending job: what its ranks may use to save; the rest is to tear them down."""

SITE = """\
# {name}: cluster {cluster}, Slurm {version}. Written by `jobs site new {name}` from `scontrol show`; what it could not
# know is marked "our choice". `jobs site check {name}` compares it with the machine.
scheduler: slurm
launcher: srun
whole_nodes: {whole_nodes}

node:  # scontrol show node {node.name}; {num_alike} of {num_nodes} in partition {partition.name} have its cores, GPUs
  ranks: {ranks}  # one per GPU, or one where there is none: our choice
  cores: {node.cores}
  memory_gb: {memory_gb:g}
  gpus: {node.gpus}

environment:
  - name: PYTHONUNBUFFERED
    value: "1"
    reason: progress lines reach the log when they are printed, not when a buffer fills (docs.python.org, cmdline)

queues:{left_out}
{queues}

signal_delay_s: {signal_delay_s}  # our choice: long enough to save a large checkpoint
grace_s: {grace_s}  # below {grace_limit}

health:  # before ranks start; nodes that fail are named in segments.jsonl and avoided: our choice, all of it
  timeout_s: 60
  disk_free_gb: 1
  clock_offset_s: 30
  folders: [/tmp]

requeue:
  max_idle: 3  # our choice: thrice ended before a checkpoint, something is wrong
"""
CONFIG = """\
# Snakemake profile of {name}. The site's facts are in site.yaml.
executor: submitit
submitit-site: {name}
jobs: 100
config:
  - site={name}
default-resources:
  # - slurm_account=ACCOUNT
  - nodes=1
  - tasks_per_node=1
  - mem_mb=2000
  - runtime=30
# Shared filesystems show a file some seconds after it was written.
latency-wait: 60
retries: 0
printshellcmds: true
nolock: true
rerun-incomplete: true
# A run is repeated when what it reads changed, never because a rule was worded anew.
rerun-triggers: [mtime, params, input]
max-checksum-file-size: 0
show-failed-logs: true
"""
README = """\
# {name}: cluster {cluster}

    snakemake --profile site_configs/{name} --configfile workflow/config/cluster_demo.yaml -n

Written by `jobs site new {name}` on Slurm {version}; **nothing was run yet**. Before the first run:

1. `slurm_account` in `config.yaml`, if the cluster wants one.
2. Lines of `setup` in `site.yaml` for modules, and `environment` for the network of the GPUs' collectives.
3. `jobs site check {name}`, then a run of a single small job.

The checkout, its `.venv` and `.snakemake/submitit` must be on a filesystem that all nodes see.
"""


def write_profile(name: str, machine: Machine, partition: str | None = None, root: Path = FOLDER) -> Path:
    """Writes `root`/`name`, all of it or nothing, and returns it; for the nodes of a partition, or of the default one.

    Raises UserError where it is there already, or where the partition, or any, is not open to users.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"site {name!r}: a name of letters, digits, dots, dashes and underscores is needed")
    folder = root / name
    if folder.exists():
        raise UserError(f"{folder}: is there already; choose another name, or `jobs site check {name}`")
    draft = root / f".{name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for file, text in render(name, machine, partition).items():
            (draft / file).write_text(text)
        load_site(str(draft))
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def render(name: str, machine: Machine, partition: str | None = None) -> dict[str, str]:
    """Text of each file of a profile, by file name; as `write_profile`."""
    usable = _usable(machine, partition)
    first = usable[0]
    partitions = [other for other in usable if _is_like(first, other, machine)]
    others = ", ".join(other.name for other in usable if other not in partitions)
    left_out = f"  # not {others}: their nodes, or how they are given, differ (--partition)" if others else ""
    nodes = machine.nodes_of(first.name)
    node, num_alike = _typical(nodes)
    limits = [(f"GraceTime of {p.name}", p.grace_s) for p in usable if p.preempt_mode != "OFF" and p.grace_s]
    limit, seconds = min([*limits, ("KillWait", machine.kill_wait_s)], key=lambda item: item[1])
    site = SITE.format(
        name=name,
        cluster=machine.cluster,
        version=machine.version,
        whole_nodes=str(first.whole_nodes).lower(),
        node=node,
        num_alike=num_alike,
        num_nodes=len(nodes),
        partition=first,
        ranks=node.gpus or 1,
        memory_gb=int(min(node.memory_mb for node in nodes) / 1024 * 10) / 10,
        left_out=left_out,
        queues="\n".join(_queue(partition) for partition in partitions),
        signal_delay_s=SIGNAL_DELAY_S,
        grace_s=max(1, int(seconds * SHARE_OF_GRACE)),
        grace_limit=f"{limit}, {seconds} s",
    )
    words = {"name": name, "cluster": machine.cluster, "version": machine.version}
    return {"site.yaml": site, "config.yaml": CONFIG.format(**words), "README.md": README.format(**words)}


def _usable(machine: Machine, wanted: str | None) -> list[Partition]:
    """Partitions open to users that have nodes; first the one wanted, or the default: where jobs go that name none."""
    usable = [p for p in machine.partitions if p.is_open and machine.nodes_of(p.name) and p.min_nodes <= p.max_nodes]
    names = [partition.name for partition in usable]
    if not usable:
        raise UserError(f"cluster {machine.cluster}: no partition with nodes is open to users")
    if wanted is not None and wanted not in names:
        raise UserError(f"--partition {wanted}: not one that is open to users and has nodes: {', '.join(names)}")
    return sorted(usable, key=lambda partition: (partition.name != wanted, not partition.is_default))


def _is_like(first: Partition, other: Partition, machine: Machine) -> bool:
    """Whether what a profile says of the nodes of `first` is true of those of another partition."""
    ours, theirs = machine.nodes_of(first.name), machine.nodes_of(other.name)
    least, other_least = (min(node.memory_mb for node in nodes) for nodes in (ours, theirs))
    shapes = [{(node.cores, node.gpus) for node in nodes} for nodes in (ours, theirs)]
    is_like = shapes[0] == shapes[1] and first.whole_nodes == other.whole_nodes
    return is_like and other_least * MEMORY_SHARE <= least <= other_least


def _typical(nodes: Sequence[Node]) -> tuple[Node, int]:
    """A node of the commonest shape, and how many have it."""
    shape, count = Counter((node.cores, node.gpus) for node in nodes).most_common(1)[0]
    return next(node for node in nodes if (node.cores, node.gpus) == shape), count


def _queue(partition: Partition) -> str:
    most = partition.walltime_max_min
    limit = "" if most is None else f"walltime_max_min: {most}, "
    size = f"min_nodes: {partition.min_nodes}, max_nodes: {partition.max_nodes}"
    name = json.dumps(partition.name)  # YAML takes JSON's strings, whatever is in them
    return f'  - {{partition: {name}, {size}, {limit}source: "scontrol show partition"}}'
