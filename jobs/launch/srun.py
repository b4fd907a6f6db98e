"""srun: ranks as one Slurm job step."""

from __future__ import annotations

from jobs.binding import masks
from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The srun line of a launch.

    Slurm gets the cores of local ranks as masks, unless the site's options say how it binds. Masks say how many cores a
    rank has: with a number beside them Slurm cuts the step down to other cores (LUMI user guide, "do not mix cpu masks
    with --cpus-per-task").
    """
    is_bound = any(option.startswith(("--cpu-bind", "--gpu-bind")) for option in launch.extra)
    if launch.rank_cores and not is_bound:
        cores = f"--cpu-bind=mask_cpu:{masks(launch.rank_cores)}"
    else:
        cores = f"--cpus-per-task={launch.cpus_per_rank}"  # since 22.05 not taken from sbatch
    return [
        "srun",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.world_size}",
        f"--ntasks-per-node={launch.ranks_per_node}",
        cores,
        "--kill-on-bad-exit=1",  # one dead rank ends the step; the others would wait in a collective for ever
        "--unbuffered",
        *launch.extra,
        *wrapper_argv(launch, ranks_from="slurm"),
    ]


LAUNCHER = Launcher(
    name="srun",
    argv=argv,
    sets_ranks=False,
    forwards_signals=True,
    # A step that srun ends and that is not gone within MessageTimeout (10 s) slurmctld ends once more, a minute later:
    # then that of the same number in the job's next allocation, whose ranks take as long to save, and so on for ever
    apart=("srun", "--nodes=1", "--ntasks=1", "true"),
)
