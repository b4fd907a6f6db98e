"""mpiexec.hydra of MPICH, Intel MPI and MVAPICH2. Source: MPICH's guide to Hydra; run with MPICH 4.0 only."""

from __future__ import annotations

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The mpiexec.hydra line of a launch; ranks are not bound unless the site's launch_args say so."""
    return [
        "mpiexec.hydra",
        "-n",
        str(launch.world_size),
        "-ppn",
        str(launch.ranks_per_node),
        "-hosts",
        ",".join(launch.hosts),
        *launch.extra,
        *wrapper_argv(launch, ranks_from="mpi", signals_by_file=True),
    ]


LAUNCHER = Launcher(
    name="hydra",
    argv=argv,
    sets_ranks=False,
    forwards_signals=False,  # the guide does not say which signals reach the ranks
    keeps_environment=False,
    hosts_from=1,
)
