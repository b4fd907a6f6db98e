"""Attention whose key-value heads are fewer than the tensor-parallel ranks: several ranks hold the same one."""

from __future__ import annotations

import math

from torch import nn

from neox.model.attention import SelfAttention
from neox.model.linear import Linear
from neox.parallel.groups import TensorGroup
from neox.parallel.pieces import Place


def split_projection(attn: SelfAttention, path: str, tensor: TensorGroup) -> dict[str, Place]:
    """Has `attn`, in place, project its rank's queries by `q` and the one key-value head they share by `kv`.

    Args:
        attn: on the meta device, called `path`. tensor: with `copies`.

    Returns:
        The places of the new parameters in the logical `qkv`, whose rows are [kv head][its queries, k, v][head_dim]:
        a head's queries are dealt to the ranks that hold it, and are consecutive rows as k and v are.
    """
    assert tensor.copies is not None
    num_copies, copy = tensor.copies.size, tensor.copies.index
    queries = attn.group // num_copies
    head = (tensor.index // num_copies) * (attn.group + 2)
    rows = {"q": (head + copy * queries, queries), "kv": (head + attn.group, 2)}
    places: dict[str, Place] = {}
    for name, (first, count) in rows.items():
        setattr(attn, name, Linear(attn.qkv.weight.shape[1], count * attn.head_dim, attn.qkv.bias is not None))
        for kind, parameter in attn.qkv.named_parameters():
            shape = tuple(parameter.shape)
            start = first * attn.head_dim * math.prod(shape[1:])
            is_copy = name == "kv" and copy > 0
            places[f"{path}.{name}.{kind}"] = Place(f"{path}.qkv.{kind}", shape, first=start, is_copy=is_copy)
    del attn.qkv
    attn.is_multi_query = True
    return places


def split_projections(model: nn.Module, tensor: TensorGroup) -> dict[str, Place]:
    """`split_projection` of every attention of the model, where ranks share heads."""
    places: dict[str, Place] = {}
    if tensor.copies is not None:
        for path, module in model.named_modules():
            if isinstance(module, SelfAttention):
                places |= split_projection(module, path, tensor)
    return places
