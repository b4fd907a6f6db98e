"""The `model` section: shape and equations of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GATED = ("swiglu", "geglu", "geglu_tanh", "reglu", "glu", "bilinear")
"""The activations that multiply two projections: activation(gate x) * (up x)."""

InitRule = Literal[
    "normal",
    "scaled_normal",
    "single_residual_scaled_normal",
    "small_init",
    "wang_init",
    "xavier_normal",
    "xavier_uniform",
    "orthogonal",
    "scaled_orthogonal",
]
"""GPT-NeoX's rules for initial weights (megatron/model/init_functions.py)."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and equations of the network; nothing here depends on how many ranks run it."""

    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads of the queries; must divide hidden_size unless head_dim is given."""
    num_kv_heads: int | None = None
    """Heads of keys and values, each shared by num_heads / num_kv_heads queries (GQA; 1: MQA). None: num_heads."""
    head_dim: int | None = None
    """Width of one head. None: hidden_size / num_heads."""
    seq_length: int = 2048
    """Tokens per training sample, and the longest context the exported model declares."""
    vocab_size: int | None = None
    """Entries of the tokenizer. None: counted in `data.tokenizer`."""
    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this. GPT-NeoX (make_vocab_size_divisible_by) multiplies it by tp,
    which ties the weights' shape to the layout: set 128 × tp here to get the same."""
    intermediate_size: int | None = None
    """True width of the MLP. None: 4 × hidden_size."""
    layer_pattern: tuple[str, ...] = ("global",)
    """Kinds of the blocks, repeated over the layers: global attends to all earlier tokens, window to the last ones."""
    sliding_window: int | None = None
    """Tokens that a `window` block's query sees, itself included (Mistral; GPT-NeoX's sliding_window_width + 1)."""
    attn_softcap: float | None = None
    """Attention scores s become cap · tanh(s / cap) before the mask (Gemma 2: 50). None: as they are."""
    logit_softcap: float | None = None
    """The same for the logits (Gemma 2: 30)."""
    hidden_dropout: float = 0.0
    """Share of the elements set to 0, in training, of the embedding and of what attention and MLP add to the residual
    stream. Masks depend on train.seed, sample and place, not on the layout."""
    attention_dropout: float = 0.0
    """The same of attention's probabilities, whose whole matrix is then written out."""
    qk_norm: bool = False
    """Normalise every head of the queries and keys, before positions, with weights that the heads share (Qwen 3)."""
    positions: Literal["rotary", "alibi", "learned", "sinusoidal", "t5", "none"] = "rotary"
    """rotary turns queries and keys; alibi and t5 (relative buckets, a table per layer) add to the scores; learned and
    sinusoidal add to the embedding."""
    rotary_pct: float = 0.25
    """Share of each head's dimensions that is rotated; the result must be even."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    rotary_scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    """How frequencies change for contexts longer than trained: linear divides all by rotary_factor (Chen et al., arXiv
    2306.15595), ntk raises the base (by factor^(r / (r - 2)) for r rotated dimensions), yarn and llama3 divide the
    slow ones only (Peng et al., arXiv 2309.00071; Llama 3.1)."""
    rotary_factor: float = 1.0
    """How many times longer the context becomes."""
    rotary_trained_length: int | None = None
    """Context before the extension, for yarn and llama3. None: seq_length / rotary_factor."""
    rotary_ramp: tuple[float, float] | None = None
    """Turns within rotary_trained_length below which a frequency is divided, and above which it is left alone; between
    them it is blended. None: 1 and 32 for yarn, 1 and 4 for llama3."""
    alibi_scale: float = 1.0
    """Multiplies ALiBi's slopes. Falcon-RW scales them with the scores: 1 / sqrt(head_dim)."""
    position_offset: int = 0
    """First row used of the learned positions' table, which has so many rows more (OPT: 2)."""
    t5_buckets: int = 32
    """Rows of the relative table of `t5` (GPT-NeoX: rpe_num_buckets)."""
    t5_max_distance: int = 128
    """Distance from which on all tokens share the last bucket (GPT-NeoX: rpe_max_distance)."""
    norm: Literal["layernorm", "rmsnorm", "scalenorm", "non_parametric_layernorm"] = "layernorm"
    """Normalisation before attention, before the MLP and before the head. scalenorm has one weight: g x / |x|."""
    norm_eps: float = 1e-5
    """Added to the variance; scalenorm: least norm (GPT-NeoX: layernorm_epsilon, rms_norm_epsilon)."""
    norm_bias: bool = True
    """Biases of layernorm (PaLM has none)."""
    sandwich_norm: bool = False
    """Also normalise what attention and MLP give back, before it is added (Gemma 2)."""
    activation: Literal[
        "gelu",
        "gelu_tanh",
        "relu",
        "silu",
        "mish",
        "softsign",
        "swiglu",
        "geglu",
        "geglu_tanh",
        "reglu",
        "glu",
        "bilinear",
    ] = "gelu_tanh"
    """MLP non-linearity. gelu_tanh is what GPT-NeoX computes with bias_gelu_fusion. swiglu, geglu, geglu_tanh, reglu,
    glu and bilinear multiply silu, gelu, tanh-approximated gelu, relu, sigmoid or the identity of a gate projection."""
    parallel_residual: bool = True
    """x + attn(norm1 x) + mlp(norm2 x) instead of two residual steps (GPT-NeoX: gpt_j_residual)."""
    shared_norm: bool = False
    """One norm before both branches of a parallel block (GPT-NeoX: gpt_j_tied; GPT-J, Falcon-7B, PaLM)."""
    tie_embeddings: bool = False
    """Share the embedding with the output head (GPT-NeoX: not no_weight_tying)."""
    bias: bool = True
    """Biases on every linear layer but the head."""
    attn_bias: bool | None = None
    """Biases of attention's linear layers. None: as `bias`."""
    init: InitRule = "small_init"
    """Embedding, QKV, MLP-in and head. Standard deviations: normal init_std, scaled_normal init_std / sqrt(2 layers),
    single_residual_scaled_normal init_std / sqrt(layers), small_init sqrt(2 / (5 hidden)), wang_init
    2 / (layers sqrt(hidden)); xavier_* of each matrix; orthogonal times sqrt(2), scaled_orthogonal sqrt(2 / layers)."""
    output_init: InitRule = "wang_init"
    """Attention-out and MLP-out, by the same rules (GPT-NeoX: output_layer_init_method)."""
    init_std: float = 0.02
    """Standard deviation of `normal`, and of its scaled forms before they are (GPT-NeoX: init_method_std)."""
