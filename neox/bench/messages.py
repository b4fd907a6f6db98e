"""What the ranks of a training step send one another: operation, group, size and number, by arithmetic alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from neox.config.derive import num_parameters
from neox.config.errors import UserError
from neox.config.schema import Config

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]
Axis = Literal["data", "tensor", "pipe", "world"]

SMALLEST_BYTES = 1024
"""First size of a curve."""
CURVE_FACTOR = 4
"""From one size of a curve to the next."""


@dataclass(frozen=True)
class Message:
    """One kind of message, and how often a step sends it."""

    operation: Operation
    """all_reduce: of `num_bytes` on every rank. all_gather: `num_bytes` in all. reduce_scatter, all_to_all: `num_bytes`
    given by every rank. send_recv: `num_bytes` to the next rank of the group, and as much from the one before."""
    axis: Axis
    """The ranks that take part: those that differ in this index alone, or all."""
    num_bytes: int
    count: int
    """Times in one optimizer step."""

    def __str__(self) -> str:
        return f"{self.operation} {self.axis} {self.num_bytes}"


def step_messages(cfg: Config) -> list[Message]:
    """The messages of one optimizer step of a resolved configuration; the largest rank's, where ranks differ.

    Data parallelism, as DeepSpeed's ZeRO has it: gradients summed in fp32, once a step or in stages 2 and 3 for every
    micro-batch; weights gathered once a step, or in stage 3 before every forward and backward pass. Pipeline:
    activations forward and their gradients backward, per micro-batch. Tensor parallelism: see `tensor_messages`.
    """
    parallel, train = cfg.parallel, cfg.train
    assert parallel.dp and train.micro_batch_size and train.grad_accum
    element = 4 if train.precision == "fp32" else 2
    parameters = num_parameters(cfg.model) // (parallel.tp * parallel.pp)
    activations = train.micro_batch_size * cfg.model.seq_length * cfg.model.hidden_size * element
    found = []
    if parallel.dp > 1:
        summed: Operation = "reduce_scatter" if parallel.zero_stage == 3 else "all_reduce"
        found.append(Message(summed, "data", 4 * parameters, 1 if parallel.zero_stage == 1 else train.grad_accum))
        gathers = 2 * train.grad_accum if parallel.zero_stage == 3 else 1
        found.append(Message("all_gather", "data", element * parameters, gathers))
    if parallel.tp > 1:
        found += tensor_messages(cfg, activations)
    if parallel.pp > 1:
        shard = activations // parallel.tp if parallel.sequence_parallel else activations
        found.append(Message("send_recv", "pipe", shard, 2 * train.grad_accum))
    return found


def tensor_messages(cfg: Config, activations: int) -> list[Message]:
    """Messages of the blocks under tensor parallelism; `activations` is the bytes of a micro-batch's.

    Branches enter and leave their parallel part: all-reduces of the gradients and of the outputs (Shoeybi et al. 2019);
    with sequence parallelism all-gathers and reduce-scatters, and the input gathered again for backward (Korthikanti et
    al. 2022). Branches side by side leave together, and enter together where they share a norm.
    """
    model, parallel = cfg.model, cfg.parallel
    are_joined = model.parallel_residual and not model.sandwich_norm and model.hidden_dropout == 0
    leaves = 1 if are_joined else 2
    enters = 1 if are_joined and model.shared_norm else 2
    passes = (cfg.train.grad_accum or 1) * -(-model.num_layers // parallel.pp)
    forwards = 2 if parallel.recompute == "full" else 1
    if not parallel.sequence_parallel:
        return [Message("all_reduce", "tensor", activations, passes * (forwards * leaves + enters))]
    gathers, scatters = (forwards + 1) * enters + leaves, forwards * leaves + enters
    return [
        Message("all_gather", "tensor", activations, passes * gathers),
        Message("reduce_scatter", "tensor", activations, passes * scatters),
    ]


def curve(messages: Sequence[Message]) -> list[Message]:
    """Each operation and group of `messages` at sizes from 1 KiB up to its largest, every fourth power of two."""
    largest: dict[tuple[Operation, Axis], int] = {}
    for message in messages:
        key = (message.operation, message.axis)
        largest[key] = max(largest.get(key, 0), message.num_bytes)
    found = []
    for (operation, axis), limit in largest.items():
        size = SMALLEST_BYTES
        while size < limit:
            found.append(Message(operation, axis, size, 0))
            size *= CURVE_FACTOR
        found.append(Message(operation, axis, limit, 0))
    return found


def parse_message(text: str) -> Message:
    """`OPERATION:AXIS:BYTES[:COUNT]` as a message. Raises UserError."""
    match = re.fullmatch(r"(\w+):(\w+):(\d+)(?::(\d+))?", text)
    operations, axes = get_args(Operation), get_args(Axis)
    if match is None or match[1] not in operations or match[2] not in axes or int(match[3]) < 1:
        raise UserError(
            f"--message {text}: must be OPERATION:AXIS:BYTES or OPERATION:AXIS:BYTES:COUNT, with an operation of "
            f"{', '.join(operations)} and an axis of {', '.join(axes)}"
        )
    return Message(match[1], match[2], int(match[3]), int(match[4] or 1))  # type: ignore[arg-type]  # checked above
