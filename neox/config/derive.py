"""All arithmetic on the configuration: layout, batch triangle, padded vocabulary, sizes; one place, whole equations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from neox.config.check_log import check_log
from neox.config.check_model import check_choices
from neox.config.check_train import (
    check_anomalies,
    check_attention,
    check_mirror,
    check_scale,
    check_schedule,
    check_seeds,
)
from neox.config.check_zero import check_zero
from neox.config.compat import check_compat, check_compat_data
from neox.config.errors import UserError
from neox.config.optimizers import check_optimizer, resolve_optimizer
from neox.config.partition import partition_mistake
from neox.config.schema import CheckpointConfig, Config, ModelConfig, ParallelConfig, TrainConfig
from neox.config.shape import (
    attention_parameters,
    block_norm_parameters,
    head_dim,
    is_gated,
    norm_parameters,
    num_position_rows,
)
from neox.config.vocabulary import count_vocabulary
from neox.config.warmup import check_warmup


@dataclass(frozen=True)
class Batch:
    """global_batch_size = micro_batch_size × grad_accum × dp, in samples."""

    global_batch_size: int
    micro_batch_size: int
    grad_accum: int


def resolve_parallel(parallel: ParallelConfig, world_size: int) -> ParallelConfig:
    """Fills in dp so that dp × tp × pp = world_size, or raises a UserError with the whole equation."""
    _positive("parallel", parallel, ("dp", "tp", "pp"))
    model_ranks = parallel.tp * parallel.pp
    dp = parallel.dp if parallel.dp is not None else world_size // model_ranks
    if dp * model_ranks != world_size:
        shown = parallel.dp if parallel.dp is not None else "dp"
        raise UserError(
            f"parallel: dp × tp × pp must be the number of ranks: {shown} × {parallel.tp} × {parallel.pp} "
            f"does not give {world_size}"
        )
    return dataclasses.replace(parallel, dp=dp)


def resolve_batch(train: TrainConfig, dp: int) -> Batch:
    """The batch triangle: any two of the three sizes give the third; one alone takes the others from 1.

    Raises:
        UserError: a size is not positive, or the three do not agree.
    """
    _positive("train", train, ("global_batch_size", "micro_batch_size", "grad_accum"))
    total, micro, accum = train.global_batch_size, train.micro_batch_size, train.grad_accum
    if total is None:
        micro, accum = micro or 1, accum or 1
        total = micro * accum * dp
    elif micro is None:
        accum = accum or 1
        micro = total // (accum * dp)
    elif accum is None:
        accum = total // (micro * dp)
    if micro * accum * dp != total or micro == 0 or accum == 0:
        raise UserError(
            "train: global_batch_size = micro_batch_size × grad_accum × dp does not hold: "
            f"{total} ≠ {train.micro_batch_size or 'any'} × {train.grad_accum or 'any'} × {dp}"
        )
    return Batch(total, micro, accum)


def resolve(config: Config, world_size: int) -> Config:
    """The configuration with nothing left open, valid for `world_size` ranks.

    Fills in dp, the batch sizes, the optimizer's keys, decay_steps and vocab_size (counted in `data.tokenizer`).

    Raises:
        UserError: one line with the key, the equation or the allowed values.
    """
    parallel = resolve_parallel(config.parallel, world_size)
    batch = resolve_batch(config.train, parallel.dp or 1)
    vocab_size = config.model.vocab_size or count_vocabulary(config.data.tokenizer)
    model = dataclasses.replace(config.model, vocab_size=vocab_size)
    check_model(model, parallel)
    check_run(config, batch)
    check_zero(config)
    check_data(config)
    check_log(config.log)
    check_mirror(config.checkpoint)
    optim = resolve_optimizer(config.optim)
    optim = dataclasses.replace(optim, decay_steps=optim.decay_steps or config.train.steps)
    train = dataclasses.replace(config.train, **dataclasses.asdict(batch))
    resolved = dataclasses.replace(config, model=model, parallel=parallel, optim=optim, train=train)
    check_optimizer(resolved)
    check_warmup(resolved)
    check_compat(resolved)
    return resolved


def check_model(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Every divisibility that shape and layout ask for."""
    sizes = ("num_layers", "hidden_size", "num_heads", "seq_length", "vocab_size", "vocab_multiple")
    _positive("model", model, (*sizes, "intermediate_size", "num_kv_heads", "head_dim", "sliding_window"))
    if model.head_dim is None:
        _divides("model.num_heads", model.num_heads, "model.hidden_size", model.hidden_size)
    if not 0 <= model.rotary_pct <= 1 or rotary_dims(model) % 2:
        raise UserError(
            f"model.rotary_pct = {model.rotary_pct}: must be in 0…1 and rotate an even number of each head's "
            f"{head_dim(model)} dimensions, not {rotary_dims(model)}"
        )
    _divides("parallel.tp", parallel.tp, "model.num_heads", model.num_heads)
    check_choices(model, parallel.tp)
    _divides("parallel.tp", parallel.tp, "the MLP width", ffn_size(model))
    _divides("parallel.tp", parallel.tp, "the padded vocabulary", padded_vocab(model))
    if parallel.sequence_parallel:
        _divides("parallel.tp", parallel.tp, "model.seq_length, for parallel.sequence_parallel,", model.seq_length)
    if mistake := partition_mistake(parallel.partition):
        raise UserError(f"parallel.partition = {parallel.partition}: {mistake}")
    if parallel.pp > model.num_layers:
        raise UserError(
            f"parallel.pp = {parallel.pp} stages need as many layers; model.num_layers = {model.num_layers}"
        )


def check_run(config: Config, batch: Batch) -> None:
    """Ranges of what is not about shapes."""
    _positive("train", config.train, ("steps", "fp16_scale_window", "fp16_hysteresis"))
    _positive("checkpoint", config.checkpoint, ("interval", "keep_last", "keep_every"))
    _positive("log", config.log, ("interval",))
    _positive("optim", config.optim, ("decay_steps",))
    check_schedule(config.optim)
    check_anomalies(config.train)
    check_seeds(config)
    check_scale(config.train)
    check_attention(config)
    if config.train.valid_interval < 0 or config.train.valid_batches < 1:
        raise UserError("train.valid_interval must be ≥ 0 and train.valid_batches ≥ 1")
    outside = [step for step in config.checkpoint.steps if not 0 <= step <= config.train.steps]
    if outside:
        raise UserError(f"checkpoint.steps: {outside[0]} is not in 0…train.steps = {config.train.steps}")


def resolve_data(config: Config, world_size: int | None) -> Config:
    """The configuration with the global batch size that the order of samples depends on, and nothing else, filled in.

    Raises:
        UserError: neither it nor the number of ranks is given, or the data section contradicts itself.
    """
    check_data(config)
    if config.data.path is None and not config.data.train_paths:
        raise UserError("data.path or data.train_paths is required: the prefix of PREFIX.bin and PREFIX.idx")
    total = config.train.global_batch_size
    if world_size is not None:
        dp = resolve_parallel(config.parallel, world_size).dp
        total = resolve_batch(config.train, dp or 1).global_batch_size
    if total is None:
        raise UserError("train.global_batch_size is not given: say with --world-size how many ranks the run will have")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=total))


def check_data(config: Config) -> None:
    """One token file that is split, or whole ones for each part with a weight each; samples that `compat` has."""
    check_compat_data(config)
    data = config.data
    if data.path is not None and data.train_paths:
        raise UserError("data.path and data.train_paths: give one of them, the other stays null or []")
    for part in ("train", "valid", "test"):
        paths, weights = getattr(data, f"{part}_paths"), getattr(data, f"{part}_weights")
        labels = getattr(data, f"{part}_label_paths")
        if labels and len(labels) != len(paths):
            raise UserError(f"data.{part}_label_paths: {len(labels)}, but there are {len(paths)} data.{part}_paths")
        if paths and not data.train_paths:
            raise UserError(f"data.{part}_paths goes with data.train_paths; data.path is divided by data.split")
        if bool(labels) != bool(data.train_label_paths) and paths:
            raise UserError(f"data.{part}_label_paths: label files are for every part, or for none")
        if len(paths) > 254:
            raise UserError(f"data.{part}_paths: {len(paths)} token files; a blend has at most 254")
        if weights and data.weight_by_documents:
            raise UserError(f"data.{part}_weights and data.weight_by_documents: give one of them")
        if weights and (len(weights) != len(paths) or not all(0 < weight < math.inf for weight in weights)):
            raise UserError(f"data.{part}_weights = {list(weights)}: one weight above 0 for each of {len(paths)} paths")
    if data.train_paths and config.train.valid_interval and not data.valid_paths:
        raise UserError("data.valid_paths is required with data.train_paths, unless train.valid_interval is 0")
    if data.reset_positions and config.model.positions in ("alibi", "t5", "none"):
        raise UserError(
            f"data.reset_positions: model.positions = {config.model.positions} knows no places, only distances, which "
            "stay the same: leave it out; data.mask_documents keeps documents apart"
        )
    if data.weight_by_documents and not 0 <= data.weight_alpha <= 1:
        raise UserError(f"data.weight_alpha = {data.weight_alpha}: must be in 0…1")


def _positive(section: str, values: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(values, name)
        if value is not None and value < 1:
            raise UserError(f"{section}.{name} = {value}: must be at least 1")


def _divides(name: str, divisor: int, what: str, value: int) -> None:
    if value % divisor:
        small = [d for d in range(1, math.isqrt(value) + 1) if value % d == 0]
        near = sorted({*small, *(value // d for d in small)}, key=lambda d: abs(d - divisor))[:4]
        shown = ", ".join(map(str, sorted(near)))
        raise UserError(f"{name} = {divisor} must divide {what} = {value}; nearest that do: {shown}")


def padded_vocab(model: ModelConfig) -> int:
    """Rows of the embedding and the head: vocab_size rounded up to a multiple of vocab_multiple."""
    assert model.vocab_size is not None
    return math.ceil(model.vocab_size / model.vocab_multiple) * model.vocab_multiple


def ffn_size(model: ModelConfig) -> int:
    """Width of the MLP's inner activation."""
    return model.intermediate_size or 4 * model.hidden_size


def rotary_dims(model: ModelConfig) -> int:
    """Dimensions of each head that rotary embedding turns; 0 with other positions."""
    return int(head_dim(model) * model.rotary_pct) if model.positions == "rotary" else 0


def num_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, padded vocabulary included."""
    h, f, vocab = model.hidden_size, ffn_size(model), padded_vocab(model)
    num_up = 2 if is_gated(model) else 1
    mlp = (num_up + 1) * h * f + (num_up * f + h if model.bias else 0)
    block = attention_parameters(model) + mlp + block_norm_parameters(model)
    embeddings = (1 if model.tie_embeddings else 2) * vocab * h + num_position_rows(model) * h
    return embeddings + model.num_layers * block + norm_parameters(model, h)


def checkpoint_steps(config: Config) -> list[int]:
    """Every step at which a run that is not interrupted saves: the listed ones, the interval's, and the last."""
    interval = range(config.checkpoint.interval, config.train.steps + 1, config.checkpoint.interval)
    return sorted({*config.checkpoint.steps, *interval, config.train.steps})


def is_kept_for_ever(checkpoint: CheckpointConfig, step: int) -> bool:
    """Whether the checkpoint of `step` stays however many newer ones there are."""
    return step in checkpoint.steps or (checkpoint.keep_every is not None and step % checkpoint.keep_every == 0)
