"""Runs whose batch and sequence length grow: against a plain loop, at several layouts, resumed in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neox.config.derive import padded_vocab, resolve
from neox.config.load import load_config
from neox.data.parts import plan_part
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.train.schedule import learning_rate
from tests.distributed import run_ranks
from tests.train.launch import write_config
from tests.train.poisoned import Case, run_cases

OPTIONS = (
    *("train.steps=24", "train.global_batch_size=16", "train.batch_warmup=[4,4,72]", "checkpoint.interval=5"),
    *("train.seq_warmup=linear", "train.seq_warmup_lengths=[4,16]", "train.seq_warmup_steps=[12]"),
    *("train.seq_warmup_multiple=4", "train.valid_interval=4", "log.tensorboard=false"),
)
SIZES = [4] * 6 + [8] * 3 + [12] * 2 + [16] * 13
"""72 samples of warm-up are three stretches of 24."""
LENGTHS = [4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 16] + [16] * 12
"""4 + 12 · step / 12, down to a multiple of 4, and so on."""
KEYS = ("step", "samples", "tokens", "loss", "lr", "grad_norm", "valid_loss")


def cases(folder: Path) -> list[Case]:
    return [
        Case("dp2", OPTIONS),
        Case("pp2", (*OPTIONS, "parallel.pp=2")),
        Case("tp2", (*OPTIONS, "parallel.tp=2")),
        Case("sequence", (*OPTIONS, "parallel.tp=2", "parallel.sequence_parallel=true")),
        Case("offload", (*OPTIONS, "parallel.zero_stage=2", "parallel.offload=optimizer")),
        Case("dp2 again", OPTIONS, copy=folder / "dp2", copy_step=5),
        Case("pp2 again", (*OPTIONS, "parallel.pp=2"), copy=folder / "pp2", copy_step=10),
        Case("tp2 from pp2", (*OPTIONS, "parallel.tp=2"), copy=folder / "pp2", copy_step=5),
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def outcomes(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Name of the case → the records of the run."""
    folder = tmp_path_factory.mktemp("runs")
    out: dict[str, dict[str, Any]] = run_ranks(run_cases, 2, cases(folder), config, folder)[0]
    return {name: [{k: r[k] for k in KEYS if k in r} for r in case["records"]] for name, case in out.items()}


def plain_losses(config: Path) -> list[float]:
    """Single-device PyTorch on the samples in the order of the run without warm-up."""
    cfg = resolve(load_config([config], OPTIONS), 1)
    torch.set_num_threads(1)
    model = GPT(cfg.model, padded_vocab(cfg.model))
    init_weights(model, cfg.model, cfg.train.seed)
    dataset = plan_part(cfg, "train").open()
    groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1}]
    groups += [{"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    losses, first = [], 0
    for step, (size, length) in enumerate(zip(SIZES, LENGTHS, strict=True)):
        rows = torch.stack([torch.from_numpy(dataset[item][0].copy()) for item in range(first, first + size)])
        first += size
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg.optim)
        optimizer.zero_grad()
        logits, labels = model(rows[:, :length]), rows[:, 1 : length + 1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("layout", ["dp2", "pp2", "tp2", "sequence", "offload"])
def test_every_step_reads_what_it_should(outcomes: dict[str, list[dict[str, Any]]], config: Path, layout: str) -> None:
    steps = [record for record in outcomes[layout] if "loss" in record]
    assert [r["samples"] for r in steps] == [sum(SIZES[: n + 1]) for n in range(24)]
    tokens = [size * length for size, length in zip(SIZES, LENGTHS, strict=True)]
    assert [r["tokens"] for r in steps] == [sum(tokens[: n + 1]) for n in range(24)]
    assert [r["loss"] for r in steps] == pytest.approx(plain_losses(config), abs=1e-5)


@pytest.mark.parametrize("layout", ["dp2", "pp2"])
def test_resumed_on_the_way_up_it_is_the_same_run(outcomes: dict[str, list[dict[str, Any]]], layout: str) -> None:
    assert outcomes[f"{layout} again"] == outcomes[layout]


def test_it_moves_to_another_layout_on_the_way_up(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for got, want in zip(outcomes["tp2 from pp2"], outcomes["pp2"], strict=True):
        assert got == pytest.approx(want, abs=1e-5)
