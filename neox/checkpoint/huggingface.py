"""Export: one of our checkpoints becomes a folder that `transformers` loads, as the family that computes the same."""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from neox.checkpoint.config import saved_config
from neox.checkpoint.families import FAMILIES, Family, choose, common_settings, exported_names
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.store import flush
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.config.shape import head_dim, num_kv_heads
from neox.data.durable import storage_failure
from neox.data.tokenizer import END_OF_DOCUMENT, PADDING, LoadedTokenizer, load_tokenizer
from neox.model.gpt import GPT

SHARD_BYTES = 5 * 2**30
"""Largest safetensors file, and so the most weights that the export holds in memory at once."""

ReadWeight = Callable[[str], Tensor]
"""Logical name → the whole fp32 tensor."""


def convert(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Exports the checkpoint folder `checkpoint`, whatever layout wrote it; see `export`.

    Raises:
        UserError: also when `checkpoint` is none or is damaged.
    """
    reader = TensorReader(checkpoint)
    export(saved_config(reader.manifest).model, partial(reader.read, "weight"), tokenizer, output)


def export(model: ModelConfig, read: ReadWeight, tokenizer: Path, output: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config, generation config, fp32 weights and tokenizer to the folder `output`, whole or not at all.

    An earlier export at `output` is replaced.

    Raises:
        UserError: no family of transformers has such a model, the tokenizer does not fit, `output` is something
            else's, or the disk is full.
    """
    family = choose(model)
    loaded = load_tokenizer(tokenizer)
    assert model.vocab_size is not None
    if loaded.vocab_size > model.vocab_size:
        raise UserError(f"{tokenizer}: has {loaded.vocab_size} ids, the model was trained with {model.vocab_size}")
    if output.exists() and not _is_replaceable(output):
        raise UserError(f"--output {output}: exists and is not an exported model; name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        _write_tokenizer(loaded, model, temporary)
        _write_configs(model, family, loaded, temporary)
        _write_weights(model, family, read, temporary, shard_bytes)
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        _replace(temporary, output)
    except Exception as error:  # tokenizers raises no narrower class
        if reason := storage_failure(error):
            raise UserError(f"{output}: {reason}, nothing was written") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the exported model: rows of ours, one source below the other; without sources, zeros."""

    shape: tuple[int, ...]
    sources: tuple[tuple[str, Tensor | None], ...] = ()
    """Our tensor, and which of its rows in order; None: all."""


def _tensors(model: ModelConfig, family: Family) -> dict[str, _Tensor]:
    """All tensors of the exported model by their names there."""
    tensors: dict[str, _Tensor] = {}
    for name, parameter in _meta(model).named_parameters():
        for exported, part in exported_names(family, name).items():
            rows = _rows(model, name, part) if part else None
            before = tensors.get(exported, _Tensor((0,)))
            length = before.shape[0] + (len(parameter) if rows is None else len(rows))
            tensors[exported] = _Tensor((length, *parameter.shape[1:]), (*before.sources, (name, rows)))
        # GPTNeoX's attention_bias leaves out the attention's biases only; its MLP always has them.
        if family.mlp_always_biased and ".mlp." in name and not model.bias:
            (bias,) = exported_names(family, name.removesuffix("weight") + "bias")
            tensors[bias] = _Tensor((len(parameter),))
    return tensors


def _meta(model: ModelConfig) -> GPT:
    """The model without memory, for its names and shapes."""
    with torch.device("meta"):
        return GPT(model, padded_vocab(model))


def _rows(model: ModelConfig, name: str, part: str) -> Tensor:
    """Rows of the projection `name`, [kv head][its queries, k, v][head_dim], that are the queries, keys or values."""
    group = 0 if ".kv." in name else model.num_heads // num_kv_heads(model)
    rows = torch.arange(num_kv_heads(model) * (group + 2) * head_dim(model)).view(-1, group + 2, head_dim(model))
    chosen = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, group + 2)}[part]
    return rows[:, chosen].flatten()


def _write_weights(model: ModelConfig, family: Family, read: ReadWeight, folder: Path, shard_bytes: int) -> None:
    """One shard at a time: tensors are read only when their file is written."""
    shapes = {name: p.shape for name, p in _meta(model).named_parameters()}
    shards: list[dict[str, _Tensor]] = [{}]
    size = total = 0
    for name, tensor in _tensors(model, family).items():
        num_bytes = 4 * math.prod(tensor.shape)
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += num_bytes
        total += num_bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {name: _read(read, tensor, shapes) for name, tensor in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / "config.json").stat().st_mode)  # safetensors lets the owner alone read
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _read(read: ReadWeight, tensor: _Tensor, shapes: Mapping[str, torch.Size]) -> Tensor:
    parts = []
    for name, rows in tensor.sources:
        whole = read(name)
        if whole.shape != shapes[name]:
            found, named = list(whole.shape), list(shapes[name])
            raise UserError(f"the checkpoint's {name} is {found}, its configuration says {named}")
        parts.append(whole if rows is None else whole[rows])
    if not parts:
        return torch.zeros(tensor.shape)
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous().float()


def _write_configs(model: ModelConfig, family: Family, tokenizer: LoadedTokenizer, folder: Path) -> None:
    settings = {**common_settings(model), **family.settings(model)}
    ends = {"bos_token_id": tokenizer.eod, "eos_token_id": tokenizer.eod}
    config = AutoConfig.for_model(
        family.model_type, architectures=[family.architecture], dtype="float32", **settings, **ends
    )
    config.save_pretrained(folder)
    _add_keys(folder / "config.json", **family.transformers_4(model))
    undefined = list(range(tokenizer.vocab_size, padded_vocab(model)))
    generation = GenerationConfig(
        **ends,
        pad_token_id=_padding(tokenizer),
        suppress_tokens=undefined or None,  # the padding of the vocabulary stands for no text
    )
    generation.save_pretrained(folder)


def _write_tokenizer(tokenizer: LoadedTokenizer, model: ModelConfig, folder: Path) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer,
        bos_token=END_OF_DOCUMENT,
        eos_token=END_OF_DOCUMENT,
        pad_token=tokenizer.tokenizer.id_to_token(_padding(tokenizer)),
        model_max_length=model.seq_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    _add_keys(
        folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"
    )  # transformers 4's name for it


def _add_keys(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _padding(tokenizer: LoadedTokenizer) -> int:
    padding = tokenizer.tokenizer.token_to_id(PADDING)
    return tokenizer.eod if padding is None else int(padding)


def _is_replaceable(output: Path) -> bool:
    """Whether `output` is an empty folder or an earlier export."""
    if not output.is_dir():
        return False
    config = output / "config.json"
    if not config.is_file():
        return not any(output.iterdir())
    try:
        return bool(json.loads(config.read_text())["model_type"] in {family.model_type for family in FAMILIES})
    except (ValueError, KeyError, TypeError):
        return False


def _replace(temporary: Path, output: Path) -> None:
    if output.exists():
        old = temporary.with_suffix(".old")
        output.rename(old)
        temporary.rename(output)
        shutil.rmtree(old)
    else:
        temporary.rename(output)
    flush(output.parent)
