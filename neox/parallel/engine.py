"""The training engine: DeepSpeed behind a small interface that knows steps, losses and pieces of state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neox.config.schema import Config
from neox.parallel.pieces import Piece, PieceReader
from neox.parallel.topology import Topology

MicroBatches = Iterator[tuple[Tensor, Tensor]]
"""(tokens, labels), each [micro_batch_size, seq_length] int64, of this rank's dp index."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports, equal on every rank."""

    loss: float
    """Mean over the global batch, in nats per token."""
    grad_norm: float
    """Global L2 norm of the gradients before clipping; not finite when fp16 overflowed and the step was skipped."""


class Engine:
    """Trains one model on a grid of ranks.

    Always a pipeline (of one stage at least) and ZeRO-1: DeepSpeed's stage 0 was measured to be numerically wrong.
    """

    def __init__(self, cfg: Config, topology: Topology) -> None:
        """Builds this rank's part of the model, initialised by name, and its optimizer; every rank calls it.

        Args:
            cfg: resolved configuration (`neox.config.derive.resolve`): no None in the batch sizes and model.vocab_size.
            topology: must have as many ranks as there are processes.

        Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them it is a world of one process.

        Raises:
            UserError: the topology does not fit the number of processes.
        """
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Global rank of this process."""
        raise NotImplementedError

    @property
    def dp_index(self) -> int:
        """Which of the dp slices of a global batch this rank reads."""
        raise NotImplementedError

    @property
    def reads_data(self) -> bool:
        """Whether this rank looks at the micro-batches (first and last stage); the others may be given anything."""
        raise NotImplementedError

    def train_step(self, micro_batches: MicroBatches, lr: float) -> StepResult:
        """One optimizer step over grad_accum micro-batches taken from the iterator."""
        raise NotImplementedError

    def eval_loss(self, micro_batches: MicroBatches, num_micro_batches: int) -> float:
        """Mean loss over `num_micro_batches` per dp rank, without gradients; equal on every rank."""
        raise NotImplementedError

    def pieces(self) -> Iterator[Piece]:
        """This rank's pieces of every kind; over all ranks, each element of each logical tensor appears once."""
        raise NotImplementedError

    def load_pieces(self, reader: PieceReader) -> None:
        """Fills fp32 masters and moments from `reader`, then the model's weights; every rank calls it."""
        raise NotImplementedError

    def optimizer_scalars(self) -> dict[str, Any]:
        """The rest of the optimizer's state, JSON-able and equal on every rank: {"step": Adam's counter, …}."""
        raise NotImplementedError

    def load_optimizer_scalars(self, scalars: dict[str, Any]) -> None:
        """The reverse of `optimizer_scalars`; call it after `load_pieces`."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Waits for every rank."""
        raise NotImplementedError

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON-able `value`, on every rank."""
        raise NotImplementedError

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank: how the ranks agree to stop."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the process group; the engine cannot be used afterwards."""
        raise NotImplementedError
