"""Batch-size warm-up and curriculum of lengths: against Megatron-LM's rule, and DeepSpeed's own scheduler."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from neox.config.derive import resolve
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import Config
from neox.config.warmup import batch_size_at, length_at, phases
from neox.planner.time import cost

BASE = ["model.num_layers=2", "model.hidden_size=64", "model.num_heads=4", "model.vocab_size=100"]
SIZES = ["model.seq_length=128", "train.global_batch_size=64", "train.micro_batch_size=2", "train.steps=100"]
RAMP = "train.batch_warmup=[16,16,500]"
LINEAR = ["train.seq_warmup=linear", "train.seq_warmup_lengths=[16,128]", "train.seq_warmup_steps=[40]"]


def config(*overrides: str) -> Config:
    return resolve(load_config([], [*BASE, *SIZES, *overrides]), 4)


def test_the_batch_grows_as_in_megatron() -> None:
    """RampupBatchsizeNumMicroBatches: start + ⌊samples / (ramp / increments)⌋ × increment, up to the ramp's end."""
    train = config(RAMP).train
    for samples in range(0, 800):
        want = 64 if samples > 500 else 16 + int(samples / (500 / 3)) * 16
        assert batch_size_at(train, samples) == want, samples
    assert batch_size_at(config().train, 0) == 64


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("fixed_linear", LINEAR, {"total_curriculum_step": 40, "difficulty_step": 8}),
        (
            "fixed_root",
            ["train.seq_warmup=root", *LINEAR[1:], "train.seq_warmup_root=3", "train.seq_warmup_multiple=16"],
            {"total_curriculum_step": 40, "difficulty_step": 16, "root_degree": 3},
        ),
        (
            "fixed_discrete",
            ["train.seq_warmup=discrete", "train.seq_warmup_lengths=[16,64,128]", "train.seq_warmup_steps=[5,40]"],
            {"difficulty": [16, 64, 128], "max_step": [5, 40]},
        ),
    ],
)
def test_lengths_are_those_of_deepspeed(kind: str, ours: list[str], theirs: dict[str, Any]) -> None:
    from deepspeed.runtime.data_pipeline.curriculum_scheduler import CurriculumScheduler

    options = {"min_difficulty": 16, "max_difficulty": 128, "schedule_type": kind, "schedule_config": theirs}
    scheduler, cfg = CurriculumScheduler(options), config(*ours)
    lengths = [length_at(cfg, step) for step in range(1, 101)]
    assert lengths == [scheduler.update_difficulty(step) for step in range(1, 101)]
    assert len(set(lengths)) > 2 and lengths[-1] == 128


def test_phases_are_the_steps_one_after_the_other() -> None:
    cfg = config(RAMP, *LINEAR)
    samples, steps = 0, []
    for step in range(1, 101):
        steps.append((batch_size_at(cfg.train, samples), length_at(cfg, step)))
        samples += steps[-1][0]
    assert [shape for num, *shape in phases(cfg) for _ in range(num)] == [list(shape) for shape in steps]
    assert len(list(phases(cfg))) == len(list(itertools.groupby(steps)))
    assert list(phases(config())) == [(100, 64, 128)]
    plan = cost(cfg, world_size=4, ranks_per_node=4, rank_tflops=1.0, mfu=0.5)
    assert plan.tokens == sum(size * length for size, length in steps)
    assert plan.step_s == cost(config(), 4, 4, 1.0, 0.5).step_s
    assert plan.wall_h < cost(config(), 4, 4, 1.0, 0.5).wall_h


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("train.batch_warmup=[16,16]", "expected a list of 3"),
        ("train.batch_warmup=[16,10,500]", "steps of 10 do not lead from 16 to 64"),
        ("train.batch_warmup=[4,4,500]", "multiples of micro_batch_size × dp = 2 × 4 = 8"),
        ("train.batch_warmup=[128,16,500]", "start at most the global batch"),
        ("train.seq_warmup_steps=[4]", "read with seq_warmup linear, root or discrete"),
        ("train.seq_warmup=linear train.seq_warmup_lengths=[16]", "lengths are the first and the last"),
        (
            "train.seq_warmup=discrete train.seq_warmup_lengths=[16,32] train.seq_warmup_steps=[4,2]",
            "one more than seq_warmup_steps",
        ),
        (
            "train.seq_warmup=linear train.seq_warmup_lengths=[16,256] train.seq_warmup_steps=[9]",
            "must be in 1…model.seq_length = 128",
        ),
        (
            "train.seq_warmup=discrete train.seq_warmup_lengths=[15,32] train.seq_warmup_steps=[9] parallel.tp=2 "
            "parallel.sequence_parallel=true",
            "parallel.tp = 2 must divide every length",
        ),
        (
            "train.seq_warmup=linear train.seq_warmup_lengths=[12,128] train.seq_warmup_steps=[9]",
            "first length must be a multiple of seq_warmup_multiple = 8",
        ),
        (
            "parallel.tp=2 parallel.sequence_parallel=true train.seq_warmup=linear train.seq_warmup_multiple=3 "
            "train.seq_warmup_lengths=[12,128] train.seq_warmup_steps=[9]",
            "train.seq_warmup = linear: parallel.tp = 2 must divide every length",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        config(*overrides.split())
    assert expected in str(error.value)
