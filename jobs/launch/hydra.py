"""mpiexec.hydra of MPICH, Intel MPI and MVAPICH2. Run with MPICH 4.0 only.

Sources: MPICH's guide to Hydra; Intel's developer guide, "Controlling Process Placement"; MVAPICH2's user guide, "Run
using Hydra".
"""

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
    environment={
        "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "0",  # or Intel MPI takes the job's ranks per node instead of -ppn
        "MV2_ENABLE_AFFINITY": "0",  # or MVAPICH2 binds each rank to one core when it calls MPI_Init
    },
)
