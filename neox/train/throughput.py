"""How fast a run is: tokens per second, the model's FLOPs, and the shares of the machine's peak that they are."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace

from neox.config.errors import UserError
from neox.config.flops import flops_per_token, recomputed_flops_per_token
from neox.config.schema import Config

VARIABLE = "NEOX_RANK_TFLOPS"
"""Peak of one rank by precision, in 10¹² FLOP/s: `bf16=191.5 fp32=47.9`. The launcher sets it from the site's facts."""


def peak_tflops(cfg: Config, environ: Mapping[str, str] = os.environ) -> float | None:
    """Peak of one rank at train.precision in 10¹² FLOP/s: log.rank_tflops, else the launcher's; None where unknown.

    Raises:
        UserError: VARIABLE is not a list of precision=number.
    """
    if cfg.log.rank_tflops is not None:
        return cfg.log.rank_tflops
    text = environ.get(VARIABLE, "")
    try:
        peaks = {name: float(value) for name, value in (item.split("=") for item in text.split())}
    except ValueError:
        raise UserError(f"environment: {VARIABLE} = {text!r}: expected precision=number, as in bf16=191.5") from None
    return peaks.get(cfg.train.precision)


class Throughput:
    """Rates of one run on `world_size` ranks."""

    def __init__(self, cfg: Config, world_size: int, rank_tflops: float | None) -> None:
        """`rank_tflops`: see `peak_tflops`."""
        self._cfg, self._world_size, self._rank_tflops = cfg, world_size, rank_tflops

    def rates(self, num_samples: int, seq_length: int, step_time_s: float) -> dict[str, float]:
        """What a step's record says of its speed, given its samples and their length.

        tokens_per_s; model_tflops, per rank, of what the model needs; and where the peak is known mfu, their share of
        it, and hfu, which counts what was made again for backward too (Chowdhery et al. 2022, arXiv 2204.02311,
        appendix B; Korthikanti et al. 2022, arXiv 2205.05198, section 6).
        """
        tokens_per_s = num_samples * seq_length / step_time_s
        model, recomputed = self._flops(seq_length)
        model_tflops = model * tokens_per_s / self._world_size / 1e12
        rates = {"tokens_per_s": round(tokens_per_s, 3), "model_tflops": float(f"{model_tflops:.6g}")}
        if self._rank_tflops is not None:
            mfu = model_tflops / self._rank_tflops
            rates |= {"mfu": round(mfu, 6), "hfu": round(mfu * (1 + recomputed / model), 6)}
        return rates

    @functools.cache  # noqa: B019  # a run has one of these, and few lengths
    def _flops(self, seq_length: int) -> tuple[int, int]:
        """FLOPs per token that the model needs, and those added, at a length of its samples."""
        model = replace(self._cfg.model, seq_length=seq_length)
        return flops_per_token(model), recomputed_flops_per_token(model, self._cfg.parallel.recompute)
