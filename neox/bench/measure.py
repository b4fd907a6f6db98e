"""Times messages on whatever carries them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from neox.bench.messages import Message

WARM_UP = 2
"""Untimed repetitions: connections are made at first use."""
MIN_REPEATS, MAX_REPEATS = 5, 200
MESSAGE_S = 0.5
"""Time to spend on each message, in seconds, between the two numbers of repetitions."""


class Carrier(Protocol):
    """Ranks that can exchange messages: MPI or torch.distributed."""

    rank: int

    def prepare(self, message: Message) -> Callable[[], None]:
        """Buffers and group for `message`; the result sends it once and returns when this rank is done."""
        ...

    def barrier(self) -> None:
        """Waits for every rank."""
        ...

    def largest(self, value: float) -> float:
        """The largest of the ranks' values, on every rank."""
        ...

    def close(self) -> None:
        """Ends what carries the messages."""
        ...


def measure(carrier: Carrier, messages: Sequence[Message]) -> dict[str, Any]:
    """Seconds of each message, and of all of a step.

    A repetition starts at a barrier and lasts until its slowest rank is done; the median over repetitions counts.

    Returns:
        {"step_s": the sum of count × seconds, "messages": [{"operation", "axis", "num_bytes", "count", "seconds"}, …]}
    """
    seconds = [median_seconds(carrier, carrier.prepare(message)) for message in messages]
    rows = [{**asdict(message), "seconds": each} for message, each in zip(messages, seconds, strict=True)]
    total = sum(message.count * each for message, each in zip(messages, seconds, strict=True))
    return {"step_s": total, "messages": rows}


def median_seconds(carrier: Carrier, send: Callable[[], None]) -> float:
    """Median time of `send`, as the slowest rank sees it; equal on every rank."""

    def once() -> float:
        carrier.barrier()
        begin = time.perf_counter()
        send()
        return carrier.largest(time.perf_counter() - begin)

    for _ in range(WARM_UP):
        last = once()
    repeats = max(MIN_REPEATS, min(MAX_REPEATS, round(MESSAGE_S / last)))
    return statistics.median(once() for _ in range(repeats))
