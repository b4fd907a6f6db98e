"""torchrun: ranks as child processes of one agent on this machine."""

from __future__ import annotations

import sys

from jobs.launch.contract import Launcher
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The torchrun line of a launch. --standalone picks a free port, so that launches do not collide."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nnodes=1",
        f"--nproc-per-node={launch.ranks_per_node}",
        "--no-python",
        *wrapper_argv(launch, ranks_from="torchrun"),
    ]


LAUNCHER = Launcher(name="torchrun", argv=argv, sets_ranks=True, forwards_signals=False, is_single_node=True)
