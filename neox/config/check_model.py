"""Which choices of the `model` section fit together, and with the tensor-parallel layout."""

from __future__ import annotations

from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.config.shape import head_dim, num_kv_heads

LAYER_KINDS = ("global", "window")
"""What model.layer_pattern may name."""


def check_choices(model: ModelConfig, tp: int) -> None:
    """UserError that names the key which does not fit the others."""
    kv_heads = num_kv_heads(model)
    if kv_heads < 1 or model.num_heads % kv_heads:
        raise UserError(f"model.num_kv_heads = {kv_heads} must divide model.num_heads = {model.num_heads}")
    if kv_heads % tp and tp % kv_heads:
        raise UserError(
            f"parallel.tp = {tp} must divide the {kv_heads} key-value heads of model.num_kv_heads, or be a multiple of "
            "them: a rank holds whole heads, or as many ranks as any other hold one"
        )
    _check_attention(model)
    _check_positions(model)
    for name in ("norm_eps", "init_std"):
        if getattr(model, name) < 0:
            raise UserError(f"model.{name} = {getattr(model, name)}: must be at least 0")
    for name in ("hidden_dropout", "attention_dropout"):
        if not 0 <= getattr(model, name) < 1:
            raise UserError(f"model.{name} = {getattr(model, name)}: must be at least 0 and below 1")
    if model.shared_norm and not model.parallel_residual:
        raise UserError("model.shared_norm = true needs model.parallel_residual = true: the branches are side by side")


def _check_attention(model: ModelConfig) -> None:
    unknown = [kind for kind in model.layer_pattern if kind not in LAYER_KINDS]
    if unknown or not model.layer_pattern:
        named = unknown[0] if unknown else "nothing"
        raise UserError(f"model.layer_pattern names {named}: allowed are {', '.join(LAYER_KINDS)}")
    if len(model.layer_pattern) > model.num_layers:
        raise UserError(
            f"model.layer_pattern names {len(model.layer_pattern)} blocks, model.num_layers = {model.num_layers}"
        )
    if ("window" in model.layer_pattern) != (model.sliding_window is not None):
        raise UserError(
            f"model.sliding_window = {model.sliding_window}: is the reach of the window blocks in model.layer_pattern "
            f"= {list(model.layer_pattern)}; set both or neither"
        )
    for name in ("attn_softcap", "logit_softcap"):
        cap = getattr(model, name)
        if cap is not None and cap <= 0:
            raise UserError(f"model.{name} = {cap}: must be above 0; leave it out for none")


def _check_positions(model: ModelConfig) -> None:
    if model.positions == "sinusoidal" and model.hidden_size % 2:
        raise UserError(f"model.hidden_size = {model.hidden_size}: sinusoidal positions need an even width")
    if model.position_offset < 0 or (model.position_offset and model.positions != "learned"):
        raise UserError(f"model.position_offset = {model.position_offset}: is read with learned positions, at least 0")
    if model.positions == "t5" and not 1 <= model.t5_buckets // 2 < model.t5_max_distance:
        raise UserError(
            f"model.t5_buckets = {model.t5_buckets}: half of them must be at least 1 and below "
            f"model.t5_max_distance = {model.t5_max_distance}"
        )
    for name in ("rotary_base", "alibi_scale"):
        if getattr(model, name) <= 0:
            raise UserError(f"model.{name} = {getattr(model, name)}: must be above 0")
    if model.rotary_scaling == "none":
        return
    if model.rotary_trained_length is not None and model.rotary_trained_length < 1:
        raise UserError(f"model.rotary_trained_length = {model.rotary_trained_length}: tokens, at least 1")
    if model.positions != "rotary" or model.rotary_factor < 1:
        raise UserError(
            f"model.rotary_scaling = {model.rotary_scaling}: needs model.positions = rotary and model.rotary_factor "
            f"of at least 1, not {model.positions} and {model.rotary_factor}"
        )
    if model.rotary_scaling == "ntk" and int(head_dim(model) * model.rotary_pct) <= 2:
        raise UserError("model.rotary_scaling = ntk: needs more than 2 rotated dimensions per head")
    if model.rotary_ramp is not None and not 0 < model.rotary_ramp[0] < model.rotary_ramp[1]:
        raise UserError(f"model.rotary_ramp = {list(model.rotary_ramp)}: two rising numbers above 0")
