"""Import: a model that others trained becomes one of our checkpoints, with configuration and tokenizer."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from neox.checkpoint.huggingface_import import HuggingFaceModel
from neox.checkpoint.manifest import SliceInfo, TensorInfo
from neox.checkpoint.meta_import import MetaModel, is_meta
from neox.checkpoint.neox_import import NeoXModel, is_neox
from neox.checkpoint.save import commit, write_slices
from neox.checkpoint.settings import vocab_multiple
from neox.checkpoint.special_tokens import FILES
from neox.checkpoint.store import Store, flush
from neox.checkpoint.tensor_file import Entry, split
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.load import to_dict
from neox.config.schema import CheckpointConfig, Config, DataConfig, ModelConfig
from neox.config.vocabulary import count_vocabulary
from neox.data.durable import storage_failure

SHARD_BYTES = 5 * 10**9
"""Size of the checkpoint's files, so that several ranks check and read it side by side."""


class Source(Protocol):
    """Someone else's model."""

    model: ModelConfig
    """Its vocabulary may be the padded one."""
    shapes: dict[str, tuple[int, ...]]
    """Our logical tensors."""
    tokenizer: Path | None
    """Its tokenizer.json."""
    origin: dict[str, Any]
    """Where it came from, JSON-able."""

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Our tensor `name` in floating-point blocks on the CPU, which laid end to end are the whole."""
        ...


def open_source(folder: Path, configs: Sequence[Path]) -> Source:
    """The model in a folder, of whatever kind it is; `configs` are the files of a GPT-NeoX run.

    Raises:
        UserError: it is no model that can be read here.
    """
    if is_neox(folder):
        return NeoXModel(folder, configs)
    if configs:
        raise UserError(f"--config {configs[0]}: is for checkpoints of GPT-NeoX, and {folder} is none (global_step…)")
    if is_meta(folder):
        return MetaModel(folder)
    if (folder / "config.json").is_file():
        return HuggingFaceModel(folder)
    raise UserError(
        f"{folder} is not a checkpoint of ours (manifest.json), nor a model of transformers (config.json), of GPT-NeoX "
        "(layer_00-model_00-model_states.pt, mp_rank_00_model_states.pt) or of Meta (params.json)"
    )


def import_model(folder: Path, output: Path, tokenizer: Path | None = None, configs: Sequence[Path] = ()) -> None:
    """Writes `output`: the checkpoint of step 0, weights alone, and a config.yaml whose runs start from it.

    Weights pass through memory a block at a time. `output` appears whole or not at all.

    Args:
        tokenizer: the model's tokenizer.json, if it is not in `folder`.
        configs: the YAML files of a GPT-NeoX run, if its checkpoint does not hold them.

    Raises:
        UserError: the model is not one that this trainer computes, is damaged, or `output` exists.
    """
    if output.exists():
        raise UserError(f"--output {output}: exists; name a folder that does not")
    source = open_source(folder, configs)
    tokenizer = tokenizer or source.tokenizer
    model = with_vocabulary(source.model, tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        store = Store(temporary / "checkpoints")
        store.temporary(0).mkdir(parents=True)
        kept = None if tokenizer is None else str((output / "tokenizer.json").absolute())
        if tokenizer is not None:
            _copy_tokenizer(tokenizer, temporary)
        start = CheckpointConfig(init_from=str(output.absolute()))
        config = Config(model, data=DataConfig(tokenizer=kept), checkpoint=start)
        (temporary / "config.yaml").write_text(_recipe(config, folder), encoding="utf-8")
        _write_weights(source, store)
        commit(store, 0, {"config": to_dict(config), "origin": source.origin})
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        temporary.rename(output)
    except OSError as error:
        if reason := storage_failure(error):
            raise UserError(f"{output}: {reason}, nothing was written") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def with_vocabulary(model: ModelConfig, tokenizer: Path | None) -> ModelConfig:
    """The model whose real vocabulary is the tokenizer's; its rows beyond are padding."""
    if tokenizer is None:
        return model
    vocab_size, rows = count_vocabulary(str(tokenizer)), padded_vocab(model)
    if vocab_size > rows:
        raise UserError(f"{tokenizer}: has {vocab_size} ids, the model has rows for {rows}")
    return dataclasses.replace(model, vocab_size=vocab_size, vocab_multiple=vocab_multiple(vocab_size, rows))


def _copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """With the files beside it, which say what begins and ends a text of this model."""
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    for name in FILES:
        if (beside := tokenizer.with_name(name)).is_file():
            shutil.copyfile(beside, folder / name)


def _write_weights(source: Source, store: Store) -> None:
    entries = [Entry(name, "F32", shape) for name, shape in source.shapes.items()]
    for number, shard in enumerate(split(entries, SHARD_BYTES)):
        tensors = tuple(TensorInfo("weight", entry.name, entry.shape, "float32") for entry in shard)
        slices = tuple(SliceInfo("weight", e.name, None, 0, 1, 0, e.num_bytes // 4) for e in shard)
        blocks = (block.float() for entry in shard for block in _checked(source.blocks(entry.name), entry))
        write_slices(store.temporary(0), number, tensors, slices, blocks)


def _checked(blocks: Iterator[Tensor], entry: Entry) -> Iterator[Tensor]:
    """The blocks, of finite numbers."""
    for block in blocks:
        if not torch.isfinite(block).all():
            raise UserError(f"{entry.name} holds numbers that are not finite: the model is damaged")
        yield block


def _recipe(config: Config, folder: Path) -> str:
    """config.yaml with what the source says; training, data and optimizer are for the files merged with it."""
    model = to_dict(config)["model"]
    start = {"data": {"tokenizer": config.data.tokenizer}, "checkpoint": {"init_from": config.checkpoint.init_from}}
    text = yaml.safe_dump({"model": model, **start}, default_flow_style=None, width=120)
    return f"# Imported from {folder.name}; a run that merges this file starts from its weights.\n{text}"
