"""Sizes that follow from the `model` section: what one block is made of."""

from __future__ import annotations

from neox.config.schema import ModelConfig
from neox.config.schema.model import GATED

ROTARY_RAMPS = {"yarn": (1.0, 32.0), "llama3": (1.0, 4.0)}
"""model.rotary_scaling → model.rotary_ramp where it is not given."""


def head_dim(model: ModelConfig) -> int:
    """Width of one attention head."""
    return model.head_dim or model.hidden_size // model.num_heads


def num_kv_heads(model: ModelConfig) -> int:
    """Heads of keys and values."""
    return model.num_kv_heads or model.num_heads


def is_multi_query(model: ModelConfig) -> bool:
    """Whether all queries share one head of keys and values, which tensor-parallel ranks then hold whole."""
    return num_kv_heads(model) == 1 < model.num_heads


def num_kv_copies(model: ModelConfig, tp: int) -> int:
    """Tensor-parallel ranks that hold the same one of several key-value heads: 1 where there is one for each rank."""
    return 1 if is_multi_query(model) else max(1, tp // num_kv_heads(model))


def is_gated(model: ModelConfig) -> bool:
    """Whether the MLP has a gate projection."""
    return model.activation in GATED


def has_attention_bias(model: ModelConfig) -> bool:
    """Whether attention's linear layers have biases."""
    return model.bias if model.attn_bias is None else model.attn_bias


def layer_kind(model: ModelConfig, layer: int) -> str:
    """Kind of block number `layer`."""
    return model.layer_pattern[layer % len(model.layer_pattern)]


def num_position_rows(model: ModelConfig) -> int:
    """Rows of the table of learned positions; 0 where positions are not learned."""
    return model.seq_length + model.position_offset if model.positions == "learned" else 0


def norm_parameters(model: ModelConfig, size: int) -> int:
    """Parameters of one norm over `size` dimensions."""
    counts = {"layernorm": size * (1 + model.norm_bias), "rmsnorm": size, "scalenorm": 1}
    return counts.get(model.norm, 0)


def attention_weights(model: ModelConfig) -> int:
    """Entries of a block's attention matrices: queries, keys, values and output."""
    return 2 * model.hidden_size * head_dim(model) * (model.num_heads + num_kv_heads(model))


def attention_parameters(model: ModelConfig) -> int:
    """Parameters of a block's attention."""
    projected = head_dim(model) * (model.num_heads + 2 * num_kv_heads(model))
    biases = projected + model.hidden_size if has_attention_bias(model) else 0
    norms = 2 * norm_parameters(model, head_dim(model)) if model.qk_norm else 0
    table = model.t5_buckets * model.num_heads if model.positions == "t5" else 0
    return attention_weights(model) + biases + norms + table


def block_norm_parameters(model: ModelConfig) -> int:
    """Parameters of a block's norms over the residual stream."""
    count = (1 if model.shared_norm else 2) + (2 if model.sandwich_norm else 0)
    return count * norm_parameters(model, model.hidden_size)


def visible_pairs(model: ModelConfig, layer: int) -> int:
    """Pairs of query and visible key in one sample at block number `layer`."""
    length = model.seq_length
    window = model.sliding_window if layer_kind(model, layer) == "window" else None
    span = min(length, window or length)
    return span * (span + 1) // 2 + (length - span) * span
