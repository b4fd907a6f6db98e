"""The tensor-parallel plan: a table from logical names to the dimension that is sharded, and its application."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from torch import Tensor, nn

from neox.model.attention import SelfAttention
from neox.model.linear import Embedding, Linear
from neox.parallel.collectives import sum_over_group
from neox.parallel.groups import TensorGroup
from neox.parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

PLAN: tuple[tuple[str, int | None], ...] = (
    (r"embed\.weight|head\.weight", 0),
    (r"layers\.\d+\.attn\.qkv\.(weight|bias)", 0),  # rows are kv-head-major: a slice of rows is a slice of heads
    (r"layers\.\d+\.attn\.q\.(weight|bias)", 0),
    (r"layers\.\d+\.attn\.kv\.(weight|bias)", None),  # of multi-query attention: one head, on every rank
    (r"layers\.\d+\.attn\.position_bias\.weight", 1),  # a column per head
    (r"layers\.\d+\.attn\.out\.weight", 1),
    (r"layers\.\d+\.mlp\.(up|gate)\.(weight|bias)", 0),
    (r"layers\.\d+\.mlp\.down\.weight", 1),
    (r"layers\.\d+\.(attn\.out|mlp\.down)\.bias", None),
    (r"(layers\.\d+\.(attn|mlp)(_post)?|final)_norm\.(weight|bias)", None),
    (r"layers\.\d+\.attn\.[qk]_norm\.(weight|bias)", None),
    (r"positions\.weight", None),
)
"""Logical name (whole match) → dimension dealt to the tensor-parallel ranks; None: every rank holds it whole."""

PARTIAL = r"layers\.\d+\.attn\.([qk]_norm|kv)\.(weight|bias)"
"""What every rank holds whole but uses on its own heads alone: its gradient is the sum of the ranks' gradients."""


def sharded_dim(name: str) -> int | None:
    """The dimension of logical tensor `name` that is sharded.

    Raises:
        ValueError: the plan does not know the name, which must never mean `replicated` by accident.
    """
    for pattern, dim in PLAN:
        if re.fullmatch(pattern, name):
            return dim
    raise ValueError(f"the tensor-parallel plan has no entry for {name!r}")


def shard(full: Tensor, name: str, tensor: TensorGroup) -> Tensor:
    """This rank's contiguous slice of the whole logical tensor `name`."""
    dim = sharded_dim(name)
    if dim is None or tensor.size == 1:
        return full
    return full.chunk(tensor.size, dim)[tensor.index].clone()


def apply_plan(model: nn.Module, tensor: TensorGroup, load: Callable[[str, tuple[int, ...]], Tensor]) -> None:
    """Gives the single-device model this rank's shards, and its layers their parallel forms, in place.

    Args:
        model: the model or a part of it whose parameters carry their logical names; may be on the meta device.
        load: (logical name, global shape) → the whole tensor.
    """
    for name, parameter in list(model.named_parameters()):
        local = nn.Parameter(shard(load(name, tuple(parameter.shape)), name, tensor))
        # The mark by which DeepSpeed counts a shard on every rank of the group in the norm, and the rest only once.
        local.tensor_model_parallel = tensor.size > 1 and sharded_dim(name) is not None  # type: ignore[attr-defined]
        if tensor.size > 1 and re.fullmatch(PARTIAL, name):
            local.register_hook(functools.partial(sum_over_group, tensor=tensor))
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, local)
    if tensor.size > 1:
        for path, module in list(model.named_modules()):
            if isinstance(module, SelfAttention):
                module.heads = tensor.part(module.heads)
            form = parallel_form(path, module, tensor)
            if form is not None:
                parent, _, attribute = path.rpartition(".")
                setattr(model.get_submodule(parent), attribute, form)


def parallel_form(path: str, module: nn.Module, tensor: TensorGroup) -> nn.Module | None:
    """What stands in for the Linear or Embedding called `path`; None for any other module."""
    if isinstance(module, Embedding):
        return VocabParallelEmbedding(module.weight, tensor)
    if isinstance(module, Linear):
        # multi-query's whole kv takes its input as a column's shard does
        is_row = sharded_dim(f"{path}.weight") == 1
        return (RowParallelLinear if is_row else ColumnParallelLinear)(module.weight, module.bias, tensor)
    return None
