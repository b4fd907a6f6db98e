"""A checkpoint of GPT-NeoX 1 or 2 as the source of an import: its layer files or rank files, any tensor parallelism."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox.checkpoint.mapping import logical_shapes
from neox.checkpoint.settings import vocab_multiple
from neox.checkpoint.torch_file import load
from neox.config.errors import UserError
from neox.config.load import load_model
from neox.config.schema import ModelConfig
from neox.config.shape import head_dim, is_gated, num_kv_heads

LAYERED, SEQUENTIAL = "layer_{layer:02d}-model_{rank:02d}-model_states.pt", "mp_rank_{rank:02d}_model_states.pt"
"""Files of a pipeline's layers, and of a rank's whole model (pipe_parallel_size 0)."""

PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "attn_norm": ("copied", ("input_layernorm",)),
    "attn.qkv": ("qkv", ("attention.query_key_value",)),
    "attn.q": ("q", ("attention.query_key_value",)),
    "attn.kv": ("kv", ("attention.query_key_value",)),
    "attn.out": ("columns", ("attention.dense",)),
    "mlp_norm": ("copied", ("post_attention_layernorm",)),
    "mlp.gate": ("gate", ("mlp.w1", "mlp.linear1", "mlp.dense_h_to_4h")),
    "mlp.up": ("up", ("mlp.w3", "mlp.linear1", "mlp.dense_h_to_4h")),
    "mlp.down": ("columns", ("mlp.w2", "mlp.linear2", "mlp.dense_4h_to_h")),
}
"""Module of a block → how its shards make the whole, and what it was called over the years."""

KINDS = {"weight": ("weight", "scale", "g"), "bias": ("bias",)}
"""Our kind of parameter → theirs: RMSNorm has a scale, ScaleNorm a g."""


class NeoXModel:
    """A folder global_stepN of GPT-NeoX; see `neox.checkpoint.importing.Source`."""

    def __init__(self, folder: Path, configs: Sequence[Path]) -> None:
        """`configs`: the YAML files of the run; none: those that GPT-NeoX 2 keeps in the checkpoint."""
        self._folder = folder
        self._is_layered = (folder / LAYERED.format(layer=0, rank=0)).is_file()
        self.tp = len(list(folder.glob("layer_00-model_*-model_states.pt" if self._is_layered else "mp_rank_*.pt")))
        configs = configs or sorted((folder / "configs").glob("*"))
        if not configs:
            raise UserError(f"{folder}: holds no configs/; name the run's YAML files with --config")
        self._opened: tuple[int, list[Mapping[str, Tensor]]] = (-1, [])
        self.model = self._with_rows(load_model(configs))
        self.shapes = logical_shapes(self.model)
        self.tokenizer: Path | None = None
        self.origin: dict[str, Any] = {"format": "GPT-NeoX", "folder": folder.name, "tp": self.tp}

    def blocks(self, name: str) -> Iterator[Tensor]:
        """As `neox.checkpoint.importing.Source`."""
        whole = self._merged(name)
        if tuple(whole.shape) != self.shapes[name]:
            found, wanted = list(whole.shape), list(self.shapes[name])
            raise UserError(f"{self._folder}: {name} has shape {found}, the configuration asks for {wanted}")
        yield whole.contiguous()

    def _with_rows(self, model: ModelConfig) -> ModelConfig:
        """The vocabulary is as large as the embedding."""
        rows = sum(len(shard) for shard in self._shards(0, ["word_embeddings.weight"]))
        return dataclasses.replace(model, vocab_size=rows, vocab_multiple=vocab_multiple(rows, rows))

    def _merged(self, name: str) -> Tensor:
        if name == "embed.weight":
            return torch.cat(self._shards(0, ["word_embeddings.weight"]))
        if name == "positions.weight":
            return _mean(self._shards(0, ["position_embeddings.weight"]))
        last = self.model.num_layers + 3
        if name == "head.weight":
            return torch.cat(self._shards(last + 1, ["final_linear.weight"]))
        module, _, kind = name.rpartition(".")
        if module == "final_norm":
            return _mean(self._shards(last, [f"norm.{theirs}" for theirs in KINDS[kind]]))
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
        if layer is None or layer[2] not in PARTS:
            raise UserError(f"{self._folder}: cannot be imported: {name} has no counterpart in GPT-NeoX's checkpoints")
        rule, modules = PARTS[layer[2]]
        names = [f"{part}.{theirs}" for part in modules for theirs in KINDS[kind]]
        return self._merge(rule, self._shards(int(layer[1]) + 2, names), kind == "bias")

    def _merge(self, rule: str, shards: list[Tensor], is_bias: bool) -> Tensor:
        if rule == "copied":
            return _mean(shards)
        if rule == "columns":
            # In a parallel block every rank adds its bias before the sum over ranks; else one of the equal ones counts.
            parallel = self.model.parallel_residual
            return (sum(shards[1:], shards[0]) if parallel else _mean(shards)) if is_bias else torch.cat(shards, 1)
        if rule in ("up", "gate"):
            return torch.cat([self._half(rule, shard) for shard in shards])
        if num_kv_heads(self.model) == self.model.num_heads:
            return torch.cat(shards)  # [head][q, k, v], as ours
        return _grouped(rule, shards, self.model)

    def _half(self, rule: str, shard: Tensor) -> Tensor:
        """A gated MLP's first layer is [up, gate] on each rank, but in files of Llama's three names."""
        width = self.model.intermediate_size or 4 * self.model.hidden_size
        if not is_gated(self.model) or len(shard) * self.tp == width:
            return shard
        return shard.chunk(2)[0 if rule == "up" else 1]

    def _shards(self, layer: int, names: Sequence[str]) -> list[Tensor]:
        """The tensor of the first of `names` that there is, of every rank, fp32."""
        states = self._states(layer)
        prefix = "" if self._is_layered else f"sequential.{layer}."
        name = next((prefix + name for name in names if prefix + name in states[0]), None)
        if name is None:
            raise UserError(f"{self._folder}: has no {' or '.join(names)} in layer {layer}")
        if any(name not in state for state in states):
            raise UserError(f"{self._folder}: {name} is not in the files of every rank")
        return [state[name].float() for state in states]

    def _states(self, layer: int) -> list[Mapping[str, Tensor]]:
        """Tensors of one layer, or of everything, rank by rank; one set of files is open at a time."""
        key = layer if self._is_layered else 0
        if self._opened[0] != key:
            pattern = LAYERED if self._is_layered else SEQUENTIAL
            loaded = [load(self._folder / pattern.format(layer=layer, rank=rank)) for rank in range(self.tp)]
            self._opened = (key, [state if self._is_layered else state["module"] for state in loaded])
        return self._opened[1]


def is_neox(folder: Path) -> bool:
    """Whether a folder is a global_stepN of GPT-NeoX."""
    return any((folder / name.format(layer=0, rank=0)).is_file() for name in (LAYERED, SEQUENTIAL))


def _mean(shards: list[Tensor]) -> Tensor:
    """Of what every rank holds whole, as GPT-NeoX's converter: the ranks' rounding may have drifted apart."""
    return torch.stack(shards).mean(0)


def _grouped(rule: str, shards: list[Tensor], model: ModelConfig) -> Tensor:
    """[queries, keys, values] of each rank's heads → ours: [kv head][its queries, k, v], or q and kv apart."""
    width, kv_heads = head_dim(model), num_kv_heads(model)
    sizes = [model.num_heads * width // len(shards), *[kv_heads * width // len(shards)] * 2]
    q, k, v = (torch.cat(part) for part in zip(*(shard.split(sizes) for shard in shards), strict=True))
    if rule == "q":
        return q
    parts = [k, v] if rule == "kv" else [q, k, v]
    return torch.cat([part.unflatten(0, (kv_heads, -1)) for part in parts], 1).flatten(0, 1)
