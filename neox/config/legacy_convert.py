"""GPT-NeoX keys that need more than a new name: one function per group, each returning our dotted keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from neox.config.errors import UserError
from neox.config.legacy_table_run import TABLE

ZERO_SPEED = (
    *("allgather_partitions", "allgather_bucket_size", "reduce_scatter", "reduce_bucket_size"),
    *("overlap_comm", "contiguous_gradients", "round_robin_gradients", "load_from_fp32_weights"),
)


class Flat:
    """The flat keys as GPT-NeoX would see them: its defaults apply where a key is not set."""

    def __init__(self, sources: Mapping[str, tuple[str, Any]]) -> None:
        self.sources = sources
        self.notices: list[str] = []
        self.files = ", ".join(dict.fromkeys(path for path, _ in sources.values()))
        for name in ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "train_iters"):
            if self.get(name) is None:
                raise UserError(f"{self.files}: GPT-NeoX key {name} is required: give all files of the configuration")

    def is_set(self, name: str) -> bool:
        return name in self.sources and self.sources[name][1] is not None

    def get(self, name: str) -> Any:
        return self.sources[name][1] if self.is_set(name) else TABLE[name].default

    def count(self, name: str, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refusal(name, f"a whole number of at least {least}")
        return value

    def block(self, name: str) -> Mapping[str, Any]:
        """A nested block of DeepSpeed's; empty where it is not set."""
        value = self.get(name) or {}
        if not isinstance(value, Mapping):
            raise self.refusal(name, "expected a block of keys")
        return value

    def refusal(self, name: str, reason: str, inner: str = "", value: Any = None) -> UserError:
        """The error for one key, or one key of its block."""
        path = self.sources[name][0] if name in self.sources else self.files
        shown = repr(value if inner else self.get(name))[:60]
        origin = "" if inner or self.is_set(name) else " (not set: GPT-NeoX's default)"
        return UserError(f"{path}: GPT-NeoX key {name}{'.' + inner if inner else ''} = {shown}{origin}: {reason}")


Converted = dict[str, Any]


def shape(flat: Flat) -> Converted:
    """Residual stream, heads, positions, biases, vocabulary."""
    if flat.get("pos_emb") != "rotary":
        raise flat.refusal("pos_emb", "only rotary positions are in this trainer yet")
    if flat.get("num_kv_heads") not in (None, flat.get("num_attention_heads")):
        raise flat.refusal("num_kv_heads", "grouped key-value heads are not in this trainer yet: leave it out")
    if flat.is_set("max_position_embeddings") and flat.count("max_position_embeddings") < flat.count("seq_length"):
        raise flat.refusal("max_position_embeddings", f"below seq_length = {flat.get('seq_length')}")
    bias = flat.get("use_bias_in_attn_linear")
    if bias != flat.get("use_bias_in_mlp"):
        raise flat.refusal(
            "use_bias_in_attn_linear",
            f"must equal use_bias_in_mlp = {flat.get('use_bias_in_mlp')!r}: biases are all on or all off yet",
        )
    return {
        "model.bias": bias,
        "model.tie_embeddings": not flat.get("no_weight_tying"),
        "model.vocab_multiple": flat.count("make_vocab_size_divisible_by") * flat.count("model_parallel_size"),
    }


def attention(flat: Flat) -> Converted:
    """attention_config: [[types…], n or "all"] pairs; global and flash compute the same."""
    layers = flat.count("num_layers")
    kinds: list[str] = []
    try:
        for types, times in flat.get("attention_config") or [[["global"], "all"]]:
            repeat = math.ceil((layers - len(kinds)) / len(types)) if times == "all" else times
            kinds += (types * repeat)[: layers if times == "all" else None]
    except (TypeError, ValueError, ZeroDivisionError):
        raise flat.refusal("attention_config", 'expected a list of [[types], count or "all"]') from None
    for kind in kinds:
        if kind not in ("global", "flash"):
            raise flat.refusal("attention_config", f"{kind!r} layers are not in this trainer yet: global and flash are")
    if len(kinds) != layers:
        raise flat.refusal("attention_config", f"names {len(kinds)} layers, num_layers = {layers}")
    if "flash" in kinds:
        flat.notices.append(
            "attention_config: flash is computed by PyTorch's scaled dot-product attention, as is global"
        )
    return {}


def norms(flat: Flat) -> Converted:
    """The norm and its epsilon."""
    norm = flat.get("norm")
    if norm not in ("layernorm", "rmsnorm"):
        raise flat.refusal("norm", "layernorm and rmsnorm are in this trainer")
    return {
        "model.norm": norm,
        "model.norm_eps": flat.get("layernorm_epsilon" if norm == "layernorm" else "rms_norm_epsilon"),
    }


def mlp(flat: Flat) -> Converted:
    """The activation GPT-NeoX would compute, and the true width of its MLP."""
    name = flat.get("activation")
    if name not in ("gelu", "swiglu"):
        raise flat.refusal("activation", "gelu and swiglu are in this trainer yet")
    tanh = flat.get("bias_gelu_fusion") or flat.get("onnx_safe")
    return {
        "model.activation": name if name == "swiglu" else "gelu_tanh" if tanh else "gelu",
        "model.intermediate_size": mlp_width(flat, name == "swiglu"),
    }


def mlp_width(flat: Flat, is_gated: bool) -> int | None:
    """The width both linear layers agree on (transformer.py, ParallelMLP): w, or about w/3 where gated.

    The first layer's width is rounded up to 2m, the second's input to m; where they differ GPT-NeoX cannot run.
    """
    name = next((n for n in ("intermediate_size", "expansion_factor") if flat.is_set(n)), "hidden_size")
    if flat.is_set("intermediate_size") and flat.is_set("expansion_factor"):
        raise flat.refusal("expansion_factor", "give this or intermediate_size, not both")
    hidden, multiple = flat.count("hidden_size"), flat.count("mlp_multiple_of")
    factor = flat.get("expansion_factor") or 4
    inner = flat.get("intermediate_size") or int(factor * hidden)
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
    inits, outputs = ("normal", "small_init"), ("scaled_normal", "wang_init")
    if flat.get("init_method") not in inits:
        raise flat.refusal("init_method", f"{' and '.join(inits)} are in this trainer")
    if flat.get("output_layer_init_method") not in outputs:
        raise flat.refusal("output_layer_init_method", f"{' and '.join(outputs)} are in this trainer")
    flat.notices.append("seed: the initial weights follow the same rule, but are not GPT-NeoX's draws")
    return {
        "model.init": flat.get("init_method"),
        "model.output_init": flat.get("output_layer_init_method"),
        "train.seed": flat.get("seed"),
        "data.seed": flat.get("seed"),
    }


def pipeline(flat: Flat) -> Converted:
    """Pipeline stages: GPT-NeoX writes 0 for none."""
    method = flat.get("pipe_partition_method")
    partitions = {"parameters": "parameters", "uniform": "uniform", "type:transformer|mlp": "uniform"}
    if method not in partitions:
        raise flat.refusal("pipe_partition_method", f"allowed are {', '.join(partitions)}")
    return {"parallel.pp": flat.count("pipe_parallel_size", 0) or 1, "parallel.partition": partitions[method]}


def zero(flat: Flat) -> Converted:
    """ZeRO: stages 0 and 1 compute the same, and stage 1 is what runs."""
    block = flat.block("zero_optimization")
    stage = block.get("stage", 0)
    if stage not in (0, 1):
        raise flat.refusal("zero_optimization", "stages 2 and 3 are not in this trainer yet: 1 is", "stage", stage)
    if flat.get("zero_stage") not in (None, stage):
        raise flat.refusal("zero_stage", f"zero_optimization.stage is {stage}")
    for name, value in block.items():
        if name not in ("stage", *ZERO_SPEED) and value not in (False, None):
            raise flat.refusal("zero_optimization", "is not in this trainer yet: leave it out", name, value)
    if stage == 0:
        flat.notices.append("zero_optimization.stage 0 runs as stage 1: the same computation, in less memory")
    if set(block) & set(ZERO_SPEED):
        flat.notices.append("zero_optimization: DeepSpeed's buckets are set here; only the stage is taken")
    return {"parallel.zero_stage": 1}
