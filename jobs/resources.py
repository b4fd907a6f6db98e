"""A workflow job's resources as a JobSpec."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import UserError
from jobs.launch import LAUNCHERS
from jobs.scheduler import SCHEDULERS
from jobs.site import Site
from jobs.spec import JobSpec, Launch

SLURM_KEYS = ("slurm_account", "slurm_partition", "slurm_qos", "slurm_extra")
NAMES = {"ranks_per_node": ("ranks_per_node", "tasks_per_node"), "gpus_per_node": ("gpus_per_node", "gpu")}


def job_spec(name: str, resources: Mapping[str, Any], threads: int, site: Site) -> JobSpec:
    """The JobSpec of a job: nodes, ranks_per_node (or tasks_per_node), cpus_per_task (default: threads), gpus_per_node,
    mem_mb (per node), runtime (minutes), and account, partition, qos, extra with or without `slurm_` before them.

    Raises UserError for an unknown slurm_ key and for what a node of the site does not have.
    """
    unknown = [key for key in resources if key.startswith("slurm_") and key not in SLURM_KEYS]
    if unknown:
        raise UserError(f"rule {name}: resource {unknown[0]}: not known; known: {', '.join(SLURM_KEYS)}")
    words = {key: resources.get(f"slurm_{key}", resources.get(key)) for key in ("account", "partition", "qos", "extra")}
    mem_mb = resources.get("mem_mb")
    spec = JobSpec(
        name=name,
        nodes=int(resources.get("nodes", 1)),
        ranks_per_node=_number(resources, "ranks_per_node", 1),
        cpus_per_rank=int(resources.get("cpus_per_task", threads)),
        gpus_per_node=_number(resources, "gpus_per_node", 0),
        mem_gb=int(mem_mb) / 1024 if mem_mb else None,
        runtime_min=int(resources.get("runtime", 10)),
        account=words["account"],
        partition=words["partition"],
        qos=words["qos"],
        extra=(*site.submit_args, *shlex.split(words["extra"] or "")),
        setup=site.setup,
        signal_delay_s=site.signal_delay_s,
        requeue=num_successors(resources, site) == 0,
    )
    _check_fits(spec, site)
    spec = _fit_queue(replace(spec, mem_gb=0) if site.whole_nodes else spec, site)
    return replace(spec, extra=tuple(option.replace("{nodes}", str(spec.nodes)) for option in spec.extra))


def num_successors(resources: Mapping[str, Any], site: Site) -> int:
    """How many jobs wait behind a job: those that train, and only they, go on where another ended."""
    return site.chain if resources.get("launches") else 0


def placed(command: list[str], resources: Mapping[str, Any], site: Site) -> list[str]:
    """The command of a job as its batch script runs it: through the launcher where the script has no compute node.

    A job with resource `launches` calls `jobs launch` itself, which must run where the script runs.
    """
    if not site.has_launch_node or resources.get("launches"):
        return command
    one_task = LAUNCHERS[site.launcher].one_task
    assert one_task is not None  # site_configs/schema.yaml
    return one_task(Launch(tuple(command), 1, 1, site.cores, Path(), site.gpus, extra=site.launch_args))


def _fit_queue(spec: JobSpec, site: Site) -> JobSpec:
    """Fills in the partition and cuts the runtime to what it allows; a partition that site.yaml lacks is let through.

    Raises UserError where no queue, or not the one asked for, takes this many nodes.
    """
    known = [queue for queue in site.queues if spec.partition in (None, queue.partition)]
    if not known:
        return spec
    queue = site.queue_for(spec.nodes, spec.partition)
    if queue is None:
        ranges = ", ".join(f"{queue.partition} {queue.min_nodes} to {queue.max_nodes}" for queue in known)
        raise UserError(
            f"rule {spec.name}: nodes={spec.nodes}: site {site.name} takes {ranges} (queues in its site.yaml)"
        )
    most_min = queue.walltime_max_min or spec.runtime_min
    if spec.runtime_min > most_min:
        what = f"runtime={spec.runtime_min} becomes {most_min} minutes"
        print(f"jobs: rule {spec.name}: {what}: the most of {queue.partition} at {spec.nodes} nodes", file=sys.stderr)
    return replace(spec, partition=queue.partition, runtime_min=min(spec.runtime_min, most_min))


def _number(resources: Mapping[str, Any], name: str, default: int) -> int:
    return next((int(resources[key]) for key in NAMES[name] if key in resources), default)


def _check_fits(spec: JobSpec, site: Site) -> None:
    """Compares with one node of the site; a queue without a scheduler would otherwise accept anything."""
    if SCHEDULERS[site.scheduler].batch is None and spec.nodes > 1:
        raise UserError(f"rule {spec.name}: nodes={spec.nodes}: site {site.name} has one node")
    limits = (
        ("cpus", spec.cpus_per_rank * spec.ranks_per_node, site.cores, "node.cores"),
        ("mem_mb", (spec.mem_gb or 0) * 1024, site.memory_gb * 1024, "node.memory_gb"),
        ("gpus_per_node", spec.gpus_per_node, site.gpus, "node.gpus"),
    )
    for what, asked, has, key in limits:
        if asked > has:
            raise UserError(
                f"rule {spec.name}: {what}={asked:g} per node: site {site.name} has {has:g} ({key} in its site.yaml)"
            )
