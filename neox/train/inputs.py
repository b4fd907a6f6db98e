"""The batches that a run trains and validates on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from neox.config.errors import UserError
from neox.config.schema import Config
from neox.data.indexed import IndexedReader
from neox.data.loader import Batches, TokenDataset
from neox.data.samples import requested_samples
from neox.parallel.engine import Engine

MicroBatch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """One data-parallel rank's share of both parts, and what identifies the order of the data."""

    train: Batches
    valid: Batches | None
    """None: the run does not validate."""
    fingerprint: dict[str, Any]
    """Size of the token file and of the shuffled order; it must not change within a run."""

    def valid_micro_batches(self, start: int, num_batches: int) -> list[MicroBatch]:
        """Micro-batches of `num_batches` global batches of the validation part, from sample `start` on."""
        assert self.valid is not None
        size = self.valid.global_batch_size
        return [pair for number in range(num_batches) for pair in self.valid.step(start + number * size)]


def build_inputs(cfg: Config, engine: Engine) -> Inputs:
    """Opens both parts; the first rank builds what is not cached, and the others wait for it.

    Raises:
        UserError: on every rank, when the token files or the split do not do.
    """
    mistake = None
    if engine.rank == 0:
        try:
            _open(cfg, engine.dp_index)
        except UserError as error:
            mistake = str(error)
    engine.agree(mistake)
    return _open(cfg, engine.dp_index)


def _open(cfg: Config, dp_index: int) -> Inputs:
    train = cfg.train
    dataset = _dataset(cfg, "train")
    valid = _dataset(cfg, "valid") if train.valid_interval else None
    assert cfg.data.path is not None and train.micro_batch_size and train.grad_accum and cfg.parallel.dp
    sizes = (train.micro_batch_size, train.grad_accum, cfg.parallel.dp, dp_index)
    reader = IndexedReader(cfg.data.path)
    return Inputs(
        train=Batches(dataset, *sizes),
        valid=Batches(valid, *sizes) if valid is not None else None,
        fingerprint={"documents": len(reader), "tokens": len(reader.tokens), "samples": len(dataset)},
    )


def _dataset(cfg: Config, part: str) -> TokenDataset:
    train = cfg.train
    assert cfg.data.path is not None and train.global_batch_size is not None
    count = requested_samples(part, train.steps, train.global_batch_size, train.valid_interval, train.valid_batches)
    return TokenDataset(cfg.data.path, part, count, cfg.model.seq_length, cfg.data.seed, cfg.data.split)
