"""srun: ranks as one Slurm job step."""

from __future__ import annotations

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The srun line of a launch.

    Masks of cores say how many cores a rank has: with a number beside them Slurm cuts the step down to other cores
    (LUMI user guide, "do not mix cpu masks with --cpus-per-task").
    """
    has_masks = any(option.startswith("--cpu-bind=") and "mask_cpu" in option for option in launch.extra)
    cpus = [] if has_masks else [f"--cpus-per-task={launch.cpus_per_rank}"]  # since 22.05 not taken from sbatch
    return [
        "srun",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.world_size}",
        f"--ntasks-per-node={launch.ranks_per_node}",
        *cpus,
        "--kill-on-bad-exit=1",  # one dead rank ends the step; the others would wait in a collective for ever
        "--unbuffered",
        *launch.extra,
        *wrapper_argv(launch, ranks_from="slurm"),
    ]


LAUNCHER = Launcher(name="srun", argv=argv, sets_ranks=False, forwards_signals=True)
