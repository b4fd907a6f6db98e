"""Ranges of the optimizer's, the loop's and the log's keys."""

from __future__ import annotations

from neox.config.errors import UserError
from neox.config.schema import OptimConfig, TrainConfig


def check_schedule(optim: OptimConfig) -> None:
    """The phases of the learning-rate curve fit into decay_steps, and it ends no higher than it begins.

    Raises:
        UserError: naming the key and what is allowed.
    """
    if not 0 <= optim.warmup < 1:
        raise UserError(f"optim.warmup = {optim.warmup}: a share of decay_steps, 0 ≤ warmup < 1")
    if optim.min_lr > optim.lr:
        raise UserError(f"optim.min_lr = {optim.min_lr} is above optim.lr = {optim.lr}")
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


def check_anomalies(train: TrainConfig) -> None:
    """The limits of the policy for bad steps."""
    for name, least in (("spike_window", 2), ("max_skipped", 1), ("max_rewinds", 0), ("spike_sigma", 0)):
        if getattr(train, name) < least:
            raise UserError(f"train.{name} = {getattr(train, name)}: must be at least {least}")
    if train.precision == "bf16" and train.on_spike == "skip":
        raise UserError("train.on_spike = skip: not with train.precision = bf16; allowed there: log, rewind, stop")
