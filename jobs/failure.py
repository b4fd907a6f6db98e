"""Finds in a failed job's logs the one line that says why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

TAIL_BYTES = 1 << 16
# `neox: error: ...`, `slurmstepd: error: ...`, and the last line of a Python traceback, in this order of worth.
_PATTERNS = (
    re.compile(r"^(?:\d+: )?(?:neox|jobs)(?: [\w-]+)?: error: .+"),
    re.compile(
        r"^(?:\w+\.)*(?!WorkflowError|CalledProcessError|PayloadError|ChildFailedError)\w+(?:Error|Exception): .+"
    ),
    re.compile(r"^[\w-]+: error: .+"),
)


def tail(file: Path, num_bytes: int = TAIL_BYTES, start: int = 0) -> list[str]:
    """The last lines of a log, no more than what is behind byte `start`; none if it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(start, file.stat().st_size - num_bytes))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def error_line(logs: Sequence[Path]) -> str:
    """The most telling error line of the logs, the latest of its kind; empty if there is none."""
    return telling_line([line.strip() for file in logs for line in tail(file)])


def telling_line(lines: Sequence[str]) -> str:
    """The latest of the most telling kind among some lines; empty if there is none."""
    for pattern in _PATTERNS:
        matching = [line for line in lines if pattern.match(line)]
        if matching:
            return matching[-1][:500]
    return ""
