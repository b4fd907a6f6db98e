"""GPT-NeoX keys that need more than a new name: one function per group, each returning our dotted keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from neox.config.errors import UserError
from neox.config.legacy_table_run import KEYS
from neox.config.partition import partition_mistake
from neox.config.schema.model import InitRule


class Flat:
    """The flat keys as GPT-NeoX would see them: its defaults apply where a key is not set."""

    def __init__(self, sources: Mapping[str, tuple[str, Any]], *required: str) -> None:
        self.sources = sources
        self.notices: list[str] = []
        self.files = ", ".join(dict.fromkeys(path for path, _ in sources.values()))
        for name in ("num_layers", "hidden_size", "num_attention_heads", "seq_length", *required):
            if self.get(name) is None:
                raise UserError(f"{self.files}: GPT-NeoX key {name} is required: give all files of the configuration")

    def is_set(self, name: str) -> bool:
        return name in self.sources and self.sources[name][1] is not None

    def get(self, name: str) -> Any:
        return self.sources[name][1] if self.is_set(name) else KEYS[name].default

    def count(self, name: str, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refusal(name, f"a whole number of at least {least}")
        return value

    def block(self, name: str) -> Mapping[str, Any]:
        """A nested block of DeepSpeed's; empty where it is not set."""
        return self.get(name) or {}

    def inner_block(self, name: str, inner: str) -> Mapping[str, Any]:
        """A block within one of DeepSpeed's; empty where it is not set."""
        value = self.block(name).get(inner) or {}
        if not isinstance(value, Mapping):
            raise self.refusal(name, "expected a block of keys", inner, value)
        return value

    def only(self, name: str, block: Mapping[str, Any], known: Sequence[str], within: str = "") -> None:
        """Refuses what a block has beside the `known` keys, unless it is off; `within`: "INNER." of a nested one."""
        for key, value in block.items():
            if key not in known and value not in (False, None):
                raise self.refusal(name, "is not in this trainer yet: leave it out", f"{within}{key}", value)

    def refusal(self, name: str, reason: str, inner: str = "", value: Any = None) -> UserError:
        """The error for one key, or one key of its block."""
        path = self.sources[name][0] if name in self.sources else self.files
        shown = repr(value if inner else self.get(name))[:60]
        origin = "" if inner or self.is_set(name) else " (not set: GPT-NeoX's default)"
        return UserError(f"{path}: GPT-NeoX key {name}{f'.{inner}' if inner else ''} = {shown}{origin}: {reason}")


Converted = dict[str, Any]


def shape(flat: Flat) -> Converted:
    """Residual stream, biases, vocabulary."""
    is_parallel = flat.get("gpt_j_residual")
    if flat.get("gpt_j_tied") and not is_parallel:
        flat.notices.append("gpt_j_tied: GPT-NeoX reads it only with gpt_j_residual")
    bias, attn_bias = flat.get("use_bias_in_mlp"), flat.get("use_bias_in_attn_linear")
    if not bias and is_parallel:
        flat.notices.append("use_bias_in_mlp: without them and with gpt_j_residual GPT-NeoX drops attention")
    return {
        "model.bias": bias,
        "model.attn_bias": None if attn_bias == bias else attn_bias,
        "model.shared_norm": is_parallel and flat.get("gpt_j_tied"),
        "model.tie_embeddings": not flat.get("no_weight_tying"),
        "model.vocab_multiple": flat.count("make_vocab_size_divisible_by") * flat.count("model_parallel_size"),
    }


POSITIONS = {
    **{name: name for name in ("learned", "rotary", "sinusoidal", "alibi", "none")},
    "rpe": "t5",
}
"""pos_emb → model.positions."""


def positions(flat: Flat) -> Converted:
    """pos_emb and the keys that only one kind of it reads."""
    kind = flat.get("pos_emb")
    if kind not in POSITIONS:
        raise flat.refusal("pos_emb", f"{', '.join(POSITIONS)} are in this trainer")
    length = flat.get("max_position_embeddings")
    if length is not None and flat.count("max_position_embeddings") < flat.count("seq_length"):
        raise flat.refusal("max_position_embeddings", f"below seq_length = {flat.get('seq_length')}")
    if kind == "learned" and length not in (None, flat.get("seq_length")):
        flat.notices.append("max_position_embeddings: the table has seq_length rows; those beyond are never trained")
    if kind == "rpe":
        flat.notices.append("pos_emb rpe: every layer has its own table of buckets; GPT-NeoX's layers share one")
    offset = flat.get("opt_pos_emb_offset") if kind == "learned" else 0
    return {
        "model.positions": POSITIONS[kind],
        "model.position_offset": offset or None,
        "model.t5_buckets": flat.count("rpe_num_buckets", 2),
        "model.t5_max_distance": flat.count("rpe_max_distance", 2),
    }


def attention_types(flat: Flat, layers: int) -> list[str]:
    """The type of every layer, as expand_attention_types has it: a plain list, or patterns and how often they come.

    A pattern with "all" is that of all layers, whatever was before it.
    """
    pairs = flat.get("attention_config") or [[["global"], "all"]]
    if isinstance(pairs, list) and all(isinstance(kind, str) for kind in pairs):
        return pairs
    kinds: list[str] = []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        match pair:
            case [[_, *_] as types, "all"] if layers % len(types):
                raise flat.refusal("attention_config", f"{len(types)} types do not divide num_layers = {layers}")
            case [[_, *_] as types, "all"]:
                return types * (layers // len(types))
            case [[_, *_] as types, int(times)] if 0 <= times <= layers:
                kinds += types * times
            case _:
                raise flat.refusal("attention_config", 'expected a list of [[types], count up to num_layers or "all"]')
    return kinds


def attention(flat: Flat) -> Converted:
    """attention_config, of whose types global and flash compute the same, and the window of all layers."""
    layers = flat.count("num_layers")
    kinds = attention_types(flat, layers)
    for kind in kinds:
        if kind not in ("global", "flash"):
            raise flat.refusal("attention_config", f"{kind!r} layers are not in this trainer yet: global and flash are")
    if len(kinds) != layers:
        raise flat.refusal("attention_config", f"names {len(kinds)} layers, num_layers = {layers}")
    if "flash" in kinds:
        flat.notices.append(
            "attention_config: flash and global are the same here, and train.attention says what computes them"
        )
    if not flat.is_set("sliding_window_width"):
        return {}
    # GPT-NeoX counts the tokens before the query, in every layer
    return {"model.sliding_window": flat.count("sliding_window_width", 0) + 1, "model.layer_pattern": ["window"]}


EPSILONS = {
    "layernorm": "layernorm_epsilon",
    "non_parametric_layernorm": "layernorm_epsilon",
    "rmsnorm": "rms_norm_epsilon",
    "scalenorm": "scalenorm_epsilon",
}
"""norm → the key of its epsilon."""


def norms(flat: Flat) -> Converted:
    """The norm and its epsilon."""
    norm = flat.get("norm")
    if norm not in EPSILONS:
        raise flat.refusal("norm", f"{', '.join(EPSILONS)} are in this trainer")
    return {"model.norm": norm, "model.norm_eps": flat.get(EPSILONS[norm])}


PLAIN = {"relu": "relu", "softsign": "softsign", "swish": "silu", "silu": "silu", "mish": "mish"}
GATED = ("geglu", "reglu", "swiglu", "bilinear", "glu")


def mlp(flat: Flat) -> Converted:
    """The activation GPT-NeoX would compute, and the true width of its MLP."""
    name = flat.get("activation")
    tanh = flat.get("bias_gelu_fusion") or flat.get("onnx_safe")
    known = {**PLAIN, **{gated: gated for gated in GATED}, "gelu": "gelu_tanh" if tanh else "gelu"}
    if name not in known:
        raise flat.refusal("activation", f"{', '.join(sorted(known))} are in this trainer")
    return {
        "model.activation": known[name],
        "model.intermediate_size": mlp_width(flat, name in GATED),
    }


def mlp_width(flat: Flat, is_gated: bool) -> int | None:
    """The width both linear layers agree on (transformer.py, ParallelMLP): w, or about w/3 where gated.

    The first layer's width is rounded up to 2m, the second's input to m; where they differ GPT-NeoX cannot run.
    """
    name = next((n for n in ("intermediate_size", "expansion_factor") if flat.is_set(n)), "hidden_size")
    if flat.is_set("intermediate_size") and flat.is_set("expansion_factor"):
        raise flat.refusal("expansion_factor", "give this or intermediate_size, not both")
    hidden, multiple = flat.count("hidden_size"), flat.count("mlp_multiple_of")
    factor = flat.get("expansion_factor") if flat.is_set("expansion_factor") else 4
    inner = flat.count("intermediate_size") if flat.is_set("intermediate_size") else int(factor * hidden)
    if inner < 1:
        raise flat.refusal(name, "makes an MLP of no width")
    total = int(inner * 2 / 3) if is_gated else inner
    up = math.ceil(total / (2 * multiple)) * 2 * multiple // (2 if is_gated else 1)
    down = math.ceil((total // 2 if is_gated else total) / multiple) * multiple
    if up != down:
        raise flat.refusal(
            name,
            f"GPT-NeoX makes the MLP {up} wide going in and {down} coming out and cannot run it; in our own files "
            "model.intermediate_size is the true width",
        )
    if is_gated:
        flat.notices.append(f"{name}: GPT-NeoX's gated MLP of {inner} is {up} wide: model.intermediate_size = {up}")
    return None if up == 4 * hidden else up


def weights(flat: Flat) -> Converted:
    """Initialisation and seeds."""
    for name in ("init_method", "output_layer_init_method"):
        if flat.get(name) not in get_args(InitRule):
            raise flat.refusal(name, f"allowed are {', '.join(get_args(InitRule))}")
    flat.notices.append("seed: the initial weights follow the same rule, but are not GPT-NeoX's draws")
    if flat.get("hidden_dropout") or flat.get("attention_dropout"):
        flat.notices.append("seed: masks of dropout follow from it, sample and place, and are not GPT-NeoX's draws")
    return {
        "model.init": flat.get("init_method"),
        "model.output_init": flat.get("output_layer_init_method"),
        "train.seed": flat.get("seed"),
        "data.seed": flat.get("seed"),
    }


def pipeline(flat: Flat) -> Converted:
    """Pipeline stages: GPT-NeoX writes 0 for none."""
    partition = str(flat.get("pipe_partition_method")).lower()
    if mistake := partition_mistake(partition):
        raise flat.refusal("pipe_partition_method", mistake)
    return {
        "parallel.pp": flat.count("pipe_parallel_size", 0) or 1,
        "parallel.partition": partition,
        "parallel.recompute": "full" if flat.get("checkpoint_activations") else "none",
    }
