"""What the tests of the engine run: a tiny model, its data, a plain loop on one device, and the engine's loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import DEFAULT

import numpy as np
import torch
from torch import Tensor, nn

from neox.config.derive import padded_vocab, resolve
from neox.config.schema import Config, DataConfig, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from neox.data.loader import Ends
from neox.model.context import MicroBatch
from neox.model.dropout import sample_keys
from neox.model.gpt import GPT
from neox.model.init import init_weights

STEPS, SAVE_STEP, NOISE_STEPS = 12, 6, 3
GLOBAL_BATCH, MICRO_BATCH, SEQ, VOCAB, END = 8, 2, 16, 100, 9
NEOX = ModelConfig(num_layers=4, hidden_size=32, num_heads=4, seq_length=SEQ, vocab_size=VOCAB, rotary_pct=0.5)
LLAMA = dataclasses.replace(
    NEOX, norm="rmsnorm", activation="swiglu", parallel_residual=False, bias=False, intermediate_size=88
)
TIED = dataclasses.replace(NEOX, tie_embeddings=True)
SHALLOW = dataclasses.replace(NEOX, num_layers=2)  # what is nowhere dealt to four stages
GEMMA = dataclasses.replace(
    LLAMA,
    num_layers=2,
    num_kv_heads=2,
    layer_pattern=("window", "global"),
    sliding_window=5,
    attn_softcap=2.0,
    logit_softcap=3.0,
    qk_norm=True,
    sandwich_norm=True,
    tie_embeddings=True,
    activation="geglu_tanh",
)
MULTI_QUERY = dataclasses.replace(SHALLOW, num_kv_heads=1, shared_norm=True, qk_norm=True)
ALIBI = dataclasses.replace(
    SHALLOW, positions="alibi", num_kv_heads=2, shared_norm=True, norm_bias=False, attn_bias=False, qk_norm=True
)
LEARNED = dataclasses.replace(
    SHALLOW, positions="learned", position_offset=2, tie_embeddings=True, activation="relu", parallel_residual=False
)
RELATIVE = dataclasses.replace(SHALLOW, positions="t5", norm="rmsnorm", t5_buckets=8, t5_max_distance=12, bias=False)
DROPPED = dataclasses.replace(NEOX, hidden_dropout=0.1, attention_dropout=0.2, num_kv_heads=2)
BARE = dataclasses.replace(SHALLOW, positions="sinusoidal", norm="non_parametric_layernorm", bias=False)
LEARNING_RATES = [2e-3 * (step + 1) / STEPS for step in range(STEPS)]
CLIP = 0.8  # below the gradients' norm of about 1.1, so that it acts at every step
OPTIM = OptimConfig(weight_decay=0.1, grad_clip=CLIP)


WHOLE_BATCH = range(GLOBAL_BATCH)
SMALL_PARTS = {"neox.config.optimizers.GROUP_NUMEL": 5000, "neox.parallel.partition.NORM_NUMEL": 1000}
"""So that the tiny model's parameters are stepped on in several groups, and measured in parts, as a real one's are."""


@dataclass(frozen=True)
class Case:
    """One run to STEPS: from SAVE_STEP and the tensors in `load` if set, writing those of SAVE_STEP to `save`.

    `rate` multiplies LEARNING_RATES.
    """

    name: str
    dp: int = 1
    tp: int = 1
    pp: int = 1
    model: ModelConfig = NEOX
    precision: str = "fp32"
    partition: str = "parameters"
    recompute: str = "none"
    sequence: bool = False
    zero: int = 1
    offload: str = "none"
    optim: OptimConfig = OPTIM
    rate: float = 1.0
    micro_batch: int | None = None
    load: str | None = None
    save: str | None = None

    @property
    def size(self) -> int:
        """Samples of a micro-batch: where it is not said, two or, for a pipeline of one replica, four are a step."""
        return self.micro_batch or (2 * MICRO_BATCH if self.dp == self.pp == 1 else MICRO_BATCH)

    def config(self) -> Config:
        """The resolved configuration of this case."""
        config = Config(
            model=self.model,
            parallel=ParallelConfig(
                tp=self.tp,
                pp=self.pp,
                partition=self.partition,  # type: ignore[arg-type]
                recompute=self.recompute,  # type: ignore[arg-type]
                sequence_parallel=self.sequence,
                zero_stage=self.zero,  # type: ignore[arg-type]
                offload=self.offload,  # type: ignore[arg-type]
            ),
            optim=self.optim,
            data=DataConfig(mask_documents=self.model == DROPPED, reset_positions=self.model == DROPPED),
            train=TrainConfig(
                steps=STEPS,
                global_batch_size=GLOBAL_BATCH,
                micro_batch_size=self.size,
                precision=self.precision,  # type: ignore[arg-type]
                seed=7,
            ),
        )
        return resolve(config, self.dp * self.tp * self.pp)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels [GLOBAL_BATCH, SEQ] of one step, from a random Markov chain: there is something to learn."""
    table = torch.randint(VOCAB, (VOCAB, 4), generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(1000 + step)
    columns = [torch.randint(VOCAB, (GLOBAL_BATCH,), generator=generator)]
    for _ in range(SEQ):
        choice = torch.randint(4, (GLOBAL_BATCH,), generator=generator)
        columns.append(table[columns[-1], choice])
    tokens = torch.stack(columns, dim=1)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def packed_batch(step: int) -> tuple[Tensor, Tensor]:
    """`batch` cut into documents by tokens END; each sample has another number of labels that count, the first none."""
    tokens, labels = batch(step)
    is_end = torch.rand(GLOBAL_BATCH, SEQ + 1, generator=torch.Generator().manual_seed(2000 + step)) < 0.15
    tokens[is_end[:, :-1]], labels[is_end[:, 1:]] = END, END
    labels[torch.arange(SEQ) >= 2 * torch.arange(GLOBAL_BATCH)[:, None]] = -100
    return tokens, labels


def micro_batches(model: ModelConfig, step: int, rows: range, size: int) -> list[MicroBatch]:
    """The `rows` of a step's global batch, `size` in each; with a context where the model is DROPPED."""
    if model != DROPPED:
        tokens, labels = (part[rows.start : rows.stop].split(size) for part in batch(step))
        return [MicroBatch(*pair) for pair in zip(tokens, labels, strict=True)]
    tokens, labels = packed_batch(step)
    found = []
    for first in rows[::size]:
        some = tokens[first : first + size]
        context = Ends(END, mask_documents=True, reset_positions=True).context(some)
        keys = sample_keys(7, range(GLOBAL_BATCH * step + first, GLOBAL_BATCH * step + first + size))
        found.append(MicroBatch(some, labels[first : first + size], dataclasses.replace(context, keys=keys)))
    return found


@dataclass
class Run:
    """What a run recorded; `first` and `saved`: full tensors by (kind, name) after step 1 and SAVE_STEP."""

    losses: list[float]
    grad_norms: list[float]
    valid_loss: float
    first: dict[tuple[str, str], Tensor]
    saved: dict[tuple[str, str], Tensor]
    gradients: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)
    """Before clipping, of each step."""


def plain_adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """PyTorch's, element by element."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False)


def plain_run(
    model_config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    build: Callable[[list[dict[str, Any]]], Any] = plain_adamw,
    rate: float = 1.0,
) -> Run:
    """Single-device PyTorch, no engine: fp32 masters and sums of gradients, clipping; the model in `dtype`.

    `build` makes the optimizer from what is decayed and what is not.
    """
    model = GPT(model_config, padded_vocab(model_config))
    init_weights(model, model_config, seed=7)
    model = model.to(dtype)  # before the masters are made: they start from rounded weights, as DeepSpeed's do
    masters = {name: nn.Parameter(p.detach().float().clone()) for name, p in model.named_parameters()}
    decayed = [name for name, p in masters.items() if p.dim() == 2]
    groups = [(decayed, 0.1), ([name for name in masters if name not in decayed], 0.0)]
    optimizer = build(
        [{"params": [masters[n] for n in names], "names": names, "weight_decay": decay} for names, decay in groups]
    )
    run = Run([], [], 0.0, {}, {})
    for step, lr in enumerate(LEARNING_RATES):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        run.losses.append(plain_gradients(model, masters, micro_batches(model_config, step, WHOLE_BATCH, MICRO_BATCH)))
        run.gradients.append({name: master.grad.clone() for name, master in masters.items()})
        run.grad_norms.append(float(nn.utils.clip_grad_norm_(masters.values(), CLIP)))
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(masters[name])
        if step + 1 == 1:
            run.first = plain_state(masters, optimizer)
        if step + 1 == SAVE_STEP:
            run.saved = plain_state(masters, optimizer)
    with torch.no_grad():
        tokens, labels, context = micro_batches(model_config, STEPS, WHOLE_BATCH, GLOBAL_BATCH)[0]
        logits = model.eval()(tokens, context).float().flatten(0, 1)
        run.valid_loss = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100).item()
    return run


def plain_gradients(model: nn.Module, masters: dict[str, nn.Parameter], batches: list[MicroBatch]) -> float:
    """Sets the masters' gradients to those of the mean loss over all tokens that count, and returns it."""
    num_counted = sum(int((labels >= 0).sum()) for _, labels, _ in batches)
    for master in masters.values():
        master.grad = torch.zeros_like(master)
    total = 0.0
    for tokens, labels, context in batches:
        model.zero_grad()
        logits = model(tokens, context).float().flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum") / num_counted
        loss.backward()
        total += loss.item()
        for name, parameter in model.named_parameters():
            masters[name].grad += parameter.grad.float()
    return total


def plain_state(parameters: dict[str, nn.Parameter], optimizer: Any) -> dict[tuple[str, str], Tensor]:
    """Copies of weights and moments by (kind, name)."""
    state: dict[tuple[str, str], Tensor] = {}
    for name, parameter in parameters.items():
        state["weight", name] = parameter.detach().clone()
        for kind, tensor in optimizer.state[parameter].items():
            if isinstance(tensor, Tensor) and tensor.dim() > 0:
                state[kind, name] = tensor.clone()
    return state


@dataclass
class SavedPiece:
    """A piece as it left a rank, picklable."""

    kind: str
    name: str
    global_shape: tuple[int, ...]
    dim: int | None
    shard_index: int
    num_shards: int
    start: int
    values: np.ndarray


def collect(engine: Any) -> list[SavedPiece]:
    """This rank's pieces, copied."""
    return [
        SavedPiece(p.kind, p.name, p.global_shape, p.dim, p.shard_index, p.num_shards, p.start, p.tensor.numpy().copy())
        for p in engine.pieces()
    ]


def assemble(pieces: list[SavedPiece]) -> dict[tuple[str, str], Tensor]:
    """Full tensors from all ranks' pieces; every element must be covered exactly once."""
    full: dict[tuple[str, str], Tensor] = {}
    count: dict[tuple[str, str], Tensor] = {}
    for piece in pieces:
        key = piece.kind, piece.name
        target = full.setdefault(key, torch.zeros(piece.global_shape))
        seen = count.setdefault(key, torch.zeros(piece.global_shape))
        for tensor, values in ((target, torch.from_numpy(piece.values)), (seen, torch.ones(len(piece.values)))):
            part = tensor if piece.dim is None else tensor.chunk(piece.num_shards, piece.dim)[piece.shard_index]
            flat = part.flatten()  # a copy where the shard is not contiguous, so it is put back below
            flat[piece.start : piece.start + len(piece.values)] += values
            part.copy_(flat.view(part.shape))
    for key, seen in count.items():
        assert bool((seen == 1).all()), f"{key}: elements covered {seen.min()} to {seen.max()} times"
    return full


class Reader:
    """Serves pieces from full tensors, as a checkpoint would."""

    def __init__(self, full: dict[tuple[str, str], Tensor]) -> None:
        self.full = full

    def read_piece(self, piece: Any) -> Tensor:
        full = self.full[piece.kind, piece.name]
        part = full if piece.dim is None else full.chunk(piece.num_shards, piece.dim)[piece.shard_index]
        assert tuple(full.shape) == piece.global_shape
        return part.flatten()[piece.start : piece.start + piece.numel]


def save_full(full: dict[tuple[str, str], Tensor], path: Path) -> None:
    """Full tensors to a file that another launch can read."""
    np.savez(path, **{f"{kind}|{name}": tensor.numpy() for (kind, name), tensor in full.items()})


def load_full(path: str) -> dict[tuple[str, str], Tensor]:
    """The reverse of `save_full`."""
    with np.load(path) as data:
        keys = [tuple(key.split("|")) for key in data.files]
        return {(kind, name): torch.from_numpy(data[f"{kind}|{name}"]) for kind, name in keys}


def run_case(case: Case) -> dict[str, Any]:
    """One case through the engine on this rank."""
    from neox.parallel.engine import Engine, deepspeed  # imported before neox.parallel, it would say something
    from neox.parallel.topology import Topology
    from neox.train.noise import NoiseScale
    from neox.train.norms import GradientNorms

    for name, size in SMALL_PARTS.items():  # for good: this process is the case's own
        mock.patch(name, size).start()
    built: list[int] = []
    if case.precision == "fp16":
        allow_fp16_on_cpu()
    with mock.patch("deepspeed.initialize", wraps=deepspeed.initialize) as initialize:
        initialize.side_effect = lambda model, **_: built.append(sum(p.numel() for p in model.parameters())) or DEFAULT
        engine = Engine(case.config(), Topology(case.dp, case.tp, case.pp))

    share = GLOBAL_BATCH // case.dp
    rows = WHOLE_BATCH[engine.dp_index * share : (engine.dp_index + 1) * share]

    def read(step: int) -> Any:
        return iter(micro_batches(case.model, step, rows, case.size))

    out: dict[str, Any] = {
        "losses": [],
        "grad_norms": [],
        "initial": collect(engine),
        "gradients": [],
        "noise": [],
        "built": built[0],
    }
    start = 0
    if case.load is not None:
        start = SAVE_STEP
        engine.load_pieces(Reader(load_full(case.load)))
        scaler = {"cur_scale": 4096, "cur_iter": SAVE_STEP, "last_overflow_iter": -1, "cur_hysteresis": 2}
        engine.load_optimizer_scalars({"step": SAVE_STEP, "loss_scale": scaler})
    norms, noise = GradientNorms(case.config()), NoiseScale(NOISE_STEPS)

    def see(piece: Any) -> None:
        for each in (norms, noise):
            each.see(piece)

    for step in range(start, STEPS):
        assert noise.needs(step + 1) == (step >= start + -start % NOISE_STEPS)
        result = engine.train_step(read(step), LEARNING_RATES[step] * case.rate, see_gradient=see)
        out["gradients"].append(norms.measure(engine))
        out["noise"].append(noise.update(engine, step + 1, (GLOBAL_BATCH, SEQ), result))
        out["losses"].append(result.loss)
        out["grad_norms"].append(result.grad_norm)
        if step == 0:
            out["first"] = collect(engine)
        if step + 1 == SAVE_STEP:
            out["saved"], out["scalars"] = collect(engine), engine.optimizer_scalars()
    out["final"] = collect(engine)
    parameters = list(engine._module.parameters())
    out["resident"] = sum(parameter.numel() for parameter in parameters)
    held = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    masters = [piece.tensor for piece in engine.pieces() if piece.kind == "weight"]
    mappings = (getattr(parameter, "_hp_mapping", None) for parameter in parameters)  # DeepSpeed's, of flat partitions
    masters += [mapping.hp_fragment for mapping in mappings if mapping is not None]
    out["masters_apart"] = sum(master.untyped_storage().data_ptr() not in held for master in masters)
    out["valid_loss"] = engine.eval_loss(read(STEPS), share // case.size)
    out["broadcast"] = engine.broadcast({"from": engine.rank})
    out["any_of_last"] = engine.any_rank(engine.rank == case.dp * case.tp * case.pp - 1)
    out["any_of_none"] = engine.any_rank(False)
    out["reads_data"] = engine.reads_data
    if case.precision != "fp32" and case.model != DROPPED:  # whose micro-batches do not count alike
        out["sum_error"] = sum_error(engine, case, rows)
    return out


def sum_error(engine: Any, case: Case, rows: range) -> float:
    """How far this rank's part of a step's gradient is from the mean over the micro-batches, relative.

    Each of those is given to all replicas at once, whose sum is then exact in any precision.
    """

    def gradient(some: list[MicroBatch]) -> Tensor:
        seen: list[Tensor] = []
        engine.set_shape(len(some))
        engine.train_step(iter(some), lr=0.0, see_gradient=lambda piece: seen.append(piece.tensor.flatten()))
        return torch.cat(seen)

    together = gradient(micro_batches(case.model, STEPS, rows, case.size))
    alone = [gradient([one]) for one in micro_batches(case.model, STEPS, WHOLE_BATCH, case.size)]
    mean = torch.stack(alone).mean(0)
    return float((together - mean).norm() / mean.norm())


def allow_fp16_on_cpu() -> None:
    """Lifts DeepSpeed's refusal and ours: PyTorch's CPU operators are exact enough in fp16, only slow."""
    from deepspeed.accelerator import get_accelerator

    from neox.parallel import engine

    type(get_accelerator()).is_fp16_supported = lambda self: True
    engine.check_precision = lambda cfg: None


def run_overflow(case: Case) -> dict[str, Any]:
    """Two fp16 steps under a loss scale that overflows, then one under the scale that the engine arrived at."""
    from neox.parallel.engine import Engine
    from neox.parallel.topology import Topology

    allow_fp16_on_cpu()
    engine = Engine(case.config(), Topology(1, 1, 1))
    scalars = engine.optimizer_scalars()
    scalars["loss_scale"]["cur_scale"] = 2.0**40
    engine.load_optimizer_scalars(scalars)
    out: dict[str, Any] = {"grad_norms": [], "scales": [], "steps": [], "pieces": [collect(engine)]}
    for step in range(3):
        tokens, labels = batch(step)
        pairs = zip(tokens.split(case.size), labels.split(case.size), strict=True)
        out["grad_norms"].append(engine.train_step(pairs, lr=1e-3).grad_norm)
        out["pieces"].append(collect(engine))
        scalars = engine.optimizer_scalars()
        out["scales"].append(scalars["loss_scale"]["cur_scale"])
        out["steps"].append(scalars["step"])
        if step == 1:
            scalars["loss_scale"]["cur_scale"] = 2.0**12
            engine.load_optimizer_scalars(scalars)
    return out


def run_cases(cases: list[Case]) -> list[dict[str, Any]]:
    """Several cases one after the other in one process group; a case may read what an earlier one saved."""
    import torch.distributed as dist

    outs = []
    for case in cases:
        out = run_case(case)
        if case.save is not None:
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, out["saved"])
            if dist.get_rank() == 0:
                save_full(assemble([piece for pieces in everyone for piece in pieces]), Path(case.save))
            dist.barrier()
        outs.append(out)
    return outs
