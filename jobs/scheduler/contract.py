"""What every scheduler provides: tables and pure functions, nothing that runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jobs.hostlist import expand
from jobs.spec import JobSpec
from jobs.state import State

Said = TypeVar("Said")
_ROW = re.compile(r"^ *([^\s|]+) *\|", re.MULTILINE)


def exited_well(code: int, text: str) -> bool:
    return code == 0


def rows(output: str) -> dict[str, str]:
    """Lines of `ID|TEXT`, by id. A text may hold line breaks: only an id and a bar begin another job."""
    words = _ROW.split(output)
    return dict(zip(words[1::2], words[2::2], strict=True))


@dataclass(frozen=True)
class Status:
    """What a scheduler says of a job."""

    state: State
    reason: str = ""
    """Why it waits or, where that is told too, why it failed; in the scheduler's words."""
    start: str = ""
    """When it is expected to start, where the scheduler has an opinion."""


NOTHING = Status(State.UNKNOWN)
"""What is said of a job that the scheduler does not know, or not now."""


@dataclass(frozen=True)
class Query(Generic[Said]):
    """One question about many jobs."""

    argvs: tuple[Callable[[Sequence[str]], list[str]], ...]
    """Ways to ask it, for different versions: the first that is answered is believed."""
    parse: Callable[[str], dict[str, Said]]
    """What is said of each job, by its id, from the standard output of any of them. Raises ValueError for rubbish."""
    is_answer: Callable[[int, str], bool] = exited_well
    """Whether an exit code and the output with it is an answer at all; "no such job" is one."""


@dataclass(frozen=True)
class Array:
    """Many jobs by one submission, which differ only in a number."""

    submit: Callable[[JobSpec, Path, int], list[str]]
    first: int
    """Number of the first of them."""
    job_id: Callable[[str, str], str]
    """Id of one of them, from the submission's id and its number; every other command takes it."""
    number: str
    """Variable in the job with its number."""
    base_id: str
    """Variable in the job with the submission's id."""


@dataclass(frozen=True)
class Batch:
    """The submission half of a scheduler."""

    script: Callable[[JobSpec], str]
    submit: Callable[[JobSpec, Path], list[str]]
    parse_id: Callable[[str], str]
    queries: tuple[Query[Status], ...]
    """Asked in order, each only about jobs that those before it do not know. The first must answer."""
    listing: Query[str]
    """The name or the command of each of the user's jobs, lately ended ones too, in which that of its script is: for
    submissions whose answer was lost."""
    is_refusal: Callable[[str], bool]
    """Whether what a failed submit command said is the scheduler's decision, and not a fault on the way to it."""
    cancel: Callable[[Sequence[str]], list[str]]
    requeue: Callable[[str], list[str]] | None
    """Runs the same job again under the same id; None where the scheduler cannot."""
    ends: tuple[Callable[[str], list[str]], Callable[[str], list[State]]] | None = None
    """Prints how each allocation of a job ended, in order, and its parser; None: nobody keeps that."""
    waiting: tuple[str, ...] = ()
    """Prints `ID|QUEUE` for each waiting job of all users, the next to start first; empty: nobody can tell."""
    hides: tuple[tuple[str, ...], Callable[[str], bool]] | None = None
    """Prints the scheduler's settings, and says of them whether users may not see each other's jobs; None: they may."""
    ending: tuple[tuple[Callable[[str], list[str]], Callable[[str], State]], ...] = ()
    """Each prints something of a job whose ranks run still, and says what ends it; UNKNOWN: that does not tell."""
    array: Array | None = None
    """None where the scheduler has no job arrays, or ours does not use them."""
    held: tuple[str, Callable[[str], list[str]]] | None = None
    """Why a job waits for ever that no node could start, and the command that lets it go on; None: none is held so."""
    warns: bool = True
    """Whether the job gets USR2 from the scheduler before its walltime ends; otherwise it warns itself."""


@dataclass(frozen=True)
class Scheduler:
    """One scheduler: its name, the words of its environment, and how to submit (None: jobs are child processes)."""

    name: str
    environment: Mapping[str, str]
    """Ours → its variable: job_id, cluster (if it has a name), num_nodes, nodes, cpus_per_rank; in a rank also rank,
    world_size, local_rank, tasks_per_node, step_nodes."""
    batch: Batch | None
    hosts: Callable[[str], list[str]] = expand
    """Hosts that run ranks, from the value of `nodes` or `step_nodes`."""
