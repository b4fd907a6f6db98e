"""Ranges of the optimizer's, the loop's and the log's keys."""

from __future__ import annotations

import re

from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig, Config, OptimConfig, TrainConfig
from neox.config.shape import head_dim

MIRROR = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/\S*)?")
MIN_PART_BYTES = 5 << 20
"""S3 takes no smaller parts."""


def check_schedule(optim: OptimConfig) -> None:
    """The phases of the learning-rate curve fit into decay_steps, and it ends no higher than it begins.

    Raises:
        UserError: naming the key and what is allowed.
    """
    if not 0 <= optim.warmup < 1:
        raise UserError(f"optim.warmup = {optim.warmup}: a share of decay_steps, 0 ≤ warmup < 1")
    if not 0 <= optim.min_lr <= optim.lr:
        raise UserError(f"optim.min_lr = {optim.min_lr}: must be in 0…optim.lr = {optim.lr}")
    if optim.schedule not in ("wsd", "infinite"):
        return
    phases = optim.warmup + optim.anneal + (optim.cooldown if optim.schedule == "infinite" else 0.0)
    if not optim.anneal > 0 or optim.cooldown < 0 or phases > 1 + 1e-12:
        raise UserError(
            f"optim: warmup, cooldown and anneal are shares of decay_steps, anneal above 0, together at most 1: "
            f"{optim.warmup}, {optim.cooldown} and {optim.anneal} with schedule {optim.schedule}"
        )
    if optim.schedule == "infinite" and not 0 < optim.min_lr <= (optim.constant_lr or 0) <= optim.lr:
        raise UserError(
            f"optim.constant_lr = {optim.constant_lr}: schedule infinite needs 0 < min_lr ≤ constant_lr ≤ lr, which "
            f"are {optim.min_lr} and {optim.lr}"
        )


def check_seeds(config: Config) -> None:
    """Seeds are what NumPy's generator takes."""
    for name, seed in (("train.seed", config.train.seed), ("data.seed", config.data.seed)):
        if not 0 <= seed < 1 << 32:
            raise UserError(f"{name} = {seed}: must be in 0…2³² - 1")


def check_scale(train: TrainConfig) -> None:
    """The dynamic loss scale of fp16, which is a power of two."""
    if not 0 <= train.fp16_initial_scale_power <= 127:
        raise UserError(f"train.fp16_initial_scale_power = {train.fp16_initial_scale_power}: must be in 0…127")
    if train.fp16_min_scale <= 0:
        raise UserError(f"train.fp16_min_scale = {train.fp16_min_scale}: must be above 0")


def check_anomalies(train: TrainConfig) -> None:
    """The limits of the policy for bad steps and for steps that hang."""
    if train.step_timeout_s is not None and not 0 <= train.step_timeout_s < float("inf"):
        raise UserError(f"train.step_timeout_s = {train.step_timeout_s}: seconds, at least 0")
    for name, least in (("spike_window", 2), ("max_skipped", 1), ("max_rewinds", 0), ("spike_sigma", 0)):
        if getattr(train, name) < least:
            raise UserError(f"train.{name} = {getattr(train, name)}: must be at least {least}")


def check_mirror(checkpoint: CheckpointConfig) -> None:
    """Where checkpoints are copied to is an address of an object store."""
    if checkpoint.mirror is not None and not MIRROR.fullmatch(checkpoint.mirror):
        raise UserError(f"checkpoint.mirror = {checkpoint.mirror}: must be s3://BUCKET/PREFIX")
    if checkpoint.mirror_part_bytes < MIN_PART_BYTES:
        raise UserError(f"checkpoint.mirror_part_bytes = {checkpoint.mirror_part_bytes}: at least {MIN_PART_BYTES}")


def check_attention(config: Config) -> None:
    """flash-attn is asked for only where it can compute the whole model's attention; UserError names what it cannot."""
    model = config.model
    obstacles = (
        (config.train.precision == "fp32", "train.precision = fp32"),
        (model.positions == "t5", "model.positions = t5"),
        (model.attention_dropout > 0, f"model.attention_dropout = {model.attention_dropout}"),
        (head_dim(model) > 256, f"heads of {head_dim(model)} dimensions"),
    )
    for is_there, what in obstacles:
        if config.train.attention == "flash" and is_there:
            raise UserError(f"train.attention = flash cannot do {what}; auto takes PyTorch's operator for that")
