"""Everything outside the model that a repeated run must find equal: seeds, algorithms, random state."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def make_deterministic(seed: int) -> None:
    """Seeds every generator, alike on all ranks, and asks torch for reproducible algorithms.

    The number of threads changes sums; it is what OMP_NUM_THREADS says, which the launcher sets.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not reproducible without it
    torch.use_deterministic_algorithms(True)  # with warn_only, attention's backward on GPUs would not be reproducible
    # Filling memory costs time, and nothing reads it before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed % 2**32)


def random_state() -> dict[str, Any]:
    """State of torch's CPU generator, JSON-able."""
    return {"torch_cpu": torch.get_rng_state().numpy().tobytes().hex()}


def restore_random_state(state: dict[str, Any]) -> None:
    """The reverse of `random_state`."""
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch_cpu"]), dtype=torch.uint8))
