"""What checkpoints need of the process group, and how its ranks fail together."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Protocol

from neox.config.errors import UserError


class Ranks(Protocol):
    """Collectives of all ranks; `neox.parallel.engine.Engine` has them."""

    @property
    def rank(self) -> int:
        """Global rank of this process."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        ...

    def agree(self, mistake: str | None) -> None:
        """Raises, as a UserError on every rank, the mistake that the lowest rank found; nothing when none found any."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON-able `value`, on every rank."""
        ...


class SaveError(OSError):
    """A checkpoint could not be written; nothing of it remains and the earlier ones are intact."""


def fail_together(ranks: Ranks, path: Path, error: Exception | None) -> None:
    """Raises SaveError, with the reason that the lowest rank has, on every rank, if one of them has an `error`."""
    reason = None if error is None else (getattr(error, "strerror", None) or str(error) or type(error).__name__)
    try:
        ranks.agree(reason)
    except UserError as agreed:
        message = f"checkpoint not saved, earlier ones are intact: {agreed}"
        raise SaveError(errno.EIO, message, str(path)) from error
