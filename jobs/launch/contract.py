"""What every launcher provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jobs.spec import Launch


@dataclass(frozen=True)
class Launcher:
    """How a command becomes ranks."""

    name: str
    argv: Callable[[Launch], list[str]]
    sets_ranks: bool
    """Whether it sets RANK, WORLD_SIZE ... itself; otherwise the scheduler's environment tells."""
    forwards_signals: bool
    """Whether signals it receives reach the ranks; otherwise they go through a file in the launch folder."""
    keeps_environment: bool = True
    """Whether ranks have the launcher's environment; otherwise they read it from a file in the launch folder."""
    hosts_from: int | None = None
    """From how many nodes on it goes to the hosts that it is given; None: the scheduler says where its ranks are."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it must have itself, beside those of its ranks; the site's own win."""
    apart: tuple[str, ...] = ()
    """What is run before the ranks in every other allocation of a job, for theirs not to be taken for those of the one
    before; empty: nothing."""
    one_task: Callable[[Launch], list[str]] | None = None
    """The command as one plain process on a compute node, for sites whose batch scripts run elsewhere."""
