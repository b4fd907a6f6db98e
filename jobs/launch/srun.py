"""srun: ranks as one Slurm job step."""

from __future__ import annotations

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The srun line of a launch."""
    return [
        "srun",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.world_size}",
        f"--ntasks-per-node={launch.ranks_per_node}",
        f"--cpus-per-task={launch.cpus_per_rank}",  # since 22.05 srun no longer takes it from sbatch
        "--kill-on-bad-exit=1",  # one dead rank ends the step; the others would wait in a collective for ever
        "--unbuffered",
        *wrapper_argv(launch, ranks_from="slurm"),
    ]


LAUNCHER = Launcher(name="srun", argv=argv, sets_ranks=False, forwards_signals=True, is_single_node=False)
