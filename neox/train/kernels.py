"""Which implementation computes attention, as train.attention asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.dispatch import available, forced
from neox.config.errors import UserError
from neox.config.schema import TrainConfig


@contextmanager
def chosen_attention(train: TrainConfig) -> Iterator[None]:
    """Within the block, attention is computed by train.attention.

    Raises:
        UserError: it cannot be, on this device or with what is installed.
    """
    if train.attention == "auto":
        yield
        return
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    names = available("attention", device_type)
    if train.attention not in names:
        raise UserError(
            f"train.attention = {train.attention}: not to be had on this {device_type}; auto takes {names[0]} here"
        )
    with forced(attention=train.attention):
        yield
