"""DeepSpeed's own launcher with its hostfile, over pdsh. Source: its launcher/runner.py of 0.19.8, and run with it."""

from __future__ import annotations

import sys

from jobs.launch.contract import Launcher
from jobs.launch.pdsh import tethered
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The line of a launch; with one host DeepSpeed starts the ranks itself, without pdsh."""
    return tethered(
        launch,
        [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            f"--hostfile={launch.folder / 'hostfile'}",
            "--launcher=pdsh",
            "--no_ssh_check",  # it asks ssh without the options that pdsh gives it
            f"--master_addr={launch.hosts[0]}",
            f"--master_port={launch.port}",
            "--no_python",
            "--no_local_rank",
            *launch.extra,
            *wrapper_argv(launch, ranks_from="agent", is_encoded=True),
        ],
    )


LAUNCHER = Launcher(
    name="deepspeed", argv=argv, sets_ranks=True, forwards_signals=False, keeps_environment=False, hosts_from=2
)
