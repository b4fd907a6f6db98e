"""The training engine: DeepSpeed behind a small interface that knows steps, losses and pieces of state."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils.timer import NoopTimer
from torch import Tensor, nn

from neox.allocator import keep_freed_memory
from neox.config.errors import UserError
from neox.config.optimizers import WHOLE, largest_group
from neox.config.schema import Config
from neox.model.context import MicroBatch
from neox.parallel import groups
from neox.parallel.adamw8bit import writable
from neox.parallel.collectives import broadcast_json
from neox.parallel.feed import Feed, Loaded, needs_context
from neox.parallel.fragments import Ranks
from neox.parallel.module import build_module, check_precision, named_parameters
from neox.parallel.optimizer import build_optimizer, create_state, place, replicated_pieces, state_kinds, step_counters
from neox.parallel.partition import build_partition
from neox.parallel.pieces import GRADIENT, WEIGHT, Piece, PieceReader
from neox.parallel.plan import place_of
from neox.parallel.settings import SCALER_STATE, deepspeed_config
from neox.parallel.topology import Topology
from neox.parallel.veto import refusing
from neox.parallel.whole import WholeSteps

# Compiled at first use for minutes, and of use to DeepSpeed's inference only.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

Kinds = dict[str, Tensor]
"""Tensors of one parameter by the kind of their pieces."""
MicroBatches = Iterator[tuple[Tensor, Tensor] | MicroBatch]
"""Tokens and labels, each [micro_batch_size, seq_length] int64, of this rank's dp index, and their context if any."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports, equal on every rank."""

    loss: float
    """Mean over the global batch, in nats per token."""
    grad_norm: float
    """Global L2 norm of the gradients before clipping; infinite when the step was skipped."""
    is_skipped: bool = False
    """The gradients were not finite, or the loss was refused: weights and optimizer are as they were."""


class Engine:
    """Trains one model on a grid of ranks.

    A pipeline where there are stages, else DeepSpeed's plain engine; ZeRO-1 at least, for DeepSpeed's stage 0 was
    measured to be numerically wrong.
    """

    def __init__(self, cfg: Config, topology: Topology) -> None:
        """Builds this rank's part of the model, initialised by name, and its optimizer; every rank calls it.

        Args:
            cfg: resolved configuration (`neox.config.derive.resolve`): no None in the batch sizes and model.vocab_size.
            topology: must have as many ranks as there are processes.

        Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them it is a world of one process.

        Raises:
            UserError: the topology does not fit the number of processes, or the precision the device.
        """
        keep_freed_memory()
        groups.initialize()
        topology.check_world_size(dist.get_world_size())
        check_precision(cfg)
        self._topology = topology
        self._tensor = groups.tensor_group(topology, cfg)
        self._feed, self._needs_context = Feed(cfg), needs_context(cfg)
        self._length: int | None = None
        self._sent_length: int | None = None
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its partition and its configuration
            deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
            self._module, grid = build_module(cfg, topology, self._tensor, self._feed)
            optimizer = build_optimizer(named_parameters(self._module), cfg.optim, largest_group(cfg))
            self._deepspeed, *_ = deepspeed.initialize(
                model=self._module, optimizer=optimizer, mpu=grid, config=deepspeed_config(cfg)
            )
        self._deepspeed.timers = NoopTimer()  # a pipeline's would keep two events of every step on the GPU
        self._steps = WholeSteps(self._deepspeed) if topology.pp == 1 else self._deepspeed
        self._zero = self._deepspeed.optimizer
        self._zero_scaler = self._zero.loss_scaler if cfg.train.precision == "fp16" else None
        self._partition = build_partition(cfg, self._zero)
        self._optim = cfg.optim
        with self._partition.optimizer_tensors():
            create_state(self._zero.optimizer, cfg.optim)
        if cfg.optim.name in WHOLE:
            ranks = Ranks(self._zero.real_dp_process_group[0], self._tensor)
            place(self._zero.optimizer, named_parameters(self._module), ranks, cfg)

    @property
    def rank(self) -> int:
        """Global rank of this process."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._topology.world_size

    @property
    def dp_index(self) -> int:
        """Which of the dp slices of a global batch this rank reads."""
        return self._topology.dp_index(self.rank)

    @property
    def reads_data(self) -> bool:
        """Whether this rank looks at the micro-batches; if not, none need be given to it."""
        return self._needs_context or self._topology.pp_index(self.rank) in (0, self._topology.pp - 1)

    def train_step(
        self,
        micro_batches: MicroBatches,
        lr: float,
        is_bad: Callable[[float], bool] | None = None,
        see_gradient: Callable[[Piece], None] | None = None,
    ) -> StepResult:
        """One optimizer step over the micro-batches of `set_shape`, or else grad_accum, taken from the iterator.

        `is_bad` is asked, on every rank, about the loss before the weights change; true skips the step.
        `see_gradient` is given this rank's pieces of the gradient before clipping, of kind GRADIENT and together once
        each element as those of `pieces`, unless the step is skipped.
        """
        for group in self._zero.param_groups:
            group["lr"] = lr * group["rate"]
        self._forget_buffers(self._length)
        with contextlib.ExitStack() as during:
            if is_bad is not None:
                during.enter_context(refusing(self._zero, self._steps, is_bad))
            if see_gradient is not None:
                during.callback(self._zero.optimizer.register_step_pre_hook(self._shower(see_gradient)).remove)
            loss = self._steps.train_batch(self._load(micro_batches, self._deepspeed.gradient_accumulation_steps()))
        return StepResult(float(loss), float(self._zero._global_grad_norm), bool(self._zero.overflow))

    def set_shape(self, num_micro_batches: int, length: int | None = None) -> None:
        """What the training steps from here on consist of: micro-batches a step, and tokens a sample (None: all)."""
        self._length = length
        if num_micro_batches == self._deepspeed.gradient_accumulation_steps():
            return
        samples = num_micro_batches * self._deepspeed.train_micro_batch_size_per_gpu() * self._topology.dp
        self._deepspeed.set_train_batch_size(samples)
        self._deepspeed.micro_steps = 0  # whose multiples of the new number of micro-batches end steps
        self._zero.gradient_accumulation_steps = num_micro_batches  # offloaded gradients are summed if it is above 1

    def eval_loss(self, micro_batches: MicroBatches, num_micro_batches: int) -> float:
        """Mean loss over `num_micro_batches` per dp rank, without gradients; equal on every rank."""
        self._forget_buffers(None)
        loaded = self._load(micro_batches, num_micro_batches)
        return float(self._steps.eval_batch(loaded, num_micro_batches=num_micro_batches))

    def pieces(self) -> Iterator[Piece]:
        """This rank's pieces of every kind; over all ranks, each element of each logical tensor appears once."""
        replicated = self._replicated_pieces() if self.dp_index == 0 else ()
        yield from self._once(chain(self._held_pieces(self._state_of), replicated))

    def load_pieces(self, reader: PieceReader, *, weights_only: bool = False) -> None:
        """Fills fp32 masters and moments from `reader`, then the model's weights; every rank calls it.

        With `weights_only` the moments stay as they are.

        Raises:
            UserError: on every rank, when one of them could not read its pieces.
        """
        mistake = None
        with writable(self._zero.optimizer):
            try:
                for piece, _ in chain(self._held_pieces(self._state_of), self._replicated_pieces()):
                    if piece.kind == WEIGHT or not weights_only:
                        piece.tensor.copy_(reader.read_piece(piece))
            except UserError as error:
                mistake = str(error)
        self.agree(mistake)
        self._partition.update_model()

    def optimizer_scalars(self) -> dict[str, Any]:
        """The rest of the optimizer's state, JSON-able and equal on every rank: {"step": Adam's counter, …}."""
        with self._partition.optimizer_tensors():
            counters = step_counters(self._zero.optimizer)
        scalars: dict[str, Any] = {"step": int(counters[0])} if counters else {}
        if self._zero_scaler is not None:
            scalars["loss_scale"] = {name: getattr(self._zero_scaler, name) for name in SCALER_STATE}
        return scalars

    def load_optimizer_scalars(self, scalars: dict[str, Any]) -> None:
        """The reverse of `optimizer_scalars`; call it after `load_pieces`."""
        with self._partition.optimizer_tensors():
            for counter in step_counters(self._zero.optimizer):
                counter.fill_(scalars["step"])
        if self._zero_scaler is not None and "loss_scale" in scalars:  # absent: saved by a run in another precision
            for name in SCALER_STATE:
                setattr(self._zero_scaler, name, scalars["loss_scale"][name])

    def barrier(self) -> None:
        """Waits for every rank."""
        dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON-able `value`, on every rank."""
        return broadcast_json(value, self._deepspeed.device)

    def agree(self, mistake: str | None) -> None:
        """Raises, as a UserError on every rank, the mistake that the lowest rank found; nothing when none found any."""
        world_size = dist.get_world_size()
        finder = torch.tensor(world_size if mistake is None else self.rank, device=self._deepspeed.device)
        dist.all_reduce(finder, op=dist.ReduceOp.MIN)
        if finder < world_size:
            raise UserError(broadcast_json(mistake, self._deepspeed.device, source=int(finder)))

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank: how the ranks agree to stop."""
        count = torch.tensor(int(flag), device=self._deepspeed.device)
        dist.all_reduce(count)
        return bool(count)

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Sums in fp64, one for each of the values, of which every rank gives as many; equal on every rank."""
        total = torch.tensor(values, dtype=torch.float64, device=self._deepspeed.device)
        dist.all_reduce(total)
        return list(total.tolist())

    def close(self) -> None:
        """Ends the process group; the engine cannot be used afterwards."""
        self._deepspeed.destroy()
        dist.destroy_process_group()

    def _load(self, micro_batches: MicroBatches, count: int) -> Iterator[Loaded]:
        data_group = self._deepspeed.mpu.get_data_parallel_group()
        return self._feed.load(micro_batches, count, self._deepspeed.device, data_group)

    def _forget_buffers(self, length: int | None) -> None:
        """Makes the stages tell each other anew what they send, if it is not of the `length` that it last was of."""
        if self._topology.pp > 1 and length != self._sent_length:
            self._deepspeed.reset_activation_shape()
        self._sent_length = length

    def _held_pieces(self, tensors: Callable[[str, nn.Parameter], Kinds]) -> Iterator[tuple[Piece, nn.Parameter]]:
        """A piece of each of the `tensors` of every parameter held, other ranks' copies included; and the parameter."""
        for name, parameter in named_parameters(self._module):
            held, place = self._partition.held(parameter), place_of(parameter)
            if held is None:
                continue
            for kind, tensor in tensors(name, parameter).items():
                yield (
                    Piece(
                        kind=kind,
                        name=place.name,
                        global_shape=place.global_shape,
                        dim=place.dim,
                        shard_index=place.shard_index,
                        num_shards=place.num_shards,
                        start=place.first + held[0],
                        numel=held[1],
                        tensor=tensor,
                    ),
                    parameter,
                )

    def _state_of(self, name: str, parameter: nn.Parameter) -> Kinds:
        return {kind: self._partition.values(parameter, kind) for kind in (WEIGHT, *state_kinds(name, self._optim))}

    def _shower(self, see_gradient: Callable[[Piece], None]) -> Callable[..., None]:
        """What hands over the gradients that are stepped on, to be called before each part of a step."""

        def show(*_: Any) -> None:
            norm, largest = float(self._zero._global_grad_norm), self._optim.grad_clip
            clipped_by = max(1.0, (norm + 1e-6) / largest) if largest else 1.0  # as DeepSpeed does it

            def gradient_of(name: str, parameter: nn.Parameter) -> Kinds:
                gradient = self._partition.gradient(parameter)
                return {} if gradient is None else {GRADIENT: gradient * clipped_by}

            for piece in self._once(self._held_pieces(gradient_of)):
                see_gradient(piece)

        return show

    def _once(self, pieces: Iterable[tuple[Piece, nn.Parameter]]) -> Iterator[Piece]:
        """Those of the pieces that no other rank gives too."""
        for piece, parameter in pieces:
            place = place_of(parameter)
            is_whole_of_shards = piece.dim is None and place.dim is not None and self._tensor.index > 0
            if not (place.is_copy or is_whole_of_shards or getattr(parameter, "ds_pipe_replicated", False)):
                yield piece

    def _replicated_pieces(self) -> Iterator[tuple[Piece, nn.Parameter]]:
        parameters = dict(named_parameters(self._module))
        return ((piece, parameters[piece.name]) for piece in replicated_pieces(self._zero.optimizer))
