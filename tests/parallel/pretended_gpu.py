"""A GPU that is pretended: its tensors are the host's with a mark, and every operator is held to where they lie.

The mark is kept by a storage, so views, `.data` and DeepSpeed's flat buffers have it too. Everything is computed by the
host; what only kernels for GPUs refuse, and the order of their streams, is not seen.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST, GPU = "cpu", "cuda"
CROSSING = ("aten::copy_", "aten::_to_copy", "aten::set_")
"""What may be given tensors of both."""
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
"""What needs values of the GPU on the host, which waits until it has done all that it was given."""
ROOT = Path(__file__).parents[2]

_real_device = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
_real_to, _real_numpy = Tensor.to, Tensor.numpy


def kind_of(tensor: Tensor) -> str | None:
    """Where it is pretended to be; None: not known, for it was made within PyTorch from no tensor."""
    kind: str | None = getattr(tensor.untyped_storage(), "pretended", None)
    return kind


class Watch(TorchDispatchMode):
    """Sees every operator, backward's too: keeps the marks, and writes down what a GPU would refuse or wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.waits: list[str] = []
        self._named: list[str] = []

    @contextlib.contextmanager
    def naming(self, kind: str | None) -> Iterator[None]:
        """Around a call that says where its result is to be."""
        if kind is None:
            yield
            return
        self._named.append(kind)
        try:
            yield
        finally:
            self._named.pop()

    def wait(self) -> None:
        """Writes down that the host waits for the GPU, and where."""
        self.waits.append(_place())

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and _real_device(t).type == HOST]
        ours, theirs = ([t for t in given if kind_of(t) == kind] for kind in (GPU, HOST))
        self._judge(func._schema.name, ours, theirs)
        known = {t.untyped_storage()._cdata for t in given}
        out = func(*args, **(kwargs or {}))
        kind = self._named[-1] if self._named else GPU if ours else HOST if theirs else None
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known and kind is not None:
                tensor.untyped_storage().pretended = kind  # type: ignore[attr-defined]
        return out

    def _judge(self, name: str, ours: list[Tensor], theirs: list[Tensor]) -> None:
        if name.startswith("c10d::"):
            if theirs:
                self.faults.append(f"{_place()}: {name}: NCCL was given a tensor of the host")
            if not all(tensor.is_contiguous() for tensor in ours):
                self.faults.append(f"{_place()}: {name}: NCCL was given a tensor with gaps")
        elif ours and name not in CROSSING and any(t.dim() > 0 or "_fused_" in name for t in theirs):
            self.faults.append(f"{_place()}: {name}: tensors of the GPU and of the host")
        elif ours and name in WAITING:
            self.wait()


def _place() -> str:
    """The innermost function of this project."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "neox") or path.is_relative_to(ROOT / "kernels"):
            return f"{path.relative_to(ROOT)} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def pretend() -> Watch:
    """From now on, and for good, this process has a GPU for each rank of a launch on this machine."""
    watch = Watch()
    _pretend_tensors(watch)
    _pretend_cuda(watch)
    _pretend_nccl()
    watch.__enter__()
    from deepspeed.accelerator import real_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    real_accelerator.ds_accelerator = CUDA_Accelerator()
    return watch


def _kind(device: Any) -> str:
    return GPU if isinstance(device, int) else torch.device(device).type


def _pretend_tensors(watch: Watch) -> None:
    def device_of(tensor: Tensor) -> torch.device:
        real: torch.device = _real_device(tensor)
        is_ours = real.type == HOST and kind_of(tensor) == GPU
        return torch.device(GPU, int(os.environ["LOCAL_RANK"])) if is_ours else real

    def move(tensor: Tensor, kind: str, **options: Any) -> Tensor:
        if "meta" in (kind, tensor.device.type) or kind == tensor.device.type:
            return _real_to(tensor, **options | ({"device": "meta"} if kind == "meta" else {}))
        options["copy"] = True
        if not getattr(tensor.untyped_storage(), "is_pinned", False):
            watch.wait()
        with watch.naming(kind):
            return _real_to(tensor, **options)

    def to(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in options.items() if k != "copy"})
        options = {k: v for k, v in (("dtype", dtype), ("copy", options.get("copy", False))) if v}
        return move(tensor, tensor.device.type if device is None else device.type, **options)

    def numpy(tensor: Tensor, **options: Any) -> Any:
        assert not tensor.is_cuda, "a tensor of the GPU has no NumPy array"
        return _real_numpy(tensor, **options)

    for name, value in {
        "device": property(device_of),
        "is_cuda": property(lambda tensor: device_of(tensor).type == GPU),
        "is_cpu": property(lambda tensor: device_of(tensor).type == HOST),
        "to": to,
        "cpu": lambda tensor: move(tensor, HOST),
        "cuda": lambda tensor, *_, **__: move(tensor, GPU),
        "numpy": numpy,
        "pin_memory": lambda tensor: _pinned(tensor.clone()),
        "is_pinned": lambda tensor: getattr(tensor.untyped_storage(), "is_pinned", False),
        "record_stream": lambda tensor, stream: None,
    }.items():
        setattr(Tensor, name, value)
    for name in ("empty", "zeros", "ones", "full", "arange", "tensor", "randn", "randint", "linspace"):
        setattr(torch, name, _factory(watch, getattr(torch, name), HOST))
    for name in ("empty_like", "zeros_like", "ones_like"):
        setattr(torch, name, _factory(watch, getattr(torch, name), None))
    for name in ("new_empty", "new_zeros", "new_tensor"):
        setattr(Tensor, name, _factory(watch, getattr(Tensor, name), None))


def _factory(watch: Watch, make: Callable[..., Tensor], usual: str | None) -> Callable[..., Tensor]:
    """`make` with its result where `device` says, else where it is usual, or where its argument is (None)."""

    @functools.wraps(make)
    def made(*args: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> Tensor:
        kind = usual if device is None else _kind(device)
        if kind == "meta" or (device is None and torch.utils._device.CURRENT_DEVICE is not None):
            return make(*args, **options | ({"device": device} if device is not None else {}))
        if kind == GPU and make.__name__ == "tensor":
            watch.wait()  # its numbers come from the host
        with watch.naming(kind):
            out = make(*args, **options)
        if kind is not None:
            out.untyped_storage().pretended = kind  # type: ignore[attr-defined]
        return _pinned(out) if pin_memory else out

    return made


def _pinned(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().is_pinned = True  # type: ignore[attr-defined,method-assign,assignment]
    return tensor


class _Stream:
    """Of a stream or an event: all that was asked for is done already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = torch.device(GPU, 0)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _pretend_cuda(watch: Watch) -> None:
    stream = _Stream()
    properties = types.SimpleNamespace(total_memory=1 << 36, major=9, minor=0)
    for name, value in {
        "is_available": True,
        "device_count": int(os.environ["WORLD_SIZE"]),
        "current_device": int(os.environ["LOCAL_RANK"]),
        "current_stream": stream,
        "default_stream": stream,
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "memory_stats": collections.defaultdict(int),
        "memory_allocated": 0,
        **dict.fromkeys(("set_device", "empty_cache", "reset_peak_memory_stats", "manual_seed_all", "_lazy_init")),
    }.items():
        setattr(torch.cuda, name, lambda *_, answer=value, **__: answer)
    for name in ("stream", "device"):
        setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    torch.cuda.nvtx = None  # type: ignore[assignment]  # DeepSpeed does without
    torch.cuda.Stream = torch.cuda.Event = _Stream  # type: ignore[misc,assignment]
    torch.cuda.synchronize = lambda *_: watch.wait()  # type: ignore[assignment]


def _pretend_nccl() -> None:
    start = dist.init_process_group

    def initialize(backend: str, device_id: torch.device, timeout: datetime.timedelta, **options: Any) -> None:
        assert (backend, device_id.type) == ("nccl", GPU)
        assert timeout >= datetime.timedelta(hours=1), "the watchdog, which says where ranks are, has to be first"
        start("gloo", timeout=timeout, **options)

    dist.init_process_group = initialize  # type: ignore[assignment]
    dist.get_backend = lambda group=None: "nccl"  # type: ignore[assignment]
