"""Which cores a local rank runs on: those beside its GPU, by the site's `node.rank_cores`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

SEPARATOR = ":"
"""Between the cores of one local rank and the next, as in mpiexec's `--cpu-bind=list:` of Cray PALS."""


def parse_cores(text: str) -> set[int]:
    """`0-3,8` as numbers."""
    spans = (part.partition("-") for part in text.split(","))
    return {core for first, _, last in spans for core in range(int(first), int(last or first) + 1)}


def masks(rank_cores: Sequence[str]) -> str:
    """The cores of every local rank as srun's `--cpu-bind=mask_cpu:` takes them."""
    return ",".join(f"{sum(1 << core for core in parse_cores(cores)):x}" for cores in rank_cores)


def bind(cores: str) -> None:
    """Keeps this process, and all that it starts, on some cores; one line where the machine has none of them."""
    try:
        os.sched_setaffinity(0, parse_cores(cores))
    except OSError:
        print(f"jobs: not bound: this node gives us none of cores {cores}", file=sys.stderr, flush=True)
