"""Positions added to the embedding, and rotary angles for queries and keys; all angles in fp32.

GPT-NeoX's half-precision tables lose long contexts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neox.config.derive import rotary_dims
from neox.config.schema import ModelConfig
from neox.config.shape import ROTARY_RAMPS, num_position_rows
from neox.model.context import PLAIN, Context


def frequencies(dims: int, base: float, device: torch.device | None = None) -> Tensor:
    """base^(-2i / dims) for pair i of `dims` dimensions, [dims / 2] fp32: radians per token.

    The reciprocal of the power, as GPT-NeoX and transformers have it, to the last bit.
    """
    return 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims)


def of_stretch(positions: Tensor, x: Tensor, stretch: int) -> Tensor:
    """Those of the whole `positions` [b, s] that belong to `x`, which is all of it or, under sequence parallelism, the
    equal stretch with this number."""
    return positions[:, stretch * x.shape[1] : (stretch + 1) * x.shape[1]]


class LearnedPositions(nn.Module):
    """Adds a learned vector per position, of which the first is in row `position_offset`."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.offset, self.stretch = cfg.position_offset, 0
        self.weight = nn.Parameter(torch.empty(num_position_rows(cfg), cfg.hidden_size))

    def forward(self, x: Tensor, context: Context = PLAIN, start: int = 0) -> Tensor:
        """[b, s, h] at the context's positions, else at start … start + s - 1."""
        if context.positions is not None:
            return x + F.embedding(self.offset + of_stretch(context.positions, x, self.stretch), self.weight)
        first = self.offset + start + self.stretch * x.shape[1]
        return x + self.weight[first : first + x.shape[1]]


class SinusoidalPositions(nn.Module):
    """Adds the sines, then the cosines of every frequency (GPT-NeoX's order: halves, not interleaved)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.base, self.stretch = cfg.rotary_base, 0

    def forward(self, x: Tensor, context: Context = PLAIN, start: int = 0) -> Tensor:
        """[b, s, h] at the context's positions, else at start … start + s - 1."""
        if context.positions is None:
            positions = consecutive(start + self.stretch * x.shape[1], x.shape[1], x.device)
        else:
            positions = of_stretch(context.positions, x, self.stretch)
        angles = positions.unsqueeze(-1) * frequencies(x.shape[2], self.base, x.device)
        return x + torch.cat((angles.sin(), angles.cos()), -1).to(x.dtype)


POSITIONS: dict[str, type[nn.Module]] = {"learned": LearnedPositions, "sinusoidal": SinusoidalPositions}
"""model.positions → layer after the embedding; the other kinds act inside attention."""


class Rotary:
    """Tables of the rotary embedding with the configured scaling."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.cfg = cfg
        self.magnitude = _yarn_magnitude(cfg)

    def tables(
        self, start: int, length: int, device: torch.device, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin, each [length, rotated / 2] fp32, of positions start … start + length - 1.

        Where samples differ, positions [b, length]: each [b, 1, length, rotated / 2].
        """
        places = consecutive(start, length, device) if positions is None else positions.unsqueeze(1)
        angles = places.unsqueeze(-1) * rotary_frequencies(self.cfg, device)
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude


def consecutive(start: int, length: int, device: torch.device) -> Tensor:
    """[length]: start … start + length - 1."""
    return torch.arange(start, start + length, device=device)


def rotary_frequencies(cfg: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Radians per token of each rotated pair, [rotated / 2] fp32, after the configured scaling."""
    dims, factor = rotary_dims(cfg), cfg.rotary_factor
    if cfg.rotary_scaling == "ntk":
        return frequencies(dims, cfg.rotary_base * factor ** (dims / (dims - 2)), device)
    plain = frequencies(dims, cfg.rotary_base, device)
    if cfg.rotary_scaling == "none":
        return plain
    if cfg.rotary_scaling == "linear":
        return plain / factor
    kept = _kept_share(cfg, plain)
    return plain * kept + plain / factor * (1 - kept)


def _kept_share(cfg: ModelConfig, plain: Tensor) -> Tensor:
    """How far each frequency is left alone, 0…1: 1 where it turns often within the trained context.

    YaRN blends evenly over pairs, between those (in whole numbers) at the ends of the ramp; Llama 3 evenly over turns.
    """
    trained = cfg.rotary_trained_length or cfg.seq_length / cfg.rotary_factor
    low, high = cfg.rotary_ramp or ROTARY_RAMPS[cfg.rotary_scaling]
    if cfg.rotary_scaling == "llama3":
        turns = trained * plain / (2 * math.pi)
        return ((turns - low) / (high - low)).clamp(0, 1)
    dims = 2 * len(plain)

    def pair(turns: float) -> float:
        return dims * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(cfg.rotary_base))

    first, last = max(math.floor(pair(high)), 0), min(math.ceil(pair(low)), dims - 1)
    pairs = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
    return 1 - ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)


def _yarn_magnitude(cfg: ModelConfig) -> float:
    """YaRN's factor on cos and sin, so that scores grow by its square: 0.1 ln(factor) + 1."""
    return 0.1 * math.log(cfg.rotary_factor) + 1 if cfg.rotary_scaling == "yarn" else 1.0
