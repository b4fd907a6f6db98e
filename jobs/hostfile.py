"""Files of lines `HOST slots=RANKS`, as DeepSpeed and GPT-NeoX read them (deepspeed/launcher/runner.py)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jobs.errors import UserError
from jobs.launch import LAUNCHERS
from jobs.spec import Launch


def hostfile(folder: Path) -> Path:
    return folder / "hostfile"


def hosts_of(file: Path) -> dict[str, int]:
    """Slots by host, in order. Raises UserError naming the line that is none, or that names a host again."""
    hosts: dict[str, int] = {}
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile {file}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if not (words := line.partition("#")[0].split()):
            continue
        if len(words) != 2 or not re.fullmatch(r"slots=[1-9]\d*", words[1]) or words[0] in hosts:
            raise UserError(f"{file}:{number}: {line!r}: must be `HOST slots=N`, each host once")
        hosts[words[0]] = int(words[1].removeprefix("slots="))
    if not hosts:
        raise UserError(f"--hostfile {file}: names no host")
    return hosts


def size_by(file: Path, launcher: str, nodes: int, ranks_per_node: int | None) -> tuple[list[str], int]:
    """The hosts of a file, and ranks on each of the first `nodes`: those that were asked for, or the slots.

    Raises UserError where the slots differ, or where the launcher would not go to these hosts.
    """
    hosts, least = hosts_of(file), LAUNCHERS[launcher].hosts_from
    if least is None:
        raise UserError(f"--hostfile: {launcher} takes no hosts; the scheduler places its ranks")
    first = next(iter(hosts))
    if nodes < least and first not in ("localhost", os.uname().nodename):
        raise UserError(f"--hostfile {file}: one node of {launcher} is this machine, not {first}")
    slots = set(list(hosts.values())[:nodes])
    if ranks_per_node is None and len(slots) > 1:
        raise UserError(f"--hostfile {file}: slots differ ({min(slots)} to {max(slots)}): give --ranks-per-node")
    return list(hosts), ranks_per_node or slots.pop()


def hostfile_text(launch: Launch) -> str:
    return "".join(f"{host} slots={launch.ranks_per_node}\n" for host in launch.hosts)
