"""The families of `transformers` that a model can be exported as or imported from: what each computes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neox.checkpoint.settings import (
    ACTIVATIONS,
    COMMON,
    FALCON,
    FALCON_7B_HEADS,
    FALCON_40B_HEADS,
    GPT_NEOX,
    LLAMA,
    LLAMA_BIASES,
    QWEN_3,
    Setting,
    rope,
    sliding_window,
)
from neox.config.derive import check_model
from neox.config.errors import UserError
from neox.config.load import from_dict
from neox.config.schema import ModelConfig, ParallelConfig

Allowed = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    architecture: str
    model_type: str
    modules: Mapping[str, str]
    """Our module → theirs, as published files name it; {part} stands for q, k and v where they are separate."""
    settings: tuple[Setting, ...]
    """Its configuration, key by key, beside the common ones."""
    fixed: Mapping[str, Any]
    """Keys of ours that it has one value for."""
    allowed: Callable[[ModelConfig], Allowed]
    """Further keys of ours that it cannot set freely → the values it computes."""
    transformers_4: Callable[[ModelConfig], dict[str, Any]]
    """Keys that transformers 4, and the tools made for it, read instead of rope_parameters."""
    mlp_always_biased: bool = False

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Its configuration of `model`."""
        return {setting.key: setting.write(model) for setting in (*COMMON, *self.settings)}

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        """The model that a configuration, with all its defaults filled in, describes.

        Raises:
            UserError: a key has a value that we do not compute.
        """
        values: dict[str, Any] = dict(self.fixed)
        for setting in (*COMMON, *self.settings):
            values |= setting.read(config.get(setting.key))
        model = _simplest(from_dict({"model": values}).model)
        for setting in (*COMMON, *self.settings):
            found, ours = config.get(setting.key), setting.write(model)
            means = setting.read(found)
            if found not in (ours, *setting.also) and (not means or means != setting.read(ours)):
                raise UserError(f"{setting.key} = {found}: of {self.architecture} only {ours} can be read here")
        for key, allowed in misfits(self, model).items():
            raise UserError(f"model.{key} = {getattr(model, key)}: {self.architecture} has only {allowed}")
        check_model(model, ParallelConfig())
        return model


def choose(model: ModelConfig) -> Family:
    """The family that computes what `model` computes.

    Raises:
        UserError: none does; the line names a key that keeps the nearest one from it.
    """
    nearest = min(FAMILIES, key=lambda family: len(misfits(family, model)))
    for key, values in misfits(nearest, model).items():
        value = getattr(model, key)
        raise UserError(f"model.{key} = {value}: {nearest.architecture} has only {', '.join(map(str, values))}")
    return nearest


def identify(config: Mapping[str, Any]) -> Family:
    """The family of a transformers configuration.

    Raises:
        UserError: it is none of ours.
    """
    found = [family for family in FAMILIES if family.model_type == config.get("model_type")]
    if not found:
        known = sorted({family.model_type for family in FAMILIES})
        raise UserError(f"model_type = {config.get('model_type')}: can be read here: {', '.join(known)}")
    return found[-1 if config.get("new_decoder_architecture") else 0]  # Falcon has two


def misfits(family: Family, model: ModelConfig) -> Allowed:
    """Keys of `model` that the family cannot have so → what it can have."""
    always = {"attn_softcap": (None,), "logit_softcap": (None,), "qk_norm": (False,), "sandwich_norm": (False,)}
    fixed = {key: (value,) for key, value in family.fixed.items()}
    allowed: Allowed = {**always, **fixed, **family.allowed(model), "positions": ("rotary",)}
    return {key: values for key, values in allowed.items() if getattr(model, key) not in values}


def exported_names(family: Family, name: str) -> dict[str, str]:
    """Their names of our logical tensor `name` → the part of its rows: "" for all, or q, k, v."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    pattern = family.modules[module.replace(layer[0], ".{i}.", 1) if layer else module]
    parts = module.rpartition(".")[2] if "{part}" in pattern else ("",)
    return {f"{pattern.format(i=layer[1] if layer else '', part=part)}.{kind}": part for part in parts}


def _simplest(model: ModelConfig) -> ModelConfig:
    """The same model with every size that follows from others left to them."""
    return dataclasses.replace(
        model,
        num_kv_heads=None if model.num_kv_heads == model.num_heads else model.num_kv_heads,
        head_dim=None if model.head_dim == model.hidden_size / model.num_heads else model.head_dim,
        attn_bias=None if model.attn_bias == model.bias else model.attn_bias,
        intermediate_size=None if model.intermediate_size == 4 * model.hidden_size else model.intermediate_size,
    )


def _kinds(model: ModelConfig, kind: str) -> tuple[str, ...]:
    """The layer pattern of one kind of block."""
    return (kind,) * len(model.layer_pattern)


def _gpt_neox_allowed(model: ModelConfig) -> Allowed:
    return {
        "activation": tuple(ACTIVATIONS),
        "num_kv_heads": (None, model.num_heads),
        "head_dim": (None, model.hidden_size / model.num_heads),
        "layer_pattern": (_kinds(model, "global"),),
    }


def _llama_allowed(model: ModelConfig) -> Allowed:
    return {"rotary_scaling": ("none", "linear", "yarn", "llama3"), "layer_pattern": (_kinds(model, "global"),)}


def _mistral_allowed(model: ModelConfig) -> Allowed:
    unbiased = {"bias": (False,), "attn_bias": (None, False)}
    return {**_llama_allowed(model), **unbiased, "layer_pattern": tuple(_kinds(model, k) for k in ("window", "global"))}


def _falcon_allowed(model: ModelConfig) -> Allowed:
    """7B's form, one norm and one kv head, and 40B's, two norms and groups."""
    return {
        "activation": tuple(ACTIVATIONS),
        "head_dim": (None, model.hidden_size / model.num_heads),
        "num_kv_heads": (1,) if model.shared_norm else (*range(1, model.num_heads), model.num_heads, None),
        "layer_pattern": (_kinds(model, "global"),),
        "attn_bias": (None, model.bias),
    }


def _old_rope(model: ModelConfig) -> dict[str, Any]:
    scaling = {key: value for key, value in rope(model).items() if key != "rope_theta"}
    return {"rope_theta": model.rotary_base, "rope_scaling": None if model.rotary_scaling == "none" else scaling}


def _old_neox_rope(model: ModelConfig) -> dict[str, Any]:
    return {"rotary_pct": model.rotary_pct, "rotary_emb_base": model.rotary_base}


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
QWEN_3_MODULES = {
    **LLAMA_MODULES,
    "layers.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_norm",
    "layers.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_norm",
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

GPT_NEOX_FIXED = {"norm": "layernorm", "norm_bias": True, "rotary_scaling": "none", "shared_norm": False}
LLAMA_FIXED = {"norm": "rmsnorm", "activation": "swiglu", "parallel_residual": False, "rotary_pct": 1.0}
FALCON_FIXED = {**GPT_NEOX_FIXED, "parallel_residual": True, "rotary_pct": 1.0}

FAMILIES = (
    Family(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        GPT_NEOX_MODULES,
        GPT_NEOX,
        GPT_NEOX_FIXED,
        _gpt_neox_allowed,
        _old_neox_rope,
        mlp_always_biased=True,
    ),
    Family("LlamaForCausalLM", "llama", LLAMA_MODULES, (*LLAMA, *LLAMA_BIASES), LLAMA_FIXED, _llama_allowed, _old_rope),
    Family(
        "MistralForCausalLM",
        "mistral",
        LLAMA_MODULES,
        (*LLAMA, sliding_window),
        {**LLAMA_FIXED, "bias": False},
        _mistral_allowed,
        _old_rope,
    ),
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        QWEN_3_MODULES,
        (*LLAMA, *QWEN_3),
        {**LLAMA_FIXED, "bias": False, "qk_norm": True},
        _llama_allowed,
        _old_rope,
    ),
    Family(
        "FalconForCausalLM",
        "falcon",
        FALCON_7B_MODULES,
        (*FALCON, *FALCON_7B_HEADS),
        {**FALCON_FIXED, "shared_norm": True},
        _falcon_allowed,
        _old_rope,
    ),
    Family(
        "FalconForCausalLM",
        "falcon",
        FALCON_40B_MODULES,
        (*FALCON, *FALCON_40B_HEADS),
        FALCON_FIXED,
        _falcon_allowed,
        _old_rope,
    ),
)
"""In the order of preference."""
