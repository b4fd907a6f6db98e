"""Floating-point operations of training: those the model needs, and those that making activations again adds."""

from __future__ import annotations

from typing import Literal

from neox.config.derive import ffn_size, padded_vocab
from neox.config.schema import ModelConfig
from neox.config.shape import attention_weights, head_dim, is_gated, visible_pairs


def flops_per_token(model: ModelConfig) -> int:
    """FLOPs of one training token, forward and backward (3 × forward), each query counted with the keys it sees.

    A multiply-add is 2 FLOPs; norms, activations and the embedding look-up are not counted (PaLM, appendix B). Masks
    between packed documents are not looked at: every sample counts as one document.
    """
    blocks = model.num_layers * (2 * attention_weights(model) + _mlp(model)) + _scores_and_values(model)
    return 3 * (blocks + 2 * model.hidden_size * padded_vocab(model))


def recomputed_flops_per_token(model: ModelConfig, recompute: Literal["none", "selective", "full"]) -> int:
    """FLOPs per token that `parallel.recompute` adds to those of `flops_per_token`.

    torch makes again only what backward reads: not the product that ends the part, unless a norm reads it. What fused
    attention makes again inside its backward is not counted, as is usual.
    """
    if recompute == "none":
        return 0
    if recompute == "selective":
        return _scores_and_values(model) // 2  # the scores
    last = 0 if model.sandwich_norm else 2 * model.hidden_size * ffn_size(model)
    return model.num_layers * (2 * attention_weights(model) + _mlp(model) - last) + _scores_and_values(model)


def _mlp(model: ModelConfig) -> int:
    """Forward FLOPs of one block's MLP per token."""
    return 2 * (3 if is_gated(model) else 2) * model.hidden_size * ffn_size(model)


def _scores_and_values(model: ModelConfig) -> int:
    """Forward FLOPs per token of q kᵀ and of the probabilities times v, over all layers."""
    period = len(model.layer_pattern)
    # Block number i and all that follow it at a distance of whole periods.
    pairs = sum(visible_pairs(model, i) * len(range(i, model.num_layers, period)) for i in range(period))
    return 4 * model.num_heads * head_dim(model) * pairs // model.seq_length
