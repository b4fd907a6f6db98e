"""Meta's own Llama files (consolidated.*.pth, params.json) as the source of an import."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox.checkpoint.mapping import logical_shapes
from neox.checkpoint.settings import vocab_multiple
from neox.checkpoint.torch_file import load
from neox.config.derive import check_model
from neox.config.errors import UserError
from neox.config.schema import ModelConfig, ParallelConfig
from neox.config.shape import num_kv_heads

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
        self._shards = [load(path) for path in sorted(folder.glob("consolidated.*.pth"))]
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
        whole = self._merged(name)
        if tuple(whole.shape) != self.shapes[name]:
            found, wanted = list(whole.shape), list(self.shapes[name])
            raise UserError(f"{self._folder}: {name} has shape {found}, params.json asks for {wanted}")
        yield whole.contiguous()

    def _read_params(self, params: dict[str, Any]) -> ModelConfig:
        """The model; Meta does not write down its context: 2048, 4096, 8192 or 131072 for Llama 1, 2, 3, 3.1."""
        base, is_scaled = params.get("rope_theta", 10000.0), params.get("use_scaled_rope", False)
        length = 131072 if is_scaled else 8192 if base > 10000 else 2048 if params["norm_eps"] < 1e-5 else 4096
        rows = self._embedding().shape[0]
        kv_heads = params.get("n_kv_heads") or params["n_heads"]
        return ModelConfig(
            num_layers=params["n_layers"],
            hidden_size=params["dim"],
            num_heads=params["n_heads"],
            num_kv_heads=None if kv_heads == params["n_heads"] else kv_heads,
            seq_length=length,
            vocab_size=rows,
            vocab_multiple=vocab_multiple(rows, rows),
            intermediate_size=sum(len(shard["layers.0.feed_forward.w1.weight"]) for shard in self._shards),
            rotary_pct=1.0,
            rotary_base=float(base),
            rotary_scaling="llama3" if is_scaled else "none",
            rotary_factor=float(params.get("rope_scaling_factor", 8)) if is_scaled else 1.0,
            rotary_trained_length=8192 if is_scaled else None,
            norm="rmsnorm",
            norm_eps=params["norm_eps"],
            activation="swiglu",
            parallel_residual=False,
            tie_embeddings="output.weight" not in self._shards[0],
            bias=False,
        )

    def _embedding(self) -> Tensor:
        """Llama 3 deals the rows to the shards, those before it the columns."""
        shards = [shard["tok_embeddings.weight"] for shard in self._shards]
        is_dealt_by_rows = shards[0].shape[1] == len(self._shards[0]["norm.weight"])
        return torch.cat(shards, 0 if is_dealt_by_rows else 1)

    def _merged(self, name: str) -> Tensor:
        if name == "embed.weight":
            return self._embedding()
        if name == "head.weight":
            return self._tensor("output.weight", 0)
        if name == "final_norm.weight":
            return self._tensor("norm.weight", None)
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        assert layer is not None
        prefix = f"layers.{layer[1]}."
        if layer[2] in PARTS:
            theirs, dim = PARTS[layer[2]]
            return self._tensor(prefix + theirs, dim)
        q, k, v = (self._tensor(f"{prefix}attention.w{part}.weight", 0) for part in "qkv")
        kv_heads = num_kv_heads(self.model)
        q, k = halves_first(q, self.model.num_heads), halves_first(k, kv_heads)
        if layer[2] == "attn.q.weight":
            return q
        parts = [k, v] if layer[2] == "attn.kv.weight" else [q, k, v]
        return torch.cat([part.unflatten(0, (kv_heads, -1)) for part in parts], 1).flatten(0, 1)

    def _tensor(self, name: str, dim: int | None) -> Tensor:
        if any(name not in shard for shard in self._shards):
            raise UserError(f"{self._folder}: has no tensor {name}")
        shards = [shard[name] for shard in self._shards]
        return shards[0] if dim is None else torch.cat(shards, dim)


def halves_first(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from pairs (2i, 2i + 1), which Meta's rotary turns, to pairs (i, i + width / 2), ours."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def is_meta(folder: Path) -> bool:
    """Whether a folder holds Meta's files."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth"))
