"""Meta's own Llama files (consolidated.*.pth, params.json) as the source of an import."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox.checkpoint.mapping import logical_shapes
from neox.checkpoint.settings import vocab_multiple
from neox.checkpoint.shards import Rows, Shard, beside, read_all, shards_of, stacked
from neox.checkpoint.torch_file import TorchFile
from neox.config.derive import check_model
from neox.config.errors import UserError
from neox.config.schema import ModelConfig, ParallelConfig
from neox.config.shape import head_dim, num_kv_heads

PARTS = {
    "attn_norm.weight": ("attention_norm.weight", None),
    "attn.out.weight": ("attention.wo.weight", 1),
    "mlp_norm.weight": ("ffn_norm.weight", None),
    "mlp.gate.weight": ("feed_forward.w1.weight", 0),
    "mlp.down.weight": ("feed_forward.w2.weight", 1),
    "mlp.up.weight": ("feed_forward.w3.weight", 0),
}
"""Tensor of a block → theirs, and the dimension that its shards divide."""


class MetaModel:
    """A folder of Meta's; see `neox.checkpoint.importing.Source`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [TorchFile(path) for path in sorted(folder.glob("consolidated.*.pth"))]
        try:
            self.model = self._read_params(json.loads((folder / "params.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / 'params.json'}: not the parameters of a Llama: {error}") from None
        check_model(self.model, ParallelConfig())
        self.shapes = logical_shapes(self.model)
        self.tokenizer: Path | None = None
        self.origin: dict[str, Any] = {"format": "Meta", "folder": folder.name}

    def blocks(self, name: str) -> Iterator[Tensor]:
        """As `neox.checkpoint.importing.Source`."""
        return read_all(self._rows(name), self.shapes[name], f"{self._folder}: {name}", "params.json")

    def _read_params(self, params: dict[str, Any]) -> ModelConfig:
        """The model; Meta does not write down its context: 2048, 4096, 8192 or 131072 for Llama 1, 2, 3, 3.1."""
        base, is_scaled = params.get("rope_theta", 10000.0), params.get("use_scaled_rope", False)
        length = 131072 if is_scaled else 8192 if base > 10000 else 2048 if params["norm_eps"] < 1e-5 else 4096
        rows = sum(part.num_rows for part in self._embedding())
        kv_heads = params.get("n_kv_heads") or params["n_heads"]
        return ModelConfig(
            num_layers=params["n_layers"],
            hidden_size=params["dim"],
            num_heads=params["n_heads"],
            num_kv_heads=None if kv_heads == params["n_heads"] else kv_heads,
            seq_length=length,
            vocab_size=rows,
            vocab_multiple=vocab_multiple(rows, rows),
            intermediate_size=sum(shard.shape[0] for shard in self._shards("layers.0.feed_forward.w1.weight")),
            rotary_pct=1.0,
            rotary_base=float(base),
            rotary_scaling="llama3" if is_scaled else "none",
            rotary_factor=float(params.get("rope_scaling_factor", 8)) if is_scaled else 1.0,
            rotary_trained_length=8192 if is_scaled else None,
            norm="rmsnorm",
            norm_eps=params["norm_eps"],
            activation="swiglu",
            parallel_residual=False,
            tie_embeddings="output.weight" not in self._files[0].entries,
            bias=False,
        )

    def _rows(self, name: str) -> list[Rows]:
        """Where our tensor's rows lie."""
        if name == "embed.weight":
            return self._embedding()
        if name == "head.weight":
            return stacked(self._shards("output.weight"))
        if name == "final_norm.weight":
            return stacked(self._shards("norm.weight")[:1])
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        assert layer is not None
        prefix = f"layers.{layer[1]}."
        if layer[2] in PARTS:
            theirs, dim = PARTS[layer[2]]
            shards = self._shards(prefix + theirs)
            return beside(shards) if dim == 1 else stacked(shards if dim == 0 else shards[:1])
        q, k, v = (self._shards(f"{prefix}attention.w{part}.weight") for part in "qkv")
        return self._heads(layer[2], q, k, v)

    def _embedding(self) -> list[Rows]:
        """Llama 3 deals the rows to the shards, those before it the columns."""
        shards = self._shards("tok_embeddings.weight")
        is_dealt_by_rows = shards[0].shape[1] == self._shards("norm.weight")[0].shape[0]
        return stacked(shards) if is_dealt_by_rows else beside(shards)

    def _heads(self, name: str, q: list[Shard], k: list[Shard], v: list[Shard]) -> list[Rows]:
        """Ours: [kv head][its queries, k, v], or the queries apart."""
        width, kv_heads = head_dim(self.model), num_kv_heads(self.model)
        on_each, group = kv_heads // len(k), self.model.num_heads // kv_heads
        for shard, num_heads in ((q[0], on_each * group), (k[0], on_each), (v[0], on_each)):
            found, wanted = list(shard.shape), [num_heads * width, self.model.hidden_size]
            if found != wanted:
                raise UserError(f"{self._folder}: {shard.name} has shape {found}, params.json asks for {wanted}")
        rows = []
        for rank, place in itertools.product(range(len(k)), range(on_each)):
            queries = [_turned(q[rank], (place * group + i) * width, width) for i in range(group)]
            keys, values = _turned(k[rank], place * width, width), Rows((v[rank],), place * width, width)
            rows += {"attn.q.weight": queries, "attn.kv.weight": [keys, values]}.get(name, [*queries, keys, values])
        return rows

    def _shards(self, name: str) -> list[Shard]:
        return shards_of(self._files, name)


def _turned(shard: Shard, first: int, width: int) -> Rows:
    """Rows of one head from pairs (2i, 2i + 1), which Meta's rotary turns, to pairs (i, i + width / 2), ours."""
    return Rows((shard,), first, width, lambda parts: torch.cat([parts[0][::2], parts[0][1::2]]), is_one_block=True)


def is_meta(folder: Path) -> bool:
    """Whether a folder holds Meta's files."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth"))
