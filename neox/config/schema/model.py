"""The `model` section: shape and equations of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Shape and equations of the network; nothing here depends on how many ranks run it."""

    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads; must divide hidden_size."""
    seq_length: int = 2048
    """Tokens per training sample, and the longest context the exported model declares."""
    vocab_size: int | None = None
    """Entries of the tokenizer. None: counted in `data.tokenizer`."""
    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this. GPT-NeoX (make_vocab_size_divisible_by) multiplies it by tp,
    which ties the weights' shape to the layout: set 128 × tp here to get the same."""
    intermediate_size: int | None = None
    """True width of the MLP. None: 4 × hidden_size."""
    rotary_pct: float = 0.25
    """Share of each head's dimensions that is rotated; the result must be even."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and before the head."""
    norm_eps: float = 1e-5
    """Added to the variance (GPT-NeoX: layernorm_epsilon, rms_norm_epsilon)."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    """MLP non-linearity. gelu_tanh is what GPT-NeoX computes with bias_gelu_fusion; swiglu adds a gate projection."""
    parallel_residual: bool = True
    """x + attn(norm1 x) + mlp(norm2 x) instead of two residual steps (GPT-NeoX: gpt_j_residual)."""
    tie_embeddings: bool = False
    """Share the embedding with the output head (GPT-NeoX: not no_weight_tying)."""
    bias: bool = True
    """Biases on every linear layer but the head."""
    init: Literal["normal", "small_init"] = "small_init"
    """Embedding, QKV, MLP-in and head: normal std = init_std, or small_init std = sqrt(2 / (5 hidden))."""
    output_init: Literal["scaled_normal", "wang_init"] = "wang_init"
    """Attention-out and MLP-out: scaled_normal std = init_std / sqrt(2 layers), wang_init 2 / (layers sqrt(hidden))."""
    init_std: float = 0.02
    """Standard deviation of `normal` and `scaled_normal`."""
