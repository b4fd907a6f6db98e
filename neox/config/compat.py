"""What GPT-NeoX does wrongly where its behaviour is asked for to the bit, refused by name; no torch."""

from __future__ import annotations

from neox.config.errors import UserError
from neox.config.schema import Config


def check_compat(config: Config) -> None:
    """UserError where `compat` asks for a curve that GPT-NeoX does not have, or has only as a defect.

    decay_steps is resolved. Found by running its code: tag v1.0 and commit ea7aefd8, megatron/learning_rates.py.
    """
    if config.compat != "none":
        _refuse(config, [*_curves(config), *_warmups(config), *_inits(config)])


def check_compat_data(config: Config) -> None:
    """UserError where `compat` asks for samples that GPT-NeoX does not have, or has only as a defect."""
    if config.compat != "none":
        _refuse(config, _samples(config))


def _refuse(config: Config, cases: list[tuple[bool, str, str]]) -> None:
    """cases: whether it is so, what, and why it is refused."""
    for is_wrong, what, reason in cases:
        if is_wrong:
            raise UserError(f"compat = {config.compat}: {what}: {reason}; change it, or set compat=none")


def _inits(config: Config) -> list[tuple[bool, str, str]]:
    wrong = config.compat == "neox_v2" and "orthogonal" in (config.model.init, config.model.output_init)
    return [
        (wrong, "model.init or model.output_init = orthogonal", "GPT-NeoX raises an error; scaled_orthogonal works")
    ]


def _samples(config: Config) -> list[tuple[bool, str, str]]:
    data = config.data
    what, is_whole = f"data.packing = {data.packing}", data.packing != "packed"
    return [
        (config.compat == "neox_v1" and is_whole, what, "GPT-NeoX 1.0 has packed samples alone"),
        (
            config.compat == "neox_v1" and bool(data.train_label_paths),
            "data.train_label_paths",
            "1.0 has no label files",
        ),
        (data.packing == "unpacked" and not data.train_label_paths, what, "GPT-NeoX cannot do it without label files"),
        (
            is_whole and data.path is not None and config.train.valid_interval > 0,
            what,
            "of a data.path that is split, GPT-NeoX validates on the first documents, which are those it trains on",
        ),
    ]


def _curves(config: Config) -> list[tuple[bool, str, str]]:
    optim, steps = config.optim, config.train.steps
    assert optim.decay_steps is not None
    known = ("linear", "cosine", "exponential", "constant")
    return [
        (optim.schedule not in known, f"optim.schedule = {optim.schedule}", f"GPT-NeoX has {', '.join(known)}"),
        (
            config.compat == "neox_v2" and optim.schedule == "cosine" and steps > optim.decay_steps,
            f"optim.decay_steps = {optim.decay_steps}",
            f"GPT-NeoX's cosine rises again after it, until train.steps = {steps}",
        ),
    ]


def _warmups(config: Config) -> list[tuple[bool, str, str]]:
    optim = config.optim
    assert optim.decay_steps is not None
    num_steps = optim.warmup * optim.decay_steps
    return [
        (
            config.compat == "neox_v1" and optim.warmup > 0.5,
            f"optim.warmup = {optim.warmup}",
            "above 0.5 GPT-NeoX 1.0 stops rising early and then jumps, up to 1.4 times lr",
        ),
        (
            config.compat == "neox_v2" and 0 < num_steps < 1,
            f"optim.warmup = {optim.warmup}",
            f"{num_steps:g} of a step, at which GPT-NeoX divides its first rate: {1 / (num_steps or 1):g} times lr",
        ),
    ]
