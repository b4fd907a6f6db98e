"""The lock that keeps a checkpoint from being pruned while a process reads it; it ends with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from neox.checkpoint import manifest as manifests
from neox.config.errors import UserError


def hold(directory: Path) -> BinaryIO:
    """Keeps the checkpoint from being pruned for as long as the returned file is open.

    Where the filesystem has no locks (Lustre mounted without flock) nothing is kept, and nothing is refused.

    Raises:
        UserError: it is not a checkpoint, or is being removed right now.
    """
    path = directory / manifests.NAME
    file = _open(path, "rb")
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Between opening and locking it may have been removed, or replaced.
        is_gone = not os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        is_gone = True
    except OSError:
        return file
    if is_gone:
        file.close()
        raise UserError(f"{directory} is not a checkpoint any more: it has just been removed")
    return file


@contextmanager
def try_removing(directory: Path) -> Iterator[bool]:
    """Yields whether nobody reads the checkpoint; until the block ends nobody can begin to."""
    with _open(directory / manifests.NAME, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # no locks here, so nobody can hold one
        yield True


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"{path.parent} is not a checkpoint: {path.name}: {error.strerror}") from None
