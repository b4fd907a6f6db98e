"""What is asked of a scheduler (JobSpec) and of a launcher (Launch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class JobSpec:
    """One batch job. Options left at None are not passed on: the scheduler's own default holds."""

    name: str
    nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_rank: int = 1
    gpus_per_node: int = 0
    mem_gb: float | None = None
    """Memory per node."""
    runtime_min: int = 10
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    exclude: tuple[str, ...] = ()
    """Nodes to stay away from."""
    extra: tuple[str, ...] = ()
    """Further options of the submit command, one argument each."""
    setup: tuple[str, ...] = ()
    """Shell lines of the batch script before its command: modules, environments."""
    requeue: bool = True
    after: str | None = None
    """Id of a job that must have ended, however it did, before this one starts."""
    signal_delay_s: int = 120
    """Seconds between the warning signal USR2 and the end of the walltime."""
    command: tuple[str, ...] = ()
    stdout: Path | None = None
    stderr: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """One command as `nodes` × `ranks_per_node` ranks inside an allocation."""

    command: tuple[str, ...]
    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    folder: Path
    """Shared folder for exit codes and signals of the ranks."""
    gpus_per_node: int = 0
    device_choice: str = ""
    """Who shows each rank one GPU: `scheduler`, or a variable set to the local rank; empty: all ranks see all."""
    extra: tuple[str, ...] = ()
    """Further options of the launcher, one argument each."""
    python: str = ""
    """What runs the wrapper around each rank; empty: the interpreter of this process."""
    hosts: tuple[str, ...] = ()
    """One per node, in the allocation's order; this machine where there is no allocation."""
    rank_cores: tuple[str, ...] = ()
    """Cores of each local rank, as `0-3,8`, to which its wrapper binds it; empty: whoever starts ranks may."""
    port: int | None = None
    """MASTER_PORT; None: one that is free when the launch begins."""
    logs: Path | None = None
    """Folder for what each rank says, beside the output of the launch itself."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node
