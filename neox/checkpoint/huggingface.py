"""Folders of `transformers`: export as the family that computes the same, and the configuration of what is there."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from neox.checkpoint.config import saved_config
from neox.checkpoint.families import FAMILIES, Family, choose
from neox.checkpoint.mapping import ReadRows, RowMap
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.special_tokens import SpecialTokens, special_tokens
from neox.checkpoint.store import flush
from neox.checkpoint.tensor_file import DTYPES, Entry, split, write
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.data.durable import storage_failure
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer

SHARD_BYTES = 5 * 10**9
"""Size that a safetensors file does not exceed, unless one tensor does."""

INDEX = "model.safetensors.index.json"
"""Which tensor is in which file, where there are several."""


def convert(
    checkpoint: Path,
    tokenizer: Path,
    output: Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Exports the checkpoint folder `checkpoint`, whatever layout wrote it; see `export`.

    Raises:
        UserError: also when `checkpoint` is none or is damaged.
    """
    reader = TensorReader(checkpoint)
    saved = saved_config(reader.manifest)
    loaded = load_tokenizer(tokenizer, saved.data.end_of_document)
    special = special_tokens(reader.manifest.state, tokenizer, loaded)
    export(saved.model, reader.read_rows, tokenizer, output, shard_bytes, dtype, special)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, with the defaults of its family, and in the words of this version's transformers.

    Raises:
        UserError: there is none, or transformers does not know it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model of transformers there (config.json is missing)")
    try:
        return dict(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict())
    except Exception as error:  # whatever its classes, one for each family, raise where a value is none of theirs
        reason = " ".join(str(error).strip().splitlines()[:2])
        raise UserError(f"{folder / 'config.json'}: {reason}") from None


def export(
    model: ModelConfig,
    read: ReadRows,
    tokenizer: Path,
    output: Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype = torch.float32,
    special: SpecialTokens | None = None,
) -> None:
    """Writes config, generation config, weights and tokenizer to the folder `output`, whole or not at all.

    An earlier export at `output` is replaced. Weights pass through memory a block of rows at a time.
    Without `special` tokens, the end of a document begins and ends texts.

    Raises:
        UserError: no family of transformers has such a model, the tokenizer does not fit, `output` is something
            else's, or the disk is full.
    """
    family = choose(model)
    loaded = load_tokenizer(tokenizer, special.end if special else None)
    _check_fit(model, tokenizer, loaded, output)
    special = special or special_tokens({"config": {}}, tokenizer, loaded)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        _write_tokenizer(loaded, special, model, temporary)
        _write_configs(model, family, loaded, special, temporary, dtype)
        _write_weights(model, family, read, temporary, shard_bytes, dtype)
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        _replace(temporary, output)
    except Exception as error:  # tokenizers raises no narrower class
        if reason := storage_failure(error):
            raise UserError(f"{output}: {reason}, nothing was written") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_fit(model: ModelConfig, tokenizer: Path, loaded: LoadedTokenizer, output: Path) -> None:
    assert model.vocab_size is not None
    if loaded.vocab_size > model.vocab_size:
        raise UserError(f"{tokenizer}: has {loaded.vocab_size} ids, the model was trained with {model.vocab_size}")
    if output.exists() and not _is_replaceable(output):
        raise UserError(f"--output {output}: exists and is not an exported model; name another folder")


def _write_weights(
    model: ModelConfig, family: Family, read: ReadRows, folder: Path, shard_bytes: int, dtype: torch.dtype
) -> None:
    """File after file, a block of rows at a time."""
    name = next(name for name, known in DTYPES.items() if known == dtype)
    rows = RowMap(model, family)
    entries = [Entry(theirs, name, shape) for theirs, shape in rows.theirs.items()]
    shards = split(entries, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        blocks = (block.to(dtype) for entry in shard for block in rows.exported(entry.name, read))
        write(folder / file, shard, blocks, {"format": "pt"})
        weight_map |= dict.fromkeys((entry.name for entry in shard), file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(entry.num_bytes for entry in entries)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _write_configs(
    model: ModelConfig,
    family: Family,
    tokenizer: LoadedTokenizer,
    special: SpecialTokens,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    begin, end, padding = map(tokenizer.tokenizer.token_to_id, (special.begin, special.end, special.padding))
    ends = {"bos_token_id": begin, "eos_token_id": end}
    config = AutoConfig.for_model(
        family.model_type, architectures=[family.architecture], dtype=dtype, **family.write(model), **ends
    )
    config.save_pretrained(folder)
    _add_keys(folder / "config.json", **family.transformers_4(model))
    undefined = list(range(tokenizer.vocab_size, padded_vocab(model)))
    generation = GenerationConfig(
        **ends,
        pad_token_id=padding,
        suppress_tokens=undefined or None,  # the padding of the vocabulary stands for no text
    )
    generation.save_pretrained(folder)


def _write_tokenizer(tokenizer: LoadedTokenizer, special: SpecialTokens, model: ModelConfig, folder: Path) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer,
        bos_token=special.begin,
        eos_token=special.end,
        pad_token=special.padding,
        chat_template=special.chat_template,
        model_max_length=model.seq_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    # transformers 4's name for it
    _add_keys(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _add_keys(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
