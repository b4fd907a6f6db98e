"""The configuration: nested frozen dataclasses, with unit, default and source under every field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neox.config.schema.checkpoint import CheckpointConfig
from neox.config.schema.data import DataConfig
from neox.config.schema.log import LogConfig
from neox.config.schema.model import ModelConfig
from neox.config.schema.optim import OptimConfig
from neox.config.schema.parallel import ParallelConfig
from neox.config.schema.train import TrainConfig

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "TrainConfig",
]


@dataclass(frozen=True)
class Config:
    """Everything `neox train` needs to know; each component receives its own section."""

    model: ModelConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compat: Literal["none", "neox_v1", "neox_v2"] = "none"
    """Whose exact behaviour to have where GPT-NeoX's versions differ from each other or from ours: neox_v1 is its tag
    v1.0, which trained Pythia and GPT-NeoX-20B, neox_v2 its commit ea7aefd8. Its own files imply neox_v2."""
