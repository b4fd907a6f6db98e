"""Where a job is in its life, in words that all schedulers share."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Normalised job states; each scheduler's table maps its own words to these."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAIL = "lost its node"
    PREEMPTED = "preempted and not requeued"
    UNKNOWN = "unknown to the scheduler"

    @property
    def is_active(self) -> bool:
        """Whether the scheduler may still run it. UNKNOWN counts: one failed query must not end a job."""
        return self in (State.PENDING, State.RUNNING, State.UNKNOWN)
