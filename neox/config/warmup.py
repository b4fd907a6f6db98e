"""Batch-size warm-up and sequence-length curriculum: what each step reads; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from neox.config.errors import UserError
from neox.config.schema import Config, TrainConfig


def batch_size_at(train: TrainConfig, samples: int) -> int:
    """Samples of the step that begins after `samples` samples, batch sizes resolved.

    Megatron-LM's --rampup-batch-size (Brown et al. 2020, section 2.3): from `start`, by `increment`, in equal shares of
    the ramp's samples.
    """
    assert train.global_batch_size is not None
    if not train.batch_warmup or samples >= train.batch_warmup[2]:
        return train.global_batch_size
    start, increment, num_samples = train.batch_warmup
    num_increments = (train.global_batch_size - start) // increment
    return start + increment * (samples * num_increments // num_samples)


def length_at(config: Config, step: int) -> int:
    """Tokens of each sample that step number `step`, counted from 1, reads: the first of the seq_length that it has.

    DeepSpeed's curriculum by seqlen (Li et al. 2021, https://arxiv.org/abs/2108.06084), which GPT-NeoX uses:

    - linear and root: a + (b − a) · (step / n)^(1 / root) down to a multiple, at least a and at most b;
    - discrete: the length whose last step is not over.
    """
    train, lengths = config.train, config.train.seq_warmup_lengths
    if train.seq_warmup == "none":
        return config.model.seq_length
    if train.seq_warmup == "discrete":
        return next((n for n, last in zip(lengths, train.seq_warmup_steps, strict=False) if step <= last), lengths[-1])
    first, last = lengths
    root = train.seq_warmup_root if train.seq_warmup == "root" else 1.0
    share = min(step / train.seq_warmup_steps[0], 1.0) ** (1.0 / root)
    length = math.floor(share * (last - first) + first)
    return min(max(length - length % train.seq_warmup_multiple, first), last)


def phases(config: Config) -> Iterator[tuple[int, int, int]]:
    """(steps, samples a step, tokens a sample) of each stretch of the run in which neither changes, resolved."""
    train, samples, begin = config.train, 0, 0
    current = (batch_size_at(train, 0), length_at(config, 1))
    for step in range(train.steps):
        shape = (batch_size_at(train, samples), length_at(config, step + 1))
        if shape != current:
            yield step - begin, *current
            begin, current = step, shape
        if is_over(config, step + 1, samples):
            break
        samples += shape[0]
    yield train.steps - begin, *current


def is_over(config: Config, step: int, samples: int) -> bool:
    """Whether step number `step`, after `samples` samples, and all that follow have their final shape."""
    train = config.train
    is_ramp_over = not train.batch_warmup or samples >= train.batch_warmup[2]
    last = train.seq_warmup_steps[-1] if train.seq_warmup != "none" else 0
    return is_ramp_over and step > last


def check_warmup(config: Config) -> None:
    """Ranges and divisibilities, batch sizes resolved.

    Raises:
        UserError: naming the key, and what it must be.
    """
    _check_batch(config)
    _check_lengths(config)


def _check_batch(config: Config) -> None:
    train = config.train
    if not train.batch_warmup:
        return
    start, increment, _ = train.batch_warmup
    where = f"train.batch_warmup = {list(train.batch_warmup)}"
    assert train.global_batch_size and train.micro_batch_size and config.parallel.dp
    if min(train.batch_warmup) < 1 or start > train.global_batch_size:
        raise UserError(f"{where}: start, increment and samples, all at least 1, and start at most the global batch")
    if (train.global_batch_size - start) % increment:
        raise UserError(f"{where}: steps of {increment} do not lead from {start} to {train.global_batch_size}")
    unit = train.micro_batch_size * config.parallel.dp
    if start % unit or increment % unit:
        raise UserError(
            f"{where}: start and increment must be multiples of micro_batch_size × dp = {train.micro_batch_size} × "
            f"{config.parallel.dp} = {unit}"
        )


def _check_lengths(config: Config) -> None:
    train, kind = config.train, config.train.seq_warmup
    lengths, steps = train.seq_warmup_lengths, train.seq_warmup_steps
    if kind == "none":
        if lengths or steps:
            raise UserError(
                "train.seq_warmup_lengths and seq_warmup_steps: read with seq_warmup linear, root or discrete"
            )
        return
    where = f"train.seq_warmup = {kind}"
    if kind == "discrete" and (not steps or len(lengths) != len(steps) + 1 or list(steps) != sorted(set(steps))):
        raise UserError(f"{where}: seq_warmup_lengths has one more than seq_warmup_steps, which rise: the last of each")
    if kind != "discrete" and (len(lengths) != 2 or len(steps) != 1 or lengths[0] > lengths[1]):
        raise UserError(f"{where}: seq_warmup_lengths are the first and the last, seq_warmup_steps one number")
    if min(steps) < 1 or min(train.seq_warmup_multiple, train.seq_warmup_root) <= 0:
        raise UserError(f"{where}: seq_warmup_steps, seq_warmup_multiple and seq_warmup_root must be above 0")
    if not 1 <= min(lengths) <= max(lengths) <= config.model.seq_length:
        raise UserError(f"{where}: seq_warmup_lengths must be in 1…model.seq_length = {config.model.seq_length}")
    if kind != "discrete" and lengths[0] % train.seq_warmup_multiple:
        raise UserError(
            f"{where}: the first length must be a multiple of seq_warmup_multiple = {train.seq_warmup_multiple}"
        )
    tp, multiples = config.parallel.tp, lengths if kind == "discrete" else (*lengths, train.seq_warmup_multiple)
    if config.parallel.sequence_parallel and any(each % tp for each in multiples):
        raise UserError(f"{where}: parallel.tp = {tp} must divide every length, for parallel.sequence_parallel")
