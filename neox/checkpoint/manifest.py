"""manifest.json: what a checkpoint holds, where each slice of each logical tensor lies, and how to prove it intact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox.config.errors import UserError

NAME = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class TensorInfo:
    """A logical tensor: what the single-device model would hold."""

    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class SliceInfo:
    """Where a flat range of one shard of a logical tensor lies; the coordinates are those of `neox.parallel.pieces`."""

    kind: str
    name: str
    dim: int | None
    shard_index: int
    num_shards: int
    start: int
    numel: int

    @property
    def key(self) -> str:
        """Name of the slice inside its safetensors file."""
        return f"{self.kind}/{self.name}/{self.shard_index}of{self.num_shards}/{self.start}"


@dataclass(frozen=True)
class FileInfo:
    """One safetensors file: what one rank wrote."""

    name: str
    size: int
    sha256: str
    tensors: tuple[TensorInfo, ...]
    slices: tuple[SliceInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """The whole checkpoint: files, logical tensors, and the training state that is not a tensor."""

    step: int
    state: dict[str, Any]
    """JSON-able: samples, schedule, optimizer scalars, RNG, config and its hash, code version."""
    files: tuple[FileInfo, ...]

    def tensors(self) -> dict[tuple[str, str], TensorInfo]:
        """Every logical tensor by (kind, name)."""
        return {(t.kind, t.name): t for file in self.files for t in file.tensors}

    def slices(self) -> dict[tuple[str, str], list[tuple[str, SliceInfo]]]:
        """Every slice with its file's name, by (kind, name)."""
        found: dict[tuple[str, str], list[tuple[str, SliceInfo]]] = defaultdict(list)
        for file in self.files:
            for item in file.slices:
                found[item.kind, item.name].append((file.name, item))
        return found


def check_coverage(manifest: Manifest) -> None:
    """Asserts that each element of each logical tensor lies in exactly one slice."""
    slices = manifest.slices()
    for key, info in manifest.tensors().items():
        layouts = {(item.dim, item.num_shards) for _, item in slices[key]}
        assert len(layouts) == 1, f"{key} was saved in several layouts: {layouts}"
        ((_, num_shards),) = layouts
        shard_numel = math.prod(info.shape) // num_shards
        expected = [(i, shard_numel) for i in range(num_shards)]
        by_shard: dict[int, int] = dict.fromkeys(range(num_shards), 0)
        for _, item in sorted(slices[key], key=lambda pair: (pair[1].shard_index, pair[1].start)):
            assert item.start == by_shard[item.shard_index], f"{key}: gap or overlap at {item}"
            by_shard[item.shard_index] += item.numel
        assert list(by_shard.items()) == expected, f"{key}: shards hold {by_shard}, not {shard_numel} each"


def write(manifest: Manifest, directory: Path) -> None:
    """Writes manifest.json; the caller flushes it and the directory."""
    content = json.loads(json.dumps(dataclasses.asdict(manifest)))
    data = {"format": FORMAT, "sha256": _digest(content), **content}
    (directory / NAME).write_text(json.dumps(data, indent=1), encoding="utf-8")


def read(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory; it is intact, the files that it names may not be (`check_file`).

    Raises:
        UserError: the directory is not a checkpoint, or its manifest is damaged.
    """
    path = directory / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise UserError(f"{path}: written in another format than {FORMAT}; this version cannot read it")
        if data.pop("sha256") != _digest(data):
            raise UserError(f"{path} is damaged: its sha256 is not what it says")
        return Manifest(data["step"], data["state"], tuple(file_from_dict(item) for item in data["files"]))
    except OSError as error:
        raise UserError(f"{directory} is not a checkpoint: {NAME}: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: it is not the manifest of a checkpoint") from None


def file_from_dict(data: dict[str, Any]) -> FileInfo:
    """A `FileInfo` from its JSON form."""
    tensors = tuple(TensorInfo(**{**item, "shape": tuple(item["shape"])}) for item in data["tensors"])
    slices = tuple(SliceInfo(**item) for item in data["slices"])
    return FileInfo(data["name"], data["size"], data["sha256"], tensors, slices)


def check_size(directory: Path, file: FileInfo) -> None:
    """UserError unless `file` is there, at its size."""
    path = directory / file.name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is missing from the checkpoint: {error.strerror}") from None
    if size != file.size:
        raise UserError(f"{path} is damaged: {size} bytes, the manifest says {file.size}")


def check_file(directory: Path, file: FileInfo) -> None:
    """UserError unless every byte of `file` is what was saved."""
    check_size(directory, file)
    path = directory / file.name
    try:
        with path.open("rb") as opened:
            is_intact = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except OSError as error:
        raise UserError(f"{path} is damaged: {error.strerror}") from None
    if not is_intact:
        raise UserError(f"{path} is damaged: its sha256 is not the manifest's")


def _digest(content: dict[str, Any]) -> str:
    """sha256 of the manifest's content in JSON's one canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
