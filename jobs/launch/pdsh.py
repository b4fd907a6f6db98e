"""pdsh: one process per node over ssh, which starts the node's ranks. Source: pdsh(1) of 2.34, and run with it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from jobs.launch.contract import Launcher
from jobs.ranks import encode, wrapper_argv
from jobs.spec import Launch

NODE = "@NODE@"


def argv(launch: Launch) -> list[str]:
    """The pdsh line of a launch."""
    _, *wrapper = wrapper_argv(launch, ranks_from="agent", is_encoded=True)  # Python as the agent itself
    agent = encode([str(launch.nodes), str(launch.ranks_per_node), str(launch.folder), *wrapper])
    return over_ssh(launch, [sys.executable, "-m", "jobs.node", agent, NODE])


def over_ssh(launch: Launch, words: Sequence[str]) -> list[str]:
    """`words` once on each host, with NODE as its number; ssh is as PDSH_SSH_ARGS_APPEND and ~/.ssh say.

    A shell reads the line on the other side, and pdsh the percent signs: so nothing of the user's is on it as it is.
    """
    quoted = shlex.join(words).replace("%", "%%").replace(NODE, "%n")
    fan_out = str(max(32, launch.nodes))  # all at once: a launch of fewer would wait for ranks that have not begun
    hosts = ",".join(launch.hosts)
    line = ["pdsh", "-S", "-N", "-R", "ssh", "-f", fan_out, "-w", hosts, *launch.extra, f"exec {quoted}"]
    return tethered(launch, line)


def tethered(launch: Launch, line: Sequence[str]) -> list[str]:
    """A line that starts processes elsewhere, below what tells them when we are killed."""
    return [sys.executable, "-m", "jobs.tether", str(launch.folder), *line]


LAUNCHER = Launcher(
    name="pdsh", argv=argv, sets_ranks=False, forwards_signals=False, keeps_environment=False, hosts_from=1
)
