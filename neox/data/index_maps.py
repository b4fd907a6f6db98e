"""Index maps on disk: GPT-NeoX's .npy files, each set with a key that says what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neox.config.errors import UserError
from neox.data.durable import dump_json, replacing

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class IndexMaps:
    """Arrays that were made once and are mapped by every rank: STEM_NAME.npy, and STEM_key.json, which says from what
    besides the values in the file names; GPT-NeoX's own, which have no key, are made again.
    """

    stem: Path
    names: tuple[str, ...]

    def file(self, name: str) -> Path:
        """Path of one array."""
        return self.stem.with_name(f"{self.stem.name}_{name}.npy")

    @property
    def key_file(self) -> Path:
        """Path of the key."""
        return self.stem.with_name(f"{self.stem.name}_key.json")

    def make_unless_made(self, key: dict[str, Any], write: Callable[[Sequence[BinaryIO]], None]) -> bool:
        """Has the arrays written, whole or not at all, unless all are there with this key; whether it had to.

        `write` gets an open file for each name, in order.

        Raises:
            UserError: the folder cannot be written to, or the disk is full.
        """
        if self._are_made(key):
            return False
        paths = [self.file(name) for name in self.names]
        # The key comes last, and its old version goes first, so that an interruption leaves nothing to be believed.
        with replacing(*paths, self.key_file) as temporaries:
            with ExitStack() as stack:
                write([stack.enter_context(temporary.open("wb")) for temporary in temporaries[:-1]])
            dump_json(temporaries[-1], key)
        return True

    def _are_made(self, key: dict[str, Any]) -> bool:
        try:
            if json.loads(self.key_file.read_text()) != key:
                return False
            self.open()
        except (OSError, ValueError, UserError):
            return False
        return True

    def open(self) -> list[Array]:
        """The arrays, memory-mapped, in the order of the names.

        Raises:
            UserError: one is missing or damaged.
        """
        arrays = []
        for path in (self.file(name) for name in self.names):
            try:
                arrays.append(np.load(path, mmap_mode="r"))
            except (OSError, ValueError, EOFError):
                raise UserError(
                    f"{path}: missing or damaged; make it with `neox data index`, or remove it and start again"
                ) from None
        return arrays


def digest(array: Array) -> str:
    """sha256 of an array's bytes, in hex."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def index_stem(prefix: str, index_dir: str | None, name: str) -> Path:
    """PREFIX_NAME, beside the token file or in the folder that holds all index maps."""
    path = Path(f"{prefix}_{name}")
    return path if index_dir is None else Path(index_dir) / path.name
