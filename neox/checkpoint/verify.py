"""Proof that a checkpoint's files are what was saved; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from neox.checkpoint import manifest as manifests
from neox.checkpoint.manifest import FileInfo
from neox.config.errors import UserError


def damages(directory: Path, files: Sequence[FileInfo]) -> list[str | None]:
    """What is wrong with each of `files`, None where nothing is; several are read and hashed at a time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_damage, directory), files))


def damages_of(directory: Path) -> dict[str, str | None]:
    """What is wrong with each file of a checkpoint, by name, the manifest first; None where nothing is."""
    try:
        files = manifests.read(directory).files
    except UserError as error:
        return {manifests.NAME: str(error)}
    names = [file.name for file in files]
    return {manifests.NAME: None, **dict(zip(names, damages(directory, files), strict=True))}


def _damage(directory: Path, file: FileInfo) -> str | None:
    try:
        manifests.check_file(directory, file)
    except UserError as error:
        return str(error)
    return None
