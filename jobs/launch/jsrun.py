"""jsrun: ranks in one resource set per node (Summit's LSF). Source: OLCF's Summit user guide; never run here."""

from __future__ import annotations

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The jsrun line of a launch. Signals go by file: the guide does not say that jsrun passes any on."""
    return [*resource_sets(launch), *wrapper_argv(launch, ranks_from="lsf", signals_by_file=True)]


def one_task_argv(launch: Launch) -> list[str]:
    return [*resource_sets(launch), *launch.command]


def resource_sets(launch: Launch) -> list[str]:
    """One set per node: every rank sees all GPUs, and local ranks count within the node."""
    return [
        "jsrun",
        f"--nrs={launch.nodes}",
        "--rs_per_host=1",
        f"--tasks_per_rs={launch.ranks_per_node}",
        f"--cpu_per_rs={launch.ranks_per_node * launch.cpus_per_rank}",
        f"--gpu_per_rs={launch.gpus_per_node}",
        "--launch_distribution=packed",
        f"--bind=packed:{launch.cpus_per_rank}",
        *launch.extra,
    ]


LAUNCHER = Launcher(
    name="jsrun",
    argv=argv,
    sets_ranks=False,
    forwards_signals=False,
    one_task=one_task_argv,
)
