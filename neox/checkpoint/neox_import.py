"""A checkpoint of GPT-NeoX 1 or 2 as the source of an import: its layer files or rank files, any tensor parallelism."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from neox.checkpoint.mapping import logical_shapes
from neox.checkpoint.settings import vocab_multiple
from neox.checkpoint.shards import Rows, Shard, beside, columns, mean, read_all, shards_of, stacked, total
from neox.checkpoint.torch_file import TorchFile
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
        self._opened: tuple[int, list[TorchFile]] = (-1, [])
        self.model = self._with_rows(load_model(configs))
        self.shapes = logical_shapes(self.model)
        self.tokenizer: Path | None = None
        self.origin: dict[str, Any] = {"format": "GPT-NeoX", "folder": folder.name, "tp": self.tp}

    def blocks(self, name: str) -> Iterator[Tensor]:
        """As `neox.checkpoint.importing.Source`."""
        return read_all(self._rows(name), self.shapes[name], f"{self._folder}: {name}", "the configuration")

    def _with_rows(self, model: ModelConfig) -> ModelConfig:
        """The vocabulary is as large as the embedding."""
        rows = sum(shard.shape[0] for shard in self._shards(0, ["word_embeddings.weight"]))
        return dataclasses.replace(model, vocab_size=rows, vocab_multiple=vocab_multiple(rows, rows))

    def _rows(self, name: str) -> list[Rows]:
        """Where our tensor's rows lie."""
        last = self.model.num_layers + 3
        if name == "embed.weight":
            return stacked(self._shards(0, ["word_embeddings.weight"]))
        if name == "positions.weight":
            return beside(self._shards(0, ["position_embeddings.weight"]), mean)
        if name == "head.weight":
            return stacked(self._shards(last + 1, ["final_linear.weight"]))
        module, _, kind = name.rpartition(".")
        if module == "final_norm":
            return beside(self._shards(last, [f"norm.{theirs}" for theirs in KINDS[kind]]), mean)
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
        if layer is None or layer[2] not in PARTS:
            raise UserError(f"{self._folder}: cannot be imported: {name} has no counterpart in GPT-NeoX's checkpoints")
        rule, modules = PARTS[layer[2]]
        names = [f"{part}.{theirs}" for part in modules for theirs in KINDS[kind]]
        return self._merged(rule, self._shards(int(layer[1]) + 2, names), kind == "bias")

    def _merged(self, rule: str, shards: list[Shard], is_bias: bool) -> list[Rows]:
        if rule == "copied":
            return beside(shards, mean)
        if rule == "columns":
            # In a parallel block every rank adds its bias before the sum over ranks; else one of the equal ones counts.
            return beside(shards, columns if not is_bias else total if self.model.parallel_residual else mean)
        if rule in ("up", "gate"):
            return [self._half(rule, shard) for shard in shards]
        if num_kv_heads(self.model) == self.model.num_heads:
            return stacked(shards)  # [head][q, k, v], as ours
        return self._grouped(rule, shards)

    def _half(self, rule: str, shard: Shard) -> Rows:
        """A gated MLP's first layer is [up, gate] on each rank, but in files of Llama's three names."""
        size, width = shard.shape[0], self.model.intermediate_size or 4 * self.model.hidden_size
        if not is_gated(self.model) or size * self.tp == width:
            return Rows((shard,), 0, size)
        return Rows((shard,), 0 if rule == "up" else size // 2, size // 2)

    def _grouped(self, rule: str, shards: list[Shard]) -> list[Rows]:
        """[queries, keys, values] of each rank's heads → ours: [kv head][its queries, k, v], or q and kv apart."""
        width, kv_heads = head_dim(self.model), num_kv_heads(self.model) // len(shards)
        group = self.model.num_heads // num_kv_heads(self.model)
        rows: list[Rows] = []
        if (size := shards[0].shape[0]) != (wanted := kv_heads * (group + 2) * width):
            raise UserError(f"{self._folder}: {shards[0].name} has {size} rows, the configuration asks for {wanted}")
        for shard, kv in itertools.product(shards, range(kv_heads)):
            queries = Rows((shard,), kv * group * width, group * width)
            keys, values = (Rows((shard,), (kv_heads * (group + i) + kv) * width, width) for i in (0, 1))
            rows += {"q": [queries], "kv": [keys, values], "qkv": [queries, keys, values]}[rule]
        return rows

    def _shards(self, layer: int, names: Sequence[str]) -> list[Shard]:
        """The tensor of the first of `names` that there is, of every rank."""
        files = self._files(layer)
        prefix = "" if self._is_layered else f"sequential.{layer}."
        name = next((prefix + name for name in names if prefix + name in files[0].entries), None)
        if name is None:
            raise UserError(f"{self._folder}: has no {' or '.join(names)} in layer {layer}")
        return shards_of(files, name)

    def _files(self, layer: int) -> list[TorchFile]:
        """The files of one layer, or of everything, rank by rank; one set of files is open at a time."""
        key = layer if self._is_layered else 0
        if self._opened[0] != key:
            pattern, inside = (LAYERED, None) if self._is_layered else (SEQUENTIAL, "module")
            paths = [self._folder / pattern.format(layer=layer, rank=rank) for rank in range(self.tp)]
            self._opened = (key, [TorchFile(path, inside) for path in paths])
        return self._opened[1]


def is_neox(folder: Path) -> bool:
    """Whether a folder is a global_stepN of GPT-NeoX."""
    return any((folder / name.format(layer=0, rank=0)).is_file() for name in (LAYERED, SEQUENTIAL))
