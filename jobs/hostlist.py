"""Expands a scheduler's compressed host list: `node[1-3,07],login` → node1 node2 node3 node07 login."""

from __future__ import annotations

import itertools
import re

_ITEM = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")
_BRACKET = re.compile(r"\[([^\]]*)\]")


def expand(text: str) -> list[str]:
    """Host names in order. Several brackets in a name multiply out, the last varying fastest, as Slurm does.

    Raises ValueError for a range that is not `low-high`.
    """
    return [name for item in _ITEM.findall(text) for name in _expand_item(item)]


def _expand_item(item: str) -> list[str]:
    parts = _BRACKET.split(item)  # text, bracket, text, bracket, ..., text
    choices = [_expand_ranges(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _expand_ranges(text: str) -> list[str]:
    numbers: list[str] = []
    for piece in text.split(","):
        low, _, high = piece.partition("-")
        if not high:
            numbers.append(low)
            continue
        if not (low.isdigit() and high.isdigit()):
            raise ValueError(f"not a host range: [{text}]")
        numbers += [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
    return numbers
