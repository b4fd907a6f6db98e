"""The families of `transformers` that a model can be exported as: names, configurations, and what they compute."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neox.config.derive import ffn_size, padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.config.shape import has_attention_bias, head_dim, num_kv_heads

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
"""model.activation → the name in transformers, of MLPs without a gate."""

Allowed = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    architecture: str
    model_type: str
    modules: Mapping[str, str]
    """Our module → theirs, as published files name it; {part} stands for q, k and v where they are separate."""
    allowed: Callable[[ModelConfig], Allowed]
    """Keys of ours that it cannot set freely → the values it computes."""
    settings: Callable[[ModelConfig], dict[str, Any]]
    """Keyword arguments of its configuration, beside the common ones."""
    transformers_4: Callable[[ModelConfig], dict[str, Any]]
    """Keys that transformers 4, and the tools made for it, read instead of rope_parameters."""
    mlp_always_biased: bool = False


def choose(model: ModelConfig) -> Family:
    """The family that computes what `model` computes.

    Raises:
        UserError: none does; the line names a key that keeps the nearest one from it.
    """
    nearest = min(FAMILIES, key=lambda family: len(_misfits(family, model)))
    for key, values in _misfits(nearest, model).items():
        value = getattr(model, key)
        raise UserError(f"model.{key} = {value}: {nearest.architecture} has only {', '.join(map(str, values))}")
    return nearest


def _misfits(family: Family, model: ModelConfig) -> Allowed:
    always = {"attn_softcap": (None,), "logit_softcap": (None,), "qk_norm": (False,), "sandwich_norm": (False,)}
    allowed: Allowed = {**family.allowed(model), **always, "positions": ("rotary",)}
    return {key: values for key, values in allowed.items() if getattr(model, key) not in values}


def exported_names(family: Family, name: str) -> dict[str, str]:
    """Their names of our logical tensor `name` → the part of its rows: "" for all, or q, k, v."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    pattern = family.modules[module.replace(layer[0], ".{i}.", 1) if layer else module]
    parts = module.rpartition(".")[2] if "{part}" in pattern else ("",)
    return {f"{pattern.format(i=layer[1] if layer else '', part=part)}.{kind}": part for part in parts}


def common_settings(model: ModelConfig) -> dict[str, Any]:
    """What every configuration of transformers calls by the same name."""
    return {
        "vocab_size": padded_vocab(model),
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "max_position_embeddings": model.seq_length,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _kinds(model: ModelConfig, kind: str) -> tuple[tuple[str, ...]]:
    """The only layer pattern of one kind of block."""
    return ((kind,) * len(model.layer_pattern),)


def _gpt_neox_allowed(model: ModelConfig) -> Allowed:
    return {
        "norm": ("layernorm",),
        "norm_bias": (True,),
        "activation": tuple(ACTIVATIONS),
        "rotary_scaling": ("none",),
        "num_kv_heads": (None, model.num_heads),
        "head_dim": (None, model.hidden_size / model.num_heads),
        "layer_pattern": _kinds(model, "global"),
        "shared_norm": (False,),
        "attn_bias": (None, model.bias),
    }


def _gpt_neox_settings(model: ModelConfig) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": model.rotary_base, "partial_rotary_factor": model.rotary_pct}
    return {
        "intermediate_size": ffn_size(model),
        "hidden_act": ACTIVATIONS[model.activation],
        "layer_norm_eps": model.norm_eps,
        "rope_parameters": rope,
        "use_parallel_residual": model.parallel_residual,
        "attention_bias": model.bias,
    }


def _llama_allowed(model: ModelConfig) -> Allowed:
    return {
        "norm": ("rmsnorm",),
        "activation": ("swiglu",),
        "parallel_residual": (False,),
        "rotary_pct": (1.0,),
        "rotary_scaling": ("none", "linear", "yarn", "llama3"),
        "layer_pattern": _kinds(model, "global"),
    }


def _llama_settings(model: ModelConfig) -> dict[str, Any]:
    return {
        "intermediate_size": ffn_size(model),
        "hidden_act": "silu",
        "num_key_value_heads": num_kv_heads(model),
        "head_dim": head_dim(model),
        "rms_norm_eps": model.norm_eps,
        "attention_bias": has_attention_bias(model),
        "mlp_bias": model.bias,
        "rope_parameters": _rope(model),
    }


def _mistral_allowed(model: ModelConfig) -> Allowed:
    unbiased = {"bias": (False,), "attn_bias": (None, False)}
    return {**_llama_allowed(model), **unbiased, "layer_pattern": _kinds(model, "window")}


def _mistral_settings(model: ModelConfig) -> dict[str, Any]:
    shared = {key: value for key, value in _llama_settings(model).items() if not key.endswith("_bias")}
    return {**shared, "sliding_window": model.sliding_window}


def _falcon_allowed(model: ModelConfig) -> Allowed:
    """7B's form, one norm and one kv head, and 40B's, two norms and groups."""
    return {
        "norm": ("layernorm",),
        "norm_bias": (True,),
        "activation": tuple(ACTIVATIONS),
        "parallel_residual": (True,),
        "rotary_pct": (1.0,),
        "rotary_scaling": ("none",),
        "head_dim": (None, model.hidden_size / model.num_heads),
        "num_kv_heads": (1,) if model.shared_norm else (*range(1, model.num_heads), model.num_heads, None),
        "layer_pattern": _kinds(model, "global"),
        "attn_bias": (None, model.bias),
    }


def _falcon_settings(model: ModelConfig) -> dict[str, Any]:
    return {
        "ffn_hidden_size": ffn_size(model),
        "activation": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_eps,
        "bias": model.bias,
        "parallel_attn": True,
        "multi_query": True,
        "new_decoder_architecture": not model.shared_norm,
        "num_kv_heads": num_kv_heads(model),
        "rope_parameters": _rope(model),
    }


def _old_rope(model: ModelConfig) -> dict[str, Any]:
    scaling = {key: value for key, value in _rope(model).items() if key != "rope_theta"}
    return {"rope_theta": model.rotary_base, "rope_scaling": None if model.rotary_scaling == "none" else scaling}


def _old_neox_rope(model: ModelConfig) -> dict[str, Any]:
    return {"rotary_pct": model.rotary_pct, "rotary_emb_base": model.rotary_base}


def _rope(model: ModelConfig) -> dict[str, Any]:
    kind = model.rotary_scaling
    out: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind, "rope_theta": model.rotary_base}
    if kind == "none":
        return out
    out["factor"] = model.rotary_factor
    if kind == "linear":
        return out
    out["original_max_position_embeddings"] = model.rotary_trained_length or int(model.seq_length / model.rotary_factor)
    names = ("beta_slow", "beta_fast") if kind == "yarn" else ("low_freq_factor", "high_freq_factor")
    ramp = model.rotary_ramp or ((1.0, 32.0) if kind == "yarn" else (1.0, 4.0))
    return {**out, **dict(zip(names, ramp, strict=True))}


GPT_NEOX_MODULES = {
    "embed": "gpt_neox.embed_in",
    "layers.{i}.attn_norm": "gpt_neox.layers.{i}.input_layernorm",
    "layers.{i}.attn.qkv": "gpt_neox.layers.{i}.attention.query_key_value",
    "layers.{i}.attn.out": "gpt_neox.layers.{i}.attention.dense",
    "layers.{i}.mlp_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "layers.{i}.mlp.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}
"""Both order the rows of the fused QKV as [head][q, k, v][head_dim], so no tensor is rearranged."""

LLAMA_MODULES = {
    "embed": "model.embed_tokens",
    "layers.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.attn.qkv": "model.layers.{i}.self_attn.{part}_proj",
    "layers.{i}.attn.q": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.attn.kv": "model.layers.{i}.self_attn.{part}_proj",
    "layers.{i}.attn.out": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
FALCON_7B_MODULES = {
    "embed": "transformer.word_embeddings",
    "layers.{i}.attn_norm": "transformer.h.{i}.input_layernorm",
    "layers.{i}.attn.qkv": "transformer.h.{i}.self_attention.query_key_value",
    "layers.{i}.attn.q": "transformer.h.{i}.self_attention.query_key_value",
    "layers.{i}.attn.kv": "transformer.h.{i}.self_attention.query_key_value",
    "layers.{i}.attn.out": "transformer.h.{i}.self_attention.dense",
    "layers.{i}.mlp.up": "transformer.h.{i}.mlp.dense_h_to_4h",
    "layers.{i}.mlp.down": "transformer.h.{i}.mlp.dense_4h_to_h",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
"""Falcon's fused rows are ours, [kv head][its queries, k, v][head_dim], and of multi-query attention ours in turn."""

FALCON_40B_MODULES = {
    **FALCON_7B_MODULES,
    "layers.{i}.attn_norm": "transformer.h.{i}.ln_attn",
    "layers.{i}.mlp_norm": "transformer.h.{i}.ln_mlp",
}

FAMILIES = (
    Family(
        "GPTNeoXForCausalLM", "gpt_neox", GPT_NEOX_MODULES, _gpt_neox_allowed, _gpt_neox_settings, _old_neox_rope, True
    ),
    Family("LlamaForCausalLM", "llama", LLAMA_MODULES, _llama_allowed, _llama_settings, _old_rope),
    Family("MistralForCausalLM", "mistral", LLAMA_MODULES, _mistral_allowed, _mistral_settings, _old_rope),
    Family(
        "FalconForCausalLM",
        "falcon",
        FALCON_7B_MODULES,
        lambda model: {**_falcon_allowed(model), "shared_norm": (True,)},
        _falcon_settings,
        _old_rope,
    ),
    Family(
        "FalconForCausalLM",
        "falcon",
        FALCON_40B_MODULES,
        lambda model: {**_falcon_allowed(model), "shared_norm": (False,)},
        _falcon_settings,
        _old_rope,
    ),
)
"""In the order of preference."""
