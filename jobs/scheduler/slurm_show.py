"""What `scontrol show` prints: text, the same since long before 20.02, and JSON of data parsers 0.0.38 to 0.0.46."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys start with a capital and hold no blank; a value may hold blanks (OS, Reason), and runs up to the next key.
_PAIR = re.compile(r"(?:^|\s)([A-Z][A-Za-z_:]*)=(.*?)(?=\s+[A-Z][A-Za-z_:]*=|\s*$)")
_GPUS = re.compile(r"(?:^|,)gpu:(?:[^:,()]+:)?(\d+)")


@dataclass(frozen=True)
class Partition:
    """A partition; limits are those of one job."""

    name: str
    is_default: bool
    is_open: bool
    """Up, and not for root alone."""
    num_nodes: int
    min_nodes: int
    max_nodes: int
    walltime_max_min: int | None
    """None: unlimited."""
    preempt_mode: str
    """OFF, REQUEUE, CANCEL, SUSPEND or GANG."""
    grace_s: int
    """Seconds a preempted job gets."""
    whole_nodes: bool


@dataclass(frozen=True)
class Node:
    """What jobs may use of a node."""

    name: str
    cores: int
    """Physical, without those set aside for the system."""
    memory_mb: int
    gpus: int
    partitions: frozenset[str]


def parse_config(text: str) -> dict[str, str]:
    """Lines of `Key = value`."""
    rows = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, mark, value in rows if mark}


def parse_partitions(text: str) -> list[Partition]:
    """One partition a line, as `scontrol --oneliner` prints them."""
    return [_partition(row) for row in _rows(text, "PartitionName")]


def _rows(text: str, first: str) -> list[dict[str, str]]:
    lines = (line for line in text.splitlines() if line.startswith(f"{first}="))
    return [dict(_PAIR.findall(line)) for line in lines]


def _partition(row: Mapping[str, str]) -> Partition:
    num_nodes = number(row.get("TotalNodes"))
    most = row.get("MaxNodes", "")
    return Partition(
        name=row["PartitionName"],
        is_default=row.get("Default") == "YES",
        is_open=row.get("State") == "UP" and row.get("RootOnly") != "YES",
        num_nodes=num_nodes,
        min_nodes=max(1, number(row.get("MinNodes"))),
        max_nodes=min(num_nodes, int(most)) if most.isdigit() else num_nodes,
        walltime_max_min=minutes(row.get("MaxTime", "UNLIMITED")),
        preempt_mode=row.get("PreemptMode", "OFF"),
        grace_s=number(row.get("GraceTime")),
        whole_nodes=row.get("OverSubscribe") == "EXCLUSIVE" or row.get("Exclusive") in ("NODE", "TOPO"),  # since 26.05
    )


def minutes(text: str) -> int | None:
    """Minutes of one of Slurm's times, `2-12:00:00`, `02:00:00` or `30:00`; None for UNLIMITED."""
    days, _, clock = text.rpartition("-")
    if not re.fullmatch(r"[\d:]+", clock):
        return None
    parts = [int(part) for part in clock.split(":")]
    hours, minute = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return int(days or 0) * 1440 + hours * 60 + minute


def parse_nodes_text(text: str) -> list[Node]:
    """One node a line, as `scontrol --oneliner` prints them."""
    return [
        _node(
            name=row["NodeName"],
            cores=(row.get("Sockets"), row.get("CoresPerSocket"), row.get("CoreSpecCount")),
            memory=(row.get("RealMemory"), row.get("MemSpecLimit")),
            gres=row.get("Gres", ""),
            partitions=row.get("Partitions", "").split(","),
        )
        for row in _rows(text, "NodeName")
    ]


def parse_nodes_json(text: str) -> list[Node]:
    """The `nodes` of `scontrol show nodes --json`, and of `sinfo --json` in 21.08 and 22.05.

    Numbers are plain, or objects with `set`, `infinite` and `number`; keys that a version lacks count as nothing.
    """
    return [
        _node(
            name=row["name"],
            cores=(row.get("sockets"), row.get("cores"), row.get("specialized_cores")),
            memory=(row.get("real_memory"), row.get("specialized_memory")),
            gres=row.get("gres") or "",
            partitions=row.get("partitions") or [],
        )
        for row in json.loads(text)["nodes"]
    ]


def _node(name: str, cores: tuple[Any, Any, Any], memory: tuple[Any, Any], gres: str, partitions: list[str]) -> Node:
    sockets, per_socket, for_system = map(number, cores)
    real, kept = map(number, memory)
    gpus = sum(int(count) for count in _GPUS.findall(gres))
    return Node(name, sockets * per_socket - for_system, real - kept, gpus, frozenset(partitions))


def number(value: Any) -> int:
    """An integer as text or either form of JSON; 0 where it is absent or not set."""
    if isinstance(value, Mapping):
        return int(value.get("number") or 0) if value.get("set", True) else 0
    return int(value) if str(value or "").isdigit() else 0
