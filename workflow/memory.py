"""Host memory that the jobs of a run ask the scheduler for, in MB."""

from __future__ import annotations

import math
from pathlib import Path

from neox.config.derive import num_parameters
from neox.planner.memory import memory_per_rank
from workflow.experiment import Run

RUNTIME_MEMORY_MB = 1500
"""Host memory of one rank beside what the planner counts: interpreter, torch, communication buffers."""


def training_memory_mb(run: Run) -> int:
    """Host memory that one node of the run's training needs."""
    memory = memory_per_rank(run.config)
    return math.ceil(run.ranks_per_node * ((memory.total + memory.host) / 2**20 + RUNTIME_MEMORY_MB))


def index_memory_mb(run: Run, tokens: str, index: str) -> int:
    """Host memory to make the index maps: four bytes for each document of each epoch, and the sizes of all."""
    documents, train = Path(index).stat().st_size / 20, run.config.train
    num_tokens = (train.global_batch_size or 0) * train.steps * run.config.model.seq_length
    epochs = max(1, math.ceil(num_tokens * 2 / max(1, Path(tokens).stat().st_size)))  # 2 bytes a token, or 4
    return math.ceil(4 * documents * (epochs + 1) / 2**20 + 500)


def model_memory_mb(run: Run) -> int:
    """Host memory to read a checkpoint's fp32 weights and hold the model beside them."""
    return math.ceil(3 * 4 * num_parameters(run.config.model) / 2**20 + RUNTIME_MEMORY_MB)
