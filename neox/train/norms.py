"""L2 norms of every logical tensor's weight and optimizer state, equal at every layout."""

from __future__ import annotations

import math

import torch

from neox.config.derive import padded_vocab
from neox.config.schema import Config
from neox.model.gpt import GPT
from neox.parallel.engine import Engine
from neox.parallel.optimizer import state_kinds
from neox.parallel.pieces import WEIGHT


class StateNorms:
    """What each tensor of a run has: its fp32 master and, as the optimizer names them, its moments."""

    def __init__(self, cfg: Config) -> None:
        with torch.device("meta"):
            names = [name for name, _ in GPT(cfg.model, padded_vocab(cfg.model)).named_parameters()]
        self._keys = [(kind, name) for name in names for kind in (WEIGHT, *state_kinds(name, cfg.optim))]

    def measure(self, engine: Engine) -> dict[str, float]:
        """Norm by `kind/name`, summed in fp64 over the pieces of all ranks; every rank calls it."""
        squares = dict.fromkeys(self._keys, 0.0)
        for piece in engine.pieces():
            squares[piece.kind, piece.name] += float(torch.linalg.vector_norm(piece.tensor, dtype=torch.float64)) ** 2
        totals = engine.sum_over_ranks(list(squares.values()))
        return {f"{kind}/{name}": math.sqrt(total) for (kind, name), total in zip(self._keys, totals, strict=True)}
