"""GPT-NeoX's optimizer, precision, schedule, checkpoint and data keys as ours; `CONVERTERS` is all groups."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from neox.config.legacy_convert import Converted, Flat, attention, mlp, norms, pipeline, positions, shape, weights
from neox.config.legacy_generation import generation
from neox.config.legacy_table_run import KEYS
from neox.config.legacy_unread import unread
from neox.config.legacy_zero import zero
from neox.config.optimizers import REFUSED

LOSS_SCALER = {
    "initial_scale_power": ("train.fp16_initial_scale_power", 16),
    "loss_scale_window": ("train.fp16_scale_window", 1000),
    "hysteresis": ("train.fp16_hysteresis", 2),
    "min_loss_scale": ("train.fp16_min_scale", 1),
}
"""Key of the fp16 block → ours, and the default of DeepSpeed, which GPT-NeoX hands the block to."""
FP16_ONLY = {"loss_scale": (0, None), "auto_cast": (False, True, None), "enabled": (True, False)}
"""The block's other keys, with the values they may have; auto_cast halves inputs that are floats, tokens are not."""


ADAM_KEYS = {"betas": [0.9, 0.999], "eps": 1e-8}
OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "adam": ADAM_KEYS,
    "adamw": ADAM_KEYS,
    "adamw8bit": ADAM_KEYS,
    "lion": {"betas": [0.9, 0.99]},
    "sgd": {"momentum": 0.0, "nesterov": False},
}
"""optim.name → the keys of optimizer.params that are read beside lr, with the defaults of GPT-NeoX's classes."""
WRONG_OPTIMIZERS = {
    **REFUSED,
    "sm3": "is not in this trainer; adamw is",
    "madgrad_wd": "is not in this trainer; adamw and sgd are",
}


def optimizer(flat: Flat) -> Converted:
    """GPT-NeoX's Adam, its CPU forms too, is AdamW unless adam_w_mode is false."""
    block = flat.block("optimizer")
    kind, params = str(block.get("type", "Adam")), dict(flat.inner_block("optimizer", "params"))
    name = {"adam": "adamw", "cpu_adam": "adamw", "cpu_torch_adam": "adamw"}.get(kind.lower(), kind.lower())
    flat.only("optimizer", block, ("type", "params"))
    if name not in OPTIMIZER_KEYS:
        reason = WRONG_OPTIMIZERS.get(name, "allowed are Adam, cpu_adam, cpu_torch_adam, Lion and SGD")
        raise flat.refusal("optimizer", reason, "type", kind)
    if kind.lower().startswith("cpu_"):
        flat.notices.append(f"optimizer.type {kind}: the same AdamW, on the device that trains")
    if flat.get("use_bnb_optimizer"):
        name = eight_bits(flat, kind)
    if name == "adamw" and params.pop("adam_w_mode", True) is False:
        name = "adam"
    for key, value in params.items():
        if key not in ("lr", *OPTIMIZER_KEYS[name]):
            read = ", ".join(("lr", *OPTIMIZER_KEYS[name]))
            raise flat.refusal("optimizer", f"only {read} are read: leave it out", f"params.{key}", value)
    if params.get("lr") is None:
        raise flat.refusal("optimizer", "needs params.lr, the peak learning rate")
    for key, value in (("lr", params["lr"]), ("optimizer_type", kind.lower())):
        if flat.get(key) not in (None, value):
            raise flat.refusal(key, f"the optimizer block says {value!r}")
    own = {f"optim.{key}": params.get(key, default) for key, default in OPTIMIZER_KEYS[name].items()}
    return {"optim.name": name, "optim.lr": params["lr"], **own}


def eight_bits(flat: Flat, kind: str) -> str:
    """bitsandbytes' Adam8bit, whose decay is decoupled from the gradient; with it goes a norm behind positions."""
    if kind.lower() != "adam":
        raise flat.refusal("use_bnb_optimizer", f"optimizer.type is {kind}, of which GPT-NeoX has none: leave it out")
    if flat.get("pos_emb") == "learned":
        reason = "puts a norm behind learned positions (StableEmbedding): leave it out and set optim.name=adamw8bit"
        raise flat.refusal("use_bnb_optimizer", reason)
    flat.notices.append(
        "use_bnb_optimizer: blocks of moments are not those of bitsandbytes: equal up to their rounding"
    )
    return "adamw8bit"


def precision(flat: Flat) -> Converted:
    """fp16 and bf16 blocks or `precision`; neither is fp32. fp16.type bfloat16 is how DeeperSpeed 1 wrote bf16."""
    fp16, bf16 = flat.block("fp16"), flat.block("bf16")
    wanted = {"fp16": "fp16", "bfloat16": "bf16", "fp32": "fp32", None: None}
    if flat.get("precision") not in wanted:
        raise flat.refusal("precision", "allowed are fp16, bfloat16, fp32")
    found = {wanted[flat.get("precision")]} - {None}
    if bf16.get("enabled"):
        flat.only("bf16", bf16, ("enabled",))
        found.add("bf16")
    if fp16.get("enabled"):
        found.add("bf16" if fp16.get("type") == "bfloat16" else "fp16")
    if len(found) > 1:
        name = "precision" if flat.is_set("precision") else "bf16"
        raise flat.refusal(name, f"the blocks and precision ask for {' and '.join(sorted(map(str, found)))}")
    chosen = found.pop() if found else "fp32"
    scaler = loss_scaler(flat) if chosen == "fp16" or fp16.get("enabled") else {}
    unread = [f"fp16.{name}" for name in fp16 if name in (*LOSS_SCALER, "loss_scale")]
    if chosen == "bf16" and scaler and unread:
        flat.notices.append(f"{', '.join(unread)}: bf16, the block's type, trains without a loss scale")
    return {"train.precision": chosen, **(scaler if chosen == "fp16" else {})}


def loss_scaler(flat: Flat) -> Converted:
    """The dynamic loss scale of fp16."""
    block = flat.block("fp16")
    for name, value in block.items():
        if name not in ("fp16", "type", *LOSS_SCALER) and value not in FP16_ONLY.get(name, ()):
            allowed = FP16_ONLY.get(name)
            reason = f"only {allowed[0]} here" if allowed else "is not in this trainer yet"
            raise flat.refusal("fp16", reason, name, value)
    return {ours: block.get(name, default) for name, (ours, default) in LOSS_SCALER.items()}


def schedule(flat: Flat) -> Converted:
    """The decay's shape and length; `compat` computes GPT-NeoX's very curve."""
    style = flat.get("lr_decay_style")
    if style not in ("cosine", "linear", "exponential", "constant"):
        raise flat.refusal("lr_decay_style", "allowed are cosine, linear, exponential, constant")
    steps, fraction = flat.get("lr_decay_iters"), flat.get("lr_decay_fraction")
    if steps is None and fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or fraction <= 0:
            raise flat.refusal("lr_decay_fraction", "a share of train_iters above 0")
        steps = max(1, math.floor(flat.count("train_iters") * fraction))
    elif fraction is not None:
        flat.notices.append("lr_decay_fraction: lr_decay_iters overrules it, as in GPT-NeoX")
    return {"optim.schedule": style, "optim.decay_steps": steps}


CURRICULUM_KEYS = (
    ("enabled", "curriculum_type", "min_difficulty", "max_difficulty", "schedule_type", "schedule_config"),
    ("total_curriculum_step", "difficulty_step", "root_degree", "difficulty", "max_step"),
)
"""Of the block, and of its schedule_config."""


def curriculum(flat: Flat) -> Converted:
    """DeepSpeed's curriculum_learning by seqlen; what other versions of its scheduler compute otherwise is refused."""
    block = flat.block("curriculum_learning")
    if not block.get("enabled"):
        return {}
    kind, options = block.get("schedule_type"), flat.inner_block("curriculum_learning", "schedule_config")
    for part, known, within in zip((block, options), CURRICULUM_KEYS, ("", "schedule_config."), strict=True):
        flat.only("curriculum_learning", part, known, within)
    if block.get("curriculum_type", "seqlen") != "seqlen":
        raise flat.refusal("curriculum_learning", "only seqlen", "curriculum_type", block["curriculum_type"])
    flat.notices.append("curriculum_learning: validation reads whole samples; GPT-NeoX's pipeline cuts those too")
    if kind == "fixed_discrete":
        lengths, steps = options.get("difficulty") or [], options.get("max_step") or []
        return {"train.seq_warmup": "discrete", "train.seq_warmup_lengths": lengths, "train.seq_warmup_steps": steps}
    if kind not in ("fixed_linear", "fixed_root"):
        allowed = "allowed are fixed_linear, fixed_root, fixed_discrete"
        raise flat.refusal("curriculum_learning", allowed, "schedule_type", kind)
    lengths = [block.get("min_difficulty"), block.get("max_difficulty")]
    steps, multiple = options.get("total_curriculum_step"), options.get("difficulty_step")
    root = options.get("root_degree") if kind == "fixed_root" else 1
    if not all(isinstance(value, int) and value > 0 for value in (*lengths, steps, multiple, root)):
        needs = "min_difficulty, max_difficulty, schedule_config.total_curriculum_step, difficulty_step, root_degree"
        raise flat.refusal("curriculum_learning", f"needs whole numbers above 0: {needs}")
    values = {"seq_warmup": kind[6:], "seq_warmup_lengths": lengths, "seq_warmup_steps": [steps]}
    values |= {"seq_warmup_multiple": multiple, "seq_warmup_root": root}
    return {f"train.{name}": value for name, value in values.items()}


def checkpoints(flat: Flat) -> Converted:
    """checkpoint_factor: every n steps, or the whole parts of its powers; without it only the last step is saved."""
    factor, scale, steps = flat.get("checkpoint_factor"), flat.get("checkpoint_scale"), flat.count("train_iters")
    extra = flat.get("extra_save_iters") or []
    if not isinstance(extra, list) or not all(isinstance(step, int) for step in extra):
        raise flat.refusal("extra_save_iters", "expected a list of steps")
    if flat.is_set("keep_last_n_checkpoints") and extra:
        flat.notices.append(
            "keep_last_n_checkpoints: the steps of extra_save_iters are kept for ever; GPT-NeoX drops them"
        )
    if scale not in ("linear", "log"):
        raise flat.refusal("checkpoint_scale", "allowed are linear, log")
    if factor is None:
        return {"checkpoint.interval": steps, "checkpoint.steps": extra}
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor < 1:
        raise flat.refusal("checkpoint_factor", "a number of at least 1")
    if scale == "linear":
        if factor != int(factor):
            raise flat.refusal("checkpoint_factor", "a whole number with checkpoint_scale linear")
        return {"checkpoint.interval": int(factor), "checkpoint.steps": extra}
    if factor <= 1:
        raise flat.refusal("checkpoint_factor", "above 1 with checkpoint_scale log")
    flat.notices.append("checkpoint_scale log: step 1 is saved too, as since 2.0; version 1.0 began with the factor")
    powers, power = set(extra), 1.0
    while power < steps + 1:
        powers.add(int(power))
        power *= factor
    return {"checkpoint.interval": steps, "checkpoint.steps": sorted(powers)}


def data(flat: Flat) -> Converted:
    """Split, and the tokenizer where the files name one; training only counts its entries."""
    split = flat.get("split")
    shares = split if isinstance(split, list) else [part for part in re.split(r"[,/]", str(split)) if part.strip()]
    try:
        numbers = [float(share) for share in shares]
    except (TypeError, ValueError):
        raise flat.refusal("split", "up to three shares, such as 969, 30, 1") from None
    if not 1 <= len(numbers) <= 3 or min(numbers) < 0 or sum(numbers) <= 0:
        raise flat.refusal("split", "up to three shares, such as 969, 30, 1")
    values: Converted = {"data.split": [*numbers, 0.0, 0.0][:3], "data.tokenizer": flat.get("vocab_file")}
    if flat.get("tokenizer_type") == "CharLevelTokenizer":
        return values | {"model.vocab_size": 512}
    if flat.get("tokenizer_type") not in ("HFTokenizer", "GPT2BPETokenizer"):
        raise flat.refusal(
            "tokenizer_type",
            "make a tokenizer.json of its file once (`neox data convert-tokenizer`; HFGPT2Tokenizer's folder has "
            "one) and name it in vocab_file with HFTokenizer; GPT2BPETokenizer and CharLevelTokenizer need none",
        )
    return values


def blends(flat: Flat) -> Converted:
    """Token files of their own for each part; all three or none, as there, and weights of nothing are refused."""
    parts = ("train", "valid", "test")
    given = [part for part in parts if flat.is_set(f"{part}_data_paths")]
    values: Converted = {}
    for part in parts:
        name, weights = f"{part}_data_paths", flat.get(f"{part}_data_weights")
        if given and part not in given:
            raise flat.refusal(name, f"must be given with {given[0]}_data_paths")
        paths = flat.get(name) or []
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise flat.refusal(name, "expected a list of prefixes")
        if weights is not None and (not isinstance(weights, list) or len(weights) != len(paths)):
            raise flat.refusal(f"{part}_data_weights", f"expected a list of {len(paths)}, one for each of {name}")
        labels = flat.get(f"{part}_label_data_paths") or []
        if not isinstance(labels, list) or len(labels) not in (0, len(paths)):
            raise flat.refusal(f"{part}_label_data_paths", f"expected a list of {len(paths)}, one for each of {name}")
        values[f"data.{part}_paths"], values[f"data.{part}_weights"] = paths, weights or []
        values[f"data.{part}_label_paths"] = labels
    if given and flat.is_set("data_path"):
        raise flat.refusal("data_path", f"give this or {given[0]}_data_paths")
    return values


def derived(flat: Flat) -> Converted:
    """Keys GPT-NeoX computes itself: accepted where they say what it would compute."""
    for name, source in (("batch_size", "train_micro_batch_size_per_gpu"), ("clip_grad", "gradient_clipping")):
        if flat.is_set(name) and flat.get(name) != flat.get(source):
            raise flat.refusal(name, f"GPT-NeoX computes it from {source} = {flat.get(source)!r}: leave it out")
    if not flat.is_set("train_batch_size") and not flat.is_set("train_micro_batch_size_per_gpu"):
        raise flat.refusal("train_micro_batch_size_per_gpu", "this or train_batch_size is required")
    return {}


def extra_args(flat: Flat) -> Converted:
    """deepspeed_extra_args: DeepSpeed's reports, which are not written here; what changes results is refused."""
    for name, value in flat.block("deepspeed_extra_args").items():
        if name not in KEYS or KEYS[name].category != "elsewhere":
            reason = "options are not handed through to DeepSpeed: leave it out"
            raise flat.refusal("deepspeed_extra_args", reason, name, value)
        flat.notices.append(f"deepspeed_extra_args.{name}: {KEYS[name].text}")
    return {}


def start(flat: Flat) -> Converted:
    """finetune with load: the weights of a checkpoint, and nothing else of it."""
    if not flat.get("finetune") or not flat.is_set("load"):
        return {}
    flat.notices.append("finetune: starts from load's weights, which must be in our format: `neox convert` makes it")
    return {"checkpoint.init_from": flat.get("load")}


def logs(flat: Flat) -> Converted:
    """W&B, norms, noise scale; the profilers' window, in GPT-NeoX the steps after its first number up to its last."""
    values: Converted = {"log.wandb": "online" if flat.get("use_wandb") else None}
    if flat.get("log_param_norm") or flat.get("log_optimizer_states"):
        values["log.state_norms_interval"] = flat.count("log_interval")
    if flat.get("log_grad_norm") or flat.get("log_grad_pct_zeros"):
        values["log.gradient_norms_interval"] = flat.count("log_interval")
    if flat.get("log_gradient_noise_scale"):
        values["log.noise_scale_steps"] = flat.count("gradient_noise_scale_n_batches", 2)
    if flat.get("profile") or flat.get("memory_profiling"):
        values["log.profile_steps"] = [flat.count("profile_step_start", 0) + 1, flat.count("profile_step_stop")]
        values["log.memory_snapshot"] = flat.get("memory_profiling")
    return values


MODEL_CONVERTERS: tuple[Callable[[Flat], Converted], ...] = (attention, shape, positions, norms, mlp, weights)
"""The groups that the model alone depends on."""

CONVERTERS: tuple[Callable[[Flat], Converted], ...] = (
    *(*MODEL_CONVERTERS, pipeline, zero),
    *(optimizer, precision, schedule, curriculum, checkpoints),
    *(data, blends, derived, extra_args, start, logs, generation, unread),
)
"""Every group, in the order its errors are reported."""
