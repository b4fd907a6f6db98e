"""A Slurm cluster as its own commands describe it: partitions, nodes, preemption. Read on a login node."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from jobs.errors import UserError
from jobs.scheduler import slurm_show
from jobs.scheduler.slurm_show import Node, Partition
from jobs.shell import Result, run

NODES_AS_JSON = ("scontrol", "--json", "show", "nodes")
"""Since Slurm 23.02. Only nodes are asked for as JSON: their text may hold free text (Reason, OS, Comment), and what
else is asked is not in JSON, or not before 26.05 (the partitions' PreemptMode and default flag)."""
NODES_AS_TEXT = ("scontrol", "--oneliner", "show", "nodes")
PARTITIONS = ("scontrol", "--oneliner", "show", "partitions")
CONFIG = ("scontrol", "show", "config")
_SECONDS = re.compile(r"(\d+) sec")


@dataclass(frozen=True)
class Machine:
    """A cluster; partitions and nodes in the scheduler's order."""

    version: str
    cluster: str
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    requeues: bool
    """JobRequeue: whether jobs may be run again unless they say otherwise."""
    warns_before_preemption: bool
    """Whether the job's own warning signal comes when its grace time begins, and not TERM alone."""
    kill_wait_s: int
    """How long a cancelled job has between TERM and KILL."""

    def nodes_of(self, partition: str) -> list[Node]:
        return [node for node in self.nodes if partition in node.partitions]

    def partition(self, name: str | None) -> Partition | None:
        """A partition by its name, or the default one; None where there is none."""
        return next((p for p in self.partitions if p.name == name or (name is None and p.is_default)), None)


def read_machine(ask: Callable[[tuple[str, ...]], Result] = run) -> Machine:
    """Asks the cluster of this login node, four calls. Raises UserError with the words of a command that failed."""
    config = slurm_show.parse_config(_answer(ask, CONFIG))
    wait = _SECONDS.match(config.get("KillWait", ""))
    return Machine(
        version=config.get("SLURM_VERSION", ""),
        cluster=config.get("ClusterName", ""),
        partitions=tuple(slurm_show.parse_partitions(_answer(ask, PARTITIONS))),
        nodes=tuple(_nodes(ask)),
        requeues=config.get("JobRequeue") == "1",
        warns_before_preemption="preempt_send_user_signal" in config.get("SlurmctldParameters", ""),
        kill_wait_s=int(wait[1]) if wait else 30,  # slurm.conf(5)
    )


def _nodes(ask: Callable[[tuple[str, ...]], Result]) -> list[Node]:
    """From JSON where there is any, and it is of a form that we know."""
    done = ask(NODES_AS_JSON)
    if done.code == 0:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return slurm_show.parse_nodes_json(done.stdout)
    return slurm_show.parse_nodes_text(_answer(ask, NODES_AS_TEXT))


def _answer(ask: Callable[[tuple[str, ...]], Result], argv: tuple[str, ...]) -> str:
    done = ask(argv)
    if done.code:
        raise UserError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip() or f'exit code {done.code}'}")
    return done.stdout
