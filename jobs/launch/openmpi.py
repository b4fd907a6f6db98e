"""Open MPI's mpirun. Source: mpirun(1) of version 4.1, and run with it."""

from __future__ import annotations

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The mpirun line of a launch. Without --bind-to, two ranks per node would have one core each."""
    binding = [] if "--bind-to" in launch.extra else ["--bind-to", "none"]
    return [
        "mpirun",
        "-n",
        str(launch.world_size),
        "--host",
        ",".join(f"{host}:{launch.ranks_per_node}" for host in launch.hosts),
        "--map-by",
        f"ppr:{launch.ranks_per_node}:node",
        *binding,
        *launch.extra,
        *wrapper_argv(launch, ranks_from="mpi", signals_by_file=True),
    ]


LAUNCHER = Launcher(
    name="openmpi",
    argv=argv,
    sets_ranks=False,
    forwards_signals=False,  # TERM, our request to save, would make it kill the ranks
    keeps_environment=False,
    hosts_from=1,
    # Where a scheduler ends all processes of a job (LSF), mpirun ends the ranks too: they have as long to save.
    environment={"OMPI_MCA_odls_base_sigkill_timeout": "30"},
)
