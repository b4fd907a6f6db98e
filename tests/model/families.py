"""Small random models of transformers, each with our configuration of the same model and the way to our weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from neox.config.schema import ModelConfig

VOCAB, LENGTH, LAYERS, HIDDEN = 96, 40, 3, 48
BASE = ModelConfig(
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    num_heads=4,
    seq_length=LENGTH,
    vocab_size=VOCAB,
    vocab_multiple=1,
    rotary_pct=1.0,
    activation="gelu",
)
SHAPE = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """`to_ours` is linear, so that it maps gradients too; `scales` and `shifts` are applied to weights on top."""

    config: Callable[[], Any]
    ours: ModelConfig
    to_ours: Callable[[Tensors, ModelConfig], dict[str, Tensor]]
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Our name → factor of the weight; gradients are divided by it."""
    norm_shift: float = 0.0
    """Added to norm weights (Gemma stores them less one)."""
    implementation: str = "eager"
    """Their attention."""

    def build(self) -> nn.Module:
        """The transformers model with no parameter left at a zero or one."""
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(self.config(), attn_implementation=self.implementation)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    def weights(self, theirs: Tensors) -> dict[str, Tensor]:
        """Our state from theirs."""
        out = {name: value * self.scales.get(name, 1.0) for name, value in self._named(theirs).items()}
        return {name: value + self.norm_shift * name.endswith("norm.weight") for name, value in out.items()}

    def gradients(self, theirs: Tensors) -> dict[str, Tensor]:
        """Our gradients from theirs."""
        return {name: g / self.scales.get(name, 1.0) for name, g in self._named(theirs).items()}

    def _named(self, theirs: Tensors) -> dict[str, Tensor]:
        """`to_ours`; the queries of multi-query attention are a tensor of their own."""
        out = self.to_ours(theirs, self.ours)
        size = self.ours.head_dim or self.ours.hidden_size // self.ours.num_heads
        for name in [name for name in out if ".qkv." in name and self.ours.num_kv_heads == 1]:
            fused = out.pop(name)
            out[name.replace("qkv", "q")], out[name.replace("qkv", "kv")] = fused[: -2 * size], fused[-2 * size :]
        return out


def fuse(q: Tensor, k: Tensor, v: Tensor, cfg: ModelConfig) -> Tensor:
    """Separate projections, [heads × head_dim, …] each, as our rows [kv head][its queries, k, v][head_dim]."""
    kv = cfg.num_kv_heads or cfg.num_heads
    size = k.shape[0] // kv
    parts = [t.unflatten(0, (kv, -1, size)) for t in (q, k, v)]
    return torch.cat(parts, 1).flatten(0, 2)


def rename(theirs: Tensors, table: Mapping[str, str]) -> dict[str, Tensor]:
    """Their tensors under our names; `table` maps module prefixes, {i} a layer number; what it lacks is left out."""
    out = {}
    for their, our in table.items():
        for i in range(LAYERS if "{i}" in their else 1):
            for part in ("weight", "bias"):
                name = f"{their.format(i=i)}.{part}"
                if name in theirs:
                    out[f"{our.format(i=i)}.{part}"] = theirs[name]
    return out


LLAMA = {
    "model.embed_tokens": "embed",
    "model.layers.{i}.input_layernorm": "layers.{i}.attn_norm",
    "model.layers.{i}.self_attn.o_proj": "layers.{i}.attn.out",
    "model.layers.{i}.self_attn.q_norm": "layers.{i}.attn.q_norm",
    "model.layers.{i}.self_attn.k_norm": "layers.{i}.attn.k_norm",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
    "model.layers.{i}.mlp.gate_proj": "layers.{i}.mlp.gate",
    "model.layers.{i}.mlp.up_proj": "layers.{i}.mlp.up",
    "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.down",
    "model.norm": "final_norm",
    "lm_head": "head",
}
GEMMA = {
    **LLAMA,
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.attn_post_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "layers.{i}.mlp_norm",
    "model.layers.{i}.post_feedforward_layernorm": "layers.{i}.mlp_post_norm",
}
OPT = {
    "model.decoder.embed_tokens": "embed",
    "model.decoder.embed_positions": "positions",
    "model.decoder.layers.{i}.self_attn_layer_norm": "layers.{i}.attn_norm",
    "model.decoder.layers.{i}.self_attn.out_proj": "layers.{i}.attn.out",
    "model.decoder.layers.{i}.final_layer_norm": "layers.{i}.mlp_norm",
    "model.decoder.layers.{i}.fc1": "layers.{i}.mlp.up",
    "model.decoder.layers.{i}.fc2": "layers.{i}.mlp.down",
    "model.decoder.final_layer_norm": "final_norm",
}
NEOX = {
    "gpt_neox.embed_in": "embed",
    "gpt_neox.layers.{i}.input_layernorm": "layers.{i}.attn_norm",
    "gpt_neox.layers.{i}.attention.query_key_value": "layers.{i}.attn.qkv",
    "gpt_neox.layers.{i}.attention.dense": "layers.{i}.attn.out",
    "gpt_neox.layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
    "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.up",
    "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
    "gpt_neox.final_layer_norm": "final_norm",
    "lm_head": "head",
}
FALCON = {
    "transformer.word_embeddings": "embed",
    "transformer.h.{i}.input_layernorm": "layers.{i}.attn_norm",
    "transformer.h.{i}.ln_attn": "layers.{i}.attn_norm",
    "transformer.h.{i}.self_attention.query_key_value": "layers.{i}.attn.qkv",
    "transformer.h.{i}.self_attention.dense": "layers.{i}.attn.out",
    "transformer.h.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
    "transformer.h.{i}.ln_mlp": "layers.{i}.mlp_norm",
    "transformer.h.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.up",
    "transformer.h.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
    "transformer.ln_f": "final_norm",
}
GPT2 = {
    "transformer.wte": "embed",
    "transformer.wpe": "positions",
    "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
    "transformer.h.{i}.attn.c_proj": "layers.{i}.attn.out",
    "transformer.h.{i}.ln_2": "layers.{i}.mlp_norm",
    "transformer.h.{i}.mlp.c_fc": "layers.{i}.mlp.up",
    "transformer.h.{i}.mlp.c_proj": "layers.{i}.mlp.down",
    "transformer.ln_f": "final_norm",
}
MPT = {
    "transformer.wte": "embed",
    "transformer.blocks.{i}.norm_1": "layers.{i}.attn_norm",
    "transformer.blocks.{i}.attn.out_proj": "layers.{i}.attn.out",
    "transformer.blocks.{i}.norm_2": "layers.{i}.mlp_norm",
    "transformer.blocks.{i}.ffn.up_proj": "layers.{i}.mlp.up",
    "transformer.blocks.{i}.ffn.down_proj": "layers.{i}.mlp.down",
    "transformer.norm_f": "final_norm",
}
"""Their modules → ours, without those that are fused."""


def renamed(table: Mapping[str, str]) -> Callable[[Tensors, ModelConfig], dict[str, Tensor]]:
    """Nothing to fuse."""
    return lambda theirs, cfg: rename(theirs, table)


def with_projections(table: Mapping[str, str], attention: str) -> Callable[[Tensors, ModelConfig], dict[str, Tensor]]:
    """q_proj, k_proj and v_proj in `attention` become `qkv`."""

    def to_ours(theirs: Tensors, cfg: ModelConfig) -> dict[str, Tensor]:
        out = rename(theirs, table)
        for i in range(LAYERS):
            for part in ("weight", "bias"):
                names = [f"{attention.format(i=i)}.{which}_proj.{part}" for which in "qkv"]
                if names[0] in theirs:
                    out[f"layers.{i}.attn.qkv.{part}"] = fuse(*(theirs[name] for name in names), cfg)
        return out

    return to_ours


def with_thirds(table: Mapping[str, str], fused: str, is_transposed: bool) -> Callable[..., dict[str, Tensor]]:
    """All queries, then all keys, then all values in `fused`; GPT-2's matrices are [in, out]."""

    def to_ours(theirs: Tensors, cfg: ModelConfig) -> dict[str, Tensor]:
        turned = {
            name: t.T if is_transposed and name.endswith(("attn.weight", "proj.weight", "fc.weight")) else t
            for name, t in theirs.items()
        }
        out = rename(turned, table)
        for i in range(LAYERS):
            for part in ("weight", "bias"):
                name = f"{fused.format(i=i)}.{part}"
                if name in turned:
                    out[f"layers.{i}.attn.qkv.{part}"] = fuse(*turned[name].chunk(3), cfg)
        return out

    return to_ours


def _llama(config: type, rope: dict[str, Any] | None = None, **changes: Any) -> Callable[[], Any]:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})}
    shape = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 80, "max_position_embeddings": LENGTH}
    return lambda: config(**{**shape, "rope_parameters": parameters, "rms_norm_eps": 1e-5, **changes})


def _ours(**changes: Any) -> ModelConfig:
    return dataclasses.replace(BASE, **changes)


MODERN: dict[str, Any] = {
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "parallel_residual": False,
    "num_kv_heads": 2,
    "intermediate_size": 80,
}
"""What Llama and its descendants share."""
TO_LLAMA = with_projections(LLAMA, "model.layers.{i}.self_attn")
SEQUENTIAL: dict[str, Any] = {"parallel_residual": False, "tie_embeddings": True}
FALCON_SHAPE = {**SHAPE, "alibi": False, "bias": False, "parallel_attn": True, "multi_query": True}


def _gpt_neox(**changes: Any) -> Any:
    shape = {**SHAPE, "intermediate_size": 4 * HIDDEN, "max_position_embeddings": LENGTH}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return transformers.GPTNeoXConfig(**{**shape, "rope_parameters": rope, **changes})


def _gpt2() -> Any:
    return transformers.GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=HIDDEN, n_layer=LAYERS, n_head=4)


def _opt() -> Any:
    shape = {**SHAPE, "ffn_dim": 80, "max_position_embeddings": LENGTH, "word_embed_proj_dim": HIDDEN}
    return transformers.OPTConfig(**shape, do_layer_norm_before=True, pad_token_id=0)


def _gemma2() -> Any:
    special = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "attn_logit_softcapping": 2.0}
    capped = {**special, "final_logit_softcapping": 3.0, "tie_word_embeddings": False}
    return _llama(transformers.Gemma2Config, hidden_activation="gelu_pytorch_tanh", **capped)()


def _mpt() -> Any:
    return transformers.MptConfig(d_model=HIDDEN, n_heads=4, n_layers=LAYERS, vocab_size=VOCAB, max_seq_len=LENGTH)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, "rope_theta": 100.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
FAMILIES = {
    "GPTNeoX": Family(_gpt_neox, _ours(rotary_pct=0.5), renamed(NEOX)),
    "GPTNeoX, sequential": Family(
        lambda: _gpt_neox(use_parallel_residual=False), _ours(rotary_pct=0.5, parallel_residual=False), renamed(NEOX)
    ),
    "Llama, GQA": Family(_llama(transformers.LlamaConfig), _ours(**MODERN), TO_LLAMA),
    "Llama, MQA": Family(
        _llama(transformers.LlamaConfig, num_key_value_heads=1), _ours(**{**MODERN, "num_kv_heads": 1}), TO_LLAMA
    ),
    "Llama, linear": Family(
        _llama(transformers.LlamaConfig, {"rope_type": "linear", "factor": 2.5}),
        _ours(**MODERN, rotary_scaling="linear", rotary_factor=2.5),
        TO_LLAMA,
    ),
    "Llama, NTK": Family(  # theirs grows the base with the length: 3 · 40 / 16 - (3 - 1) = 5.5
        _llama(transformers.LlamaConfig, {"rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=16),
        _ours(**MODERN, rotary_scaling="ntk", rotary_factor=5.5),
        TO_LLAMA,
    ),
    "Llama, YaRN": Family(
        _llama(transformers.LlamaConfig, YARN),
        _ours(**MODERN, rotary_scaling="yarn", rotary_factor=4.0, rotary_base=100.0),
        TO_LLAMA,
    ),
    "Llama 3": Family(
        _llama(transformers.LlamaConfig, LLAMA3),
        _ours(**MODERN, rotary_scaling="llama3", rotary_factor=8.0, rotary_trained_length=20),
        TO_LLAMA,
    ),
    "Mistral, window": Family(
        _llama(transformers.MistralConfig, sliding_window=7),
        _ours(**MODERN, layer_pattern=("window",), sliding_window=7),
        TO_LLAMA,
    ),
    "Qwen 3": Family(
        _llama(transformers.Qwen3Config, head_dim=16), _ours(**MODERN, head_dim=16, qk_norm=True), TO_LLAMA
    ),
    "Gemma 2": Family(
        _gemma2,
        _ours(
            **{**MODERN, "activation": "geglu_tanh"},
            head_dim=16,
            layer_pattern=("window", "global"),
            sliding_window=6,
            attn_softcap=2.0,
            logit_softcap=3.0,
            sandwich_norm=True,
        ),
        with_projections(GEMMA, "model.layers.{i}.self_attn"),
        scales={"embed.weight": HIDDEN**0.5},
        norm_shift=1.0,
    ),
    "Falcon 7B": Family(
        lambda: transformers.FalconConfig(**FALCON_SHAPE),
        _ours(num_kv_heads=1, shared_norm=True, bias=False, tie_embeddings=True),
        renamed(FALCON),
    ),
    "Falcon 40B": Family(
        lambda: transformers.FalconConfig(**FALCON_SHAPE, new_decoder_architecture=True, num_kv_heads=2),
        _ours(num_kv_heads=2, bias=False, tie_embeddings=True),
        renamed(FALCON),
    ),
    "Falcon RW, ALiBi": Family(
        lambda: transformers.FalconConfig(
            **{**FALCON_SHAPE, "alibi": True, "bias": True, "parallel_attn": False, "multi_query": False}
        ),
        _ours(positions="alibi", alibi_scale=12**-0.5, **SEQUENTIAL),
        renamed(FALCON),
        implementation="sdpa",  # in 5.23 the eager one adds ALiBi twice: in the mask and to the scores
    ),
    "MPT, ALiBi": Family(
        _mpt,
        _ours(positions="alibi", bias=False, norm_bias=False, **SEQUENTIAL),
        with_thirds(MPT, "transformer.blocks.{i}.attn.Wqkv", is_transposed=False),
    ),
    "GPT-2": Family(
        _gpt2,
        _ours(positions="learned", activation="gelu_tanh", **SEQUENTIAL),
        with_thirds(GPT2, "transformer.h.{i}.attn.c_attn", is_transposed=True),
    ),
    "OPT": Family(
        _opt,
        _ours(positions="learned", position_offset=2, activation="relu", intermediate_size=80, **SEQUENTIAL),
        with_projections(OPT, "model.decoder.layers.{i}.self_attn"),
    ),
}
"""Name → what to compare."""
