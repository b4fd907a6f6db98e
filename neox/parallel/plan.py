"""The tensor-parallel plan: a table from logical names to the dimension that is sharded, and its application."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from torch import Tensor, nn

from neox.model.attention import SelfAttention
from neox.model.block import Block
from neox.model.dropout import Dropout
from neox.model.linear import Embedding, Linear
from neox.model.positions import LearnedPositions, SinusoidalPositions
from neox.parallel.collectives import sum_over_group
from neox.parallel.groups import TensorGroup
from neox.parallel.heads import split_projections
from neox.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    branch,
    can_join,
    row_layer,
    side_by_side,
)
from neox.parallel.pieces import Place

PLAN: tuple[tuple[str, int | None], ...] = (
    (r"embed\.weight|head\.weight", 0),
    (r"layers\.\d+\.attn\.qkv\.(weight|bias)", 0),  # rows are kv-head-major: a slice of rows is a slice of heads
    (r"layers\.\d+\.attn\.q\.(weight|bias)", 0),
    (r"layers\.\d+\.attn\.kv\.(weight|bias)", None),  # one head, on every rank that its queries are on
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
"""What ranks hold whole but use on their own heads alone: its gradient is the sum of theirs. Where sequences are
sharded, that is so of everything that is held whole."""


def sharded_dim(name: str) -> int | None:
    """The dimension of logical tensor `name` that is sharded.

    Raises:
        ValueError: the plan does not know the name, which must never mean `replicated` by accident.
    """
    for pattern, dim in PLAN:
        if re.fullmatch(pattern, name):
            return dim
    raise ValueError(f"the tensor-parallel plan has no entry for {name!r}")


def place(name: str, shape: tuple[int, ...], tensor: TensorGroup) -> Place:
    """Where this rank's part of the logical tensor `name` of this `shape` lies."""
    dim = sharded_dim(name)
    if dim is None or tensor.size == 1:
        return Place(name, shape, is_copy=tensor.index > 0)
    return Place(name, shape, dim, tensor.index, tensor.size)


def place_of(parameter: nn.Parameter) -> Place:
    """Where a parameter that `apply_plan` made lies."""
    found: Place = parameter.place  # type: ignore[attr-defined]
    return found


def apply_plan(model: nn.Module, tensor: TensorGroup, load: Callable[[str, tuple[int, ...]], Tensor]) -> None:
    """Gives the single-device model this rank's shards, and its layers their parallel forms, in place.

    Args:
        model: the model or a part of it whose parameters carry their logical names; may be on the meta device.
        load: (logical name, global shape) → the whole tensor.
    """
    shared = split_projections(model, tensor)
    for name, parameter in list(model.named_parameters()):
        shape = tuple(parameter.shape)
        where = shared[name] if name in shared else place(name, shape, tensor)
        path, _, attribute = name.rpartition(".")
        local = where.cut(load(where.name, where.global_shape), local_shape(where, shape))
        setattr(model.get_submodule(path), attribute, mark(nn.Parameter(local), name, where, tensor))
    if tensor.size > 1:
        for path, module in list(model.named_modules()):
            form = parallel_form(path, module, tensor)
            if form is not None:
                parent, _, attribute = path.rpartition(".")
                setattr(model.get_submodule(parent), attribute, form)
        for module in model.modules():
            adapt(module, tensor)


def local_shape(where: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of this rank's parameter, from that of the model's."""
    return tuple(size // where.num_shards if i == where.dim else size for i, size in enumerate(shape))


def mark(parameter: nn.Parameter, name: str, where: Place, tensor: TensorGroup) -> nn.Parameter:
    """The parameter with its place, with what DeepSpeed asks about it, and where it is in use on several ranks summed.

    What is marked as model parallel counts in the gradients' norm on its rank, the rest on the first of the group only.
    """
    parameter.place = where  # type: ignore[attr-defined]
    is_whole = sharded_dim(name) is None
    holders = tensor.copies if tensor.copies is not None and ".kv." in name else tensor
    is_counted = holders is tensor.copies and not where.is_copy
    parameter.tensor_model_parallel = tensor.size > 1 and (not is_whole or is_counted)  # type: ignore[attr-defined]
    if tensor.size > 1 and is_whole and (tensor.is_sequence_sharded or re.fullmatch(PARTIAL, name)):
        parameter.register_hook(functools.partial(sum_over_group, tensor=holders))
    return parameter


def parallel_form(path: str, module: nn.Module, tensor: TensorGroup) -> nn.Module | None:
    """What stands in for the Linear or Embedding called `path`; None for any other module."""
    if isinstance(module, Embedding):
        return VocabParallelEmbedding(module.weight, tensor)
    if isinstance(module, Linear):
        # multi-query's whole kv takes its input as a column's shard does
        is_row = sharded_dim(f"{path}.weight") == 1
        return (RowParallelLinear if is_row else ColumnParallelLinear)(module.weight, module.bias)
    return None


def adapt(module: nn.Module, tensor: TensorGroup) -> None:
    """Tells a module that has its parallel linear layers what it is to do beside them, in place."""
    if isinstance(module, SelfAttention):
        module.heads = tensor.part(module.heads)
    if isinstance(module, Dropout | LearnedPositions | SinusoidalPositions) and tensor.is_sequence_sharded:
        module.stretch = tensor.index
    # As attributes of the instances, so that no wrapper comes between a parameter and its logical name.
    if isinstance(module, Block):
        if can_join(module):
            module.forward = functools.partial(side_by_side, module, tensor)  # type: ignore[method-assign]
        else:
            for each in (module.attn, module.mlp):
                each.forward = functools.partial(branch, each.forward, row_layer(each), tensor)
