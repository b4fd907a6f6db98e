"""The choice between implementations is explicit, and a wrong choice says what there is."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from kernels import attention, dispatch
from kernels.dispatch import MissingImplementationError, available, find, forced

CPU = torch.device("cpu")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation that exists but cannot run on a CPU."""
    module = types.ModuleType("kernels.attention.fused")
    module.attention = lambda q, k, v: v  # type: ignore[attr-defined]
    module.is_available = lambda device_type: device_type == "cuda"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels.attention.fused", module)
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "attention", ("fused", "sdpa", "reference"))


def test_the_default_is_the_best_available(absent: None) -> None:
    assert available("attention", "cpu") == ["sdpa", "reference"]
    assert available("attention", "cuda") == ["fused", "sdpa", "reference"]
    assert find("attention", CPU).__module__ == "kernels.attention.sdpa"


def test_a_forced_implementation_is_used_and_only_inside() -> None:
    with forced(attention="reference"):
        assert find("attention", CPU).__module__ == "kernels.attention.reference"
    assert find("attention", CPU).__module__ == "kernels.attention.sdpa"


def test_a_forced_but_absent_implementation_raises(absent: None) -> None:
    x = torch.randn(1, 1, 2, 4)
    with forced(attention="fused"), pytest.raises(MissingImplementationError, match="available: sdpa, reference"):
        attention.attention(x, x, x)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(MissingImplementationError, match="flash, sdpa, reference"), forced(attention="fused"):
        pass
    with pytest.raises(MissingImplementationError, match="attention, bias_gelu"):
        find("softmax", CPU)
    with pytest.raises(
        MissingImplementationError, match=r"no implementation 'quick' on cpu; available: sdpa, reference"
    ):
        find("attention", CPU, "quick")
