"""L2 norms of every logical tensor's weight, optimizer state and gradient, equal at every layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neox.config.derive import padded_vocab
from neox.config.schema import Config
from neox.model.gpt import GPT
from neox.parallel.engine import Engine
from neox.parallel.optimizer import state_kinds
from neox.parallel.pieces import WEIGHT, Piece

PART = 1 << 24
"""Elements that are fp64 at a time: 128 MiB."""


class StateNorms:
    """What each tensor of a run has: its fp32 master and, as the optimizer names them, its moments.

    Adafactor's factors are not of a tensor's shape, and are left out.
    """

    def __init__(self, cfg: Config) -> None:
        self._keys = [(kind, name) for name in tensor_sizes(cfg) for kind in (WEIGHT, *state_kinds(name, cfg.optim))]

    def measure(self, engine: Engine) -> dict[str, float]:
        """Norm by `kind/name`, summed in fp64 over the pieces of all ranks; every rank calls it."""
        squares = dict.fromkeys(self._keys, 0.0)
        for piece in engine.pieces():
            if (piece.kind, piece.name) in squares:
                squares[piece.kind, piece.name] += square(piece.tensor)
        totals = engine.sum_over_ranks(list(squares.values()))
        return {f"{kind}/{name}": math.sqrt(total) for (kind, name), total in zip(self._keys, totals, strict=True)}


class GradientNorms:
    """Of one step's gradient before clipping."""

    def __init__(self, cfg: Config) -> None:
        self._sizes = tensor_sizes(cfg)
        self._squares, self._zeros = dict.fromkeys(self._sizes, 0.0), dict.fromkeys(self._sizes, 0.0)

    def see(self, piece: Piece) -> None:
        """Takes in a piece, as `Engine.train_step` gives it."""
        self._squares[piece.name] += square(piece.tensor)
        self._zeros[piece.name] += piece.numel - int(torch.count_nonzero(piece.tensor))

    def measure(self, engine: Engine) -> tuple[dict[str, float], dict[str, float]]:
        """Norm by `gradient/name`, and by name the share of elements that are zero; every rank calls it after a step.

        It begins anew for the next step.
        """
        totals = iter(engine.sum_over_ranks([*self._squares.values(), *self._zeros.values()]))
        norms = {f"gradient/{name}": math.sqrt(next(totals)) for name in self._sizes}
        zeros = {name: next(totals) / size for name, size in self._sizes.items()}
        self._squares, self._zeros = dict.fromkeys(self._sizes, 0.0), dict.fromkeys(self._sizes, 0.0)
        return norms, zeros


def tensor_sizes(cfg: Config) -> dict[str, int]:
    """Number of elements of every logical tensor."""
    with torch.device("meta"):
        model = GPT(cfg.model, padded_vocab(cfg.model))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def square(tensor: Tensor) -> float:
    """The squared norm, summed in fp64, in which only a part of the tensor is at a time."""
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in tensor.split(PART))
