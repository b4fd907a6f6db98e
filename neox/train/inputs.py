"""The batches that a run trains and validates on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neox.config.errors import UserError
from neox.config.schema import Config
from neox.data.loader import Batches
from neox.data.parts import Part, Parts
from neox.model.context import MicroBatch
from neox.parallel.engine import Engine


@dataclass(frozen=True)
class Inputs:
    """One data-parallel rank's share of both parts, and what identifies the order of the data."""

    train: Batches
    valid: Batches | None
    """None: the run does not validate."""
    fingerprint: dict[str, Any]
    """Sizes of the token files and of the order of their samples; it must not change within a run."""

    def valid_micro_batches(self, start: int, num_batches: int) -> list[MicroBatch]:
        """Micro-batches of `num_batches` global batches of the validation part, from sample `start` on."""
        assert self.valid is not None
        size = self.valid.global_batch_size
        return [pair for number in range(num_batches) for pair in self.valid.step(start + number * size)]


def build_inputs(cfg: Config, parts: Parts, engine: Engine) -> Inputs:
    """Opens both parts; the first rank makes the index maps that are not there, and the others wait for it.

    Raises:
        UserError: on every rank, when the index maps cannot be written.
    """
    mistake = None
    if engine.rank == 0:
        try:
            parts.make()
        except UserError as error:
            mistake = str(error)
    engine.agree(mistake)

    def batches(part: Part) -> Batches:
        train = cfg.train
        assert train.micro_batch_size and train.grad_accum and cfg.parallel.dp
        sizes = (train.micro_batch_size, train.grad_accum, cfg.parallel.dp, engine.dp_index)
        dropout_seed = train.seed if cfg.model.hidden_dropout or cfg.model.attention_dropout else None
        return Batches(part.open(), *sizes, parts.ends, dropout_seed, drop_last=cfg.compat == "neox_v2")

    valid = None if parts.valid is None else batches(parts.valid)
    return Inputs(batches(parts.train), valid, parts.train.fingerprint())
