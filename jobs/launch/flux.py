"""flux run: ranks as one job of the Flux instance around us. Source: flux-run(1) and flux-shell-options(7)."""

from __future__ import annotations

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The flux run line of a launch.

    The command is encoded, for Flux fills in `{{id}}` and the like in arguments. Signals go by file: older versions of
    flux run pass only INT on. No time-out after the first rank has ended: the others may still be saving. No input:
    all brokers but the first shut down at once when a job is ended, and ranks there would die with it (seen in 0.88).
    """
    gpus = launch.gpus_per_node // launch.ranks_per_node
    return [
        "flux",
        "run",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.world_size}",
        f"--cores-per-task={launch.cpus_per_rank}",
        *([f"--gpus-per-task={gpus}"] if gpus else []),
        f"--requires=hosts:{','.join(dict.fromkeys(launch.hosts))}",  # rank 0 is on the first: MASTER_ADDR
        f"--env=JOBS_FLUX_RANKS_PER_NODE={launch.ranks_per_node}",
        "--setopt=exit-timeout=none",
        "--unbuffered",
        "--input=/dev/null",
        *launch.extra,
        *wrapper_argv(launch, ranks_from="flux", signals_by_file=True, is_encoded=True),
    ]


LAUNCHER = Launcher(name="flux", argv=argv, sets_ranks=False, forwards_signals=False, hosts_from=1)
