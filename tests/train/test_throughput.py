"""Rates in a step's record, and the peak that they are shares of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neox.config.errors import UserError
from neox.config.flops import flops_per_token
from neox.config.schema import Config, LogConfig, ModelConfig, ParallelConfig, TrainConfig
from neox.train.throughput import Throughput, peak_tflops

MODEL = ModelConfig(num_layers=2, hidden_size=8, num_heads=2, seq_length=16, vocab_size=128)


def test_shares_of_the_peak() -> None:
    cfg = Config(MODEL, ParallelConfig(recompute="full"))
    rates = Throughput(cfg, world_size=4, rank_tflops=1e-3).rates(num_samples=32, seq_length=16, step_time_s=0.5)
    tflops = flops_per_token(MODEL) * 1024 / 4 / 1e12
    block = 2 * (4 * 8 * 8 + 8 * 32 + 2 * 8 * (16 + 1) / 2)  # forward of all but the last product
    assert rates["tokens_per_s"] == 1024
    assert rates["model_tflops"] == pytest.approx(tflops, rel=1e-5)
    assert rates["mfu"] == pytest.approx(tflops / 1e-3, abs=1e-6)
    assert rates["hfu"] == pytest.approx(rates["mfu"] * (1 + 2 * block / flops_per_token(MODEL)), abs=1e-6)


def test_shorter_samples_have_shorter_attention() -> None:
    throughput = Throughput(Config(MODEL), world_size=1, rank_tflops=None)
    short, full = throughput.rates(4, 8, 1.0), throughput.rates(4, 16, 1.0)
    assert short["model_tflops"] == pytest.approx(flops_per_token(replace(MODEL, seq_length=8)) * 32 / 1e12, rel=1e-5)
    assert short["model_tflops"] < full["model_tflops"] / 2 and "mfu" not in full


def test_the_peak_is_the_users_or_the_launchers() -> None:
    environ = {"NEOX_RANK_TFLOPS": "bf16=191.5 fp16=192"}
    bf16 = Config(MODEL, train=TrainConfig(precision="bf16"))
    assert peak_tflops(bf16, environ) == 191.5 and peak_tflops(Config(MODEL), environ) is None
    assert peak_tflops(replace(bf16, log=LogConfig(rank_tflops=100.0)), environ) == 100
    assert peak_tflops(bf16, {}) is None
    with pytest.raises(UserError, match="environment: NEOX_RANK_TFLOPS = 'fast': expected precision=number"):
        peak_tflops(bf16, {"NEOX_RANK_TFLOPS": "fast"})
