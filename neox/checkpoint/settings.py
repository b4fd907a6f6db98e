"""What a configuration of `transformers` calls our keys: one table per family, written and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from neox.config.derive import ffn_size, padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.config.shape import ROTARY_RAMPS, has_attention_bias, head_dim, num_kv_heads

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
"""model.activation → the name in transformers, of MLPs without a gate."""

ALIASES = {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu"}
"""Other names in transformers of the same functions."""


@dataclass(frozen=True)
class Setting:
    """One key of their configuration."""

    key: str
    write: Callable[[ModelConfig], Any]
    """Its value for a model of ours."""
    read: Callable[[Any], dict[str, Any]]
    """What of ours a value says; empty where it says nothing that we know."""
    also: tuple[Any, ...] = ()
    """Values that mean the same to us as the one written."""


def _same(key: str, ours: str, size: Callable[[ModelConfig], Any] | None = None) -> Setting:
    """Their key is ours; `size` resolves ours where it may be None."""
    return Setting(key, size or attrgetter(ours), lambda value: {} if value is None else {ours: value})


def _always(key: str, value: Any, *also: Any) -> Setting:
    """A key that has one value in models like ours."""
    return Setting(key, lambda model: value, lambda found: {}, also)


def _activation(key: str) -> Setting:
    known = {**{theirs: ours for ours, theirs in ACTIVATIONS.items()}, **ALIASES}

    def read(value: Any) -> dict[str, Any]:
        if value not in known:
            raise UserError(f"{key} = {value}: can be read here: {', '.join(known)}")
        return {"activation": known[value]}

    return Setting(key, lambda model: ACTIVATIONS[model.activation], read)


def vocab_multiple(vocab_size: int, padded: int) -> int:
    """The usual one of the multiples that `vocab_size` is padded with to `padded` rows."""
    usual = (128, 256, 512, 1024, 64, 32, 16, 8, 4, 2, 1)
    return next((m for m in usual if -(-vocab_size // m) * m == padded), padded)


def _read_vocabulary(value: Any) -> dict[str, Any]:
    return {"vocab_size": value, "vocab_multiple": vocab_multiple(value, value)}


COMMON = (
    Setting("vocab_size", padded_vocab, _read_vocabulary),
    _same("hidden_size", "hidden_size"),
    _same("num_hidden_layers", "num_layers"),
    _same("num_attention_heads", "num_heads"),
    _same("max_position_embeddings", "seq_length"),
    _same("initializer_range", "init_std"),
    _same("tie_word_embeddings", "tie_embeddings"),
)
"""What every family calls by the same name."""

ROPE_KEYS = {
    "yarn": ("beta_slow", "beta_fast"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
"""rope_type → the two ends of the ramp, `model.rotary_ramp`."""


def rope(model: ModelConfig) -> dict[str, Any]:
    """rope_parameters of a model whose heads are rotated whole."""
    kind = model.rotary_scaling
    out: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind, "rope_theta": model.rotary_base}
    if kind == "none":
        return out
    out["factor"] = model.rotary_factor
    if kind == "linear":
        return out
    out["original_max_position_embeddings"] = model.rotary_trained_length or int(model.seq_length / model.rotary_factor)
    return {**out, **dict(zip(ROPE_KEYS[kind], model.rotary_ramp or ROTARY_RAMPS[kind], strict=True))}


def _partial_rope(model: ModelConfig) -> dict[str, Any]:
    return {**rope(model), "partial_rotary_factor": model.rotary_pct}


def _read_rope(value: Any) -> dict[str, Any]:
    given = {key: found for key, found in dict(value or {}).items() if found is not None and key != "type"}
    kind = given.pop("rope_type", "default")
    if kind not in ("default", "linear", *ROPE_KEYS):
        raise UserError(f"rope_parameters: rope_type = {kind} is not in this trainer: default, linear, yarn, llama3")
    out: dict[str, Any] = {"rotary_base": given.pop("rope_theta", 10000.0)}
    out["rotary_pct"] = given.pop("partial_rotary_factor", 1.0)
    if kind != "default":
        out |= {"rotary_scaling": kind, "rotary_factor": given.pop("factor")}
    if kind in ROPE_KEYS:
        out["rotary_trained_length"] = given.pop("original_max_position_embeddings", None)
        ramp = tuple(given.pop(key, end) for key, end in zip(ROPE_KEYS[kind], ROTARY_RAMPS[kind], strict=True))
        out["rotary_ramp"] = None if ramp == ROTARY_RAMPS[kind] else ramp
    for key, found in given.items():
        if found not in IGNORED_ROPE.get(key, ()):
            raise UserError(f"rope_parameters: {key} = {found} is not in this trainer")
    return out


IGNORED_ROPE = {"original_max_position_embeddings": range(1 << 31), "truncate": (True,)}
"""Keys without effect at these values."""

GPT_NEOX = (
    _same("intermediate_size", "intermediate_size", ffn_size),
    _activation("hidden_act"),
    _same("layer_norm_eps", "norm_eps"),
    Setting("rope_parameters", _partial_rope, _read_rope),
    _same("use_parallel_residual", "parallel_residual"),
    Setting("attention_bias", has_attention_bias, lambda value: {"attn_bias": value}),
)
LLAMA = (
    _same("intermediate_size", "intermediate_size", ffn_size),
    _always("hidden_act", "silu", "swish"),
    _same("num_key_value_heads", "num_kv_heads", num_kv_heads),
    _same("head_dim", "head_dim", head_dim),
    _same("rms_norm_eps", "norm_eps"),
    Setting("rope_parameters", rope, _read_rope),
)
LLAMA_BIASES = (_same("attention_bias", "attn_bias", has_attention_bias), _same("mlp_bias", "bias"))
QWEN_3 = (
    LLAMA_BIASES[0],
    _always("use_sliding_window", False),
    Setting("layer_types", lambda model: ["full_attention"] * model.num_layers, lambda value: {}, (None,)),
)

sliding_window = Setting(
    "sliding_window",
    attrgetter("sliding_window"),
    lambda value: {} if value is None else {"sliding_window": value, "layer_pattern": ("window",)},
)
FALCON = (
    _same("ffn_hidden_size", "intermediate_size", ffn_size),
    _activation("activation"),
    _same("layer_norm_epsilon", "norm_eps"),
    _same("bias", "bias"),
    _always("alibi", False),
    _always("parallel_attn", True),
    _always("multi_query", True),
    Setting("rope_parameters", rope, _read_rope),
)
FALCON_7B_HEADS = (
    _always("new_decoder_architecture", False),
    # With one kv head for all transformers does not look at this key, and published files have the number of heads.
    Setting("num_kv_heads", num_kv_heads, lambda value: {"num_kv_heads": 1}),
)
FALCON_40B_HEADS = (
    _always("new_decoder_architecture", True),
    _always("num_ln_in_parallel_attn", None, 2),
    _same("num_kv_heads", "num_kv_heads", num_kv_heads),
)
