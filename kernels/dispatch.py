"""The choice between implementations of one operation: explicit by name, otherwise the best one for the device."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "attention": ("flash", "sdpa", "reference"),
    "bias_gelu": ("aten", "reference"),
    "dropout": ("reference",),
    "layer_norm": ("aten", "reference"),
    "linear": ("onednn", "aten", "reference"),
    "linear_cross_entropy": ("chunked", "reference"),
    "rms_norm": ("aten", "reference"),
    "rotary": ("reference",),
    "swiglu": ("aten", "reference"),
}
"""Operation → its implementations, best first. Each is the module kernels.<operation>.<implementation> with a function
of the operation's name and, where it cannot run everywhere, `is_available(device_type) -> bool`."""

_forced: dict[str, str] = {}


class MissingImplementationError(ValueError):
    """The implementation asked for does not exist or cannot run here; the message lists those that can."""


@functools.cache
def _load(operation: str, name: str, device_type: str) -> Callable[..., Any] | None:
    """The function, or None where it cannot run on this kind of device."""
    module = importlib.import_module(f"kernels.{operation}.{name}")
    is_available = getattr(module, "is_available", None)
    if is_available is not None and not is_available(device_type):
        return None
    function: Callable[..., Any] = getattr(module, operation)
    return function


def available(operation: str, device_type: str = "cpu") -> list[str]:
    """Names of the implementations that run on `device_type`, best first.

    Raises:
        MissingImplementationError: there is no such operation.
    """
    if operation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise MissingImplementationError(f"no operation {operation!r}; there are {known}")
    return [name for name in IMPLEMENTATIONS[operation] if _load(operation, name, device_type) is not None]


def find(operation: str, device: torch.device, name: str | None = None) -> Callable[..., Any]:
    """The implementation called `name`; without a name the forced one, else the best for `device`.

    Raises:
        MissingImplementationError: the named or forced one is not available on `device`.
    """
    name = name or _forced.get(operation)
    names = available(operation, device.type)
    if name is not None and name not in names:
        raise MissingImplementationError(
            f"{operation}: no implementation {name!r} on {device.type}; available: {', '.join(names)}"
        )
    function = _load(operation, name or names[0], device.type)
    assert function is not None
    return function


@contextmanager
def forced(**choices: str) -> Iterator[None]:
    """Within the block, every call of these operations uses the named implementation: `forced(attention="reference")`.

    A name that exists nowhere is refused here; one that this device lacks, at the call.
    """
    for operation, name in choices.items():
        if name not in IMPLEMENTATIONS.get(operation, ()):
            names = ", ".join(IMPLEMENTATIONS.get(operation, IMPLEMENTATIONS))
            raise MissingImplementationError(f"{operation}={name}: there are {names}")
    before = dict(_forced)
    _forced.update(choices)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
