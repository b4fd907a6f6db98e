"""torchrun: ranks as child processes of one agent on each machine; several are started over ssh."""

from __future__ import annotations

import sys

from jobs.launch.contract import Launcher
from jobs.launch.pdsh import NODE, over_ssh
from jobs.ranks import wrapper_argv
from jobs.spec import Launch


def argv(launch: Launch) -> list[str]:
    """The torchrun line of a launch. --standalone picks a free port, so that launches do not collide.

    torchrun fills in ${local_rank} and takes $$ for $ in the ranks' words: theirs are doubled, or encoded.
    """
    agent = [sys.executable, "-m", "torch.distributed.run"]
    ranks = [f"--nproc-per-node={launch.ranks_per_node}", "--no-python"]
    if launch.nodes == 1:
        wrapper = [word.replace("$", "$$") for word in wrapper_argv(launch, ranks_from="torchrun")]
        return [*agent, "--standalone", "--nnodes=1", *ranks, *wrapper]
    master = [
        f"--nnodes={launch.nodes}",
        f"--node-rank={NODE}",
        f"--master-addr={launch.hosts[0]}",
        f"--master-port={launch.port}",
    ]
    wrapper = wrapper_argv(launch, ranks_from="agent", is_encoded=True)
    return over_ssh(launch, [*agent, *master, *ranks, *wrapper])


LAUNCHER = Launcher(
    name="torchrun", argv=argv, sets_ranks=True, forwards_signals=False, keeps_environment=False, hosts_from=2
)
