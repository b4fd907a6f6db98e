"""A folder of `transformers` as the source of an import: safetensors, or PyTorch's files without their pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox.checkpoint.families import identify
from neox.checkpoint.huggingface import INDEX, read_config
from neox.checkpoint.mapping import RowMap
from neox.checkpoint.tensor_file import TensorFile
from neox.checkpoint.torch_file import TorchFile
from neox.config.errors import UserError

SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARDED = (INDEX, "pytorch_model.bin.index.json")
HEADS = ("lm_head.weight", "embed_out.weight")
"""Names of what old files of tied models hold a second time."""
BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
"""Ends of names that hold nothing learned."""
RENAMED = {"embed_out.weight": "lm_head.weight"}
"""Published name → the other name that transformers 5 writes."""


class HuggingFaceModel:
    """A model of transformers; see `neox.checkpoint.importing.Source`."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        try:
            family = identify(config)
            self.model = family.read(config)
        except UserError as error:
            raise UserError(f"{folder / 'config.json'}: {error}") from None
        self._rows = RowMap(self.model, family)
        self.shapes = self._rows.ours
        self.tokenizer = folder / "tokenizer.json" if (folder / "tokenizer.json").is_file() else None
        self.origin: dict[str, Any] = {"format": "transformers", "family": family.architecture, "folder": folder.name}
        self._files = _open(folder)
        self._check(folder)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """As `neox.checkpoint.importing.Source`."""
        return self._rows.imported(name, self._read_rows)

    def _read_rows(self, name: str, row: int, num_rows: int) -> Tensor:
        width = math.prod(self._rows.theirs[name][1:])
        name = self._there(name)
        return self._files[name].read(name, row * width, (row + num_rows) * width)

    def _there(self, name: str) -> str:
        return name if name in self._files else RENAMED.get(name, name)

    def _check(self, folder: Path) -> None:
        """Every tensor is there in its shape, and none that the model would leave out."""
        for name, shape in self._rows.theirs.items():
            there = self._there(name)
            if there not in self._files:
                raise UserError(f"{folder}: has no tensor {name}")
            found = self._files[there].entries[there].shape
            if found != shape:
                raise UserError(f"{folder}: {name} has shape {list(found)}, config.json asks for {list(shape)}")
        known = {self._there(name) for name in self._rows.theirs}
        for name in self._files:
            if name in HEADS and name not in known and not self._is_embedding(name):
                raise UserError(f"{folder}: {name} is not the embedding, as tie_word_embeddings in config.json says")
            if name not in known and name not in HEADS and not name.endswith(BUFFERS):
                raise UserError(f"{folder}: has the tensor {name}, which no {self.origin['family']} has")

    def _is_embedding(self, head: str) -> bool:
        """Whether the tensor `head` of a model without a head of its own repeats the embedding."""
        file, shape = self._files[head], self.shapes["embed.weight"]
        if file.entries[head].shape != shape:
            return False

        def read(_: str, row: int, num_rows: int) -> Tensor:
            return file.read(head, row * shape[1], (row + num_rows) * shape[1])

        pairs = zip(self.blocks("embed.weight"), self._rows.imported("embed.weight", read), strict=True)
        return all(torch.equal(block.float(), other.float()) for block, other in pairs)


def _open(folder: Path) -> dict[str, TensorFile | TorchFile]:
    """The file of every tensor."""
    index = next((folder / name for name in SHARDED if (folder / name).is_file()), None)
    names = [name for name in SINGLE if (folder / name).is_file()][:1]
    if index is not None and not names:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{index} is damaged: it is not an index of tensors") from None
    if not names:
        raise UserError(f"{folder}: holds no weights: none of {', '.join((*SINGLE, *SHARDED))}")
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index}: names files outside its folder")
    opened = [TensorFile(folder / n) if n.endswith(".safetensors") else TorchFile(folder / n) for n in names]
    return {name: file for file in opened for name in file.entries}
