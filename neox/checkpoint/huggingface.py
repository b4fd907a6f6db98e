"""Export: one of our checkpoints becomes a folder that `transformers` loads as GPTNeoXForCausalLM."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, GPTNeoXConfig, PreTrainedTokenizerFast

from neox.checkpoint.config import saved_config
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.store import flush
from neox.config.derive import ffn_size, padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.data.durable import storage_failure
from neox.data.tokenizer import END_OF_DOCUMENT, PADDING, LoadedTokenizer, load_tokenizer
from neox.model.gpt import GPT

MODULES = {
    "embed": "gpt_neox.embed_in",
    "layers.{i}.attn_norm": "gpt_neox.layers.{i}.input_layernorm",
    "layers.{i}.attn.qkv": "gpt_neox.layers.{i}.attention.query_key_value",
    "layers.{i}.attn.out": "gpt_neox.layers.{i}.attention.dense",
    "layers.{i}.mlp_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "layers.{i}.mlp.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}
"""Our module → GPTNeoXForCausalLM's, as the published Pythia files name it. Both order the rows of the fused QKV as
[head][q, k, v][head_dim] (transformers/models/gpt_neox/modeling_gpt_neox.py), so no tensor is rearranged."""

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""model.activation → hidden_act; what is missing here GPTNeoX cannot express."""

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
        UserError: GPTNeoX has no such model, the tokenizer does not fit, `output` is something else's, or the disk
            is full.
    """
    check_expressible(model)
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
        _write_configs(model, loaded, temporary)
        _write_weights(model, read, temporary, shard_bytes)
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        _replace(temporary, output)
    except Exception as error:  # tokenizers raises no narrower class
        if reason := storage_failure(error):
            raise UserError(f"{output}: {reason}, nothing was written") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_expressible(model: ModelConfig) -> None:
    """UserError that names the key when GPTNeoXForCausalLM cannot compute this model."""
    allowed: dict[str, tuple[Any, ...]] = {
        "norm": ("layernorm",),
        "norm_bias": (True,),
        "activation": tuple(ACTIVATIONS),
        "positions": ("rotary",),
        "rotary_scaling": ("none",),
        "num_kv_heads": (None, model.num_heads),
        "head_dim": (None, model.hidden_size / model.num_heads),
        "layer_pattern": (("global",) * len(model.layer_pattern),),
        "attn_softcap": (None,),
        "logit_softcap": (None,),
        "qk_norm": (False,),
        "sandwich_norm": (False,),
        "shared_norm": (False,),
        "attn_bias": (None, model.bias),
    }
    for key, values in allowed.items():
        if getattr(model, key) not in values:
            raise UserError(
                f"model.{key} = {getattr(model, key)}: GPTNeoXForCausalLM has only {', '.join(map(str, values))}"
            )


def gpt_neox_config(model: ModelConfig, eod: int) -> GPTNeoXConfig:
    """The configuration of transformers that computes what `model` computes; `eod` begins and ends documents."""
    return GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        dtype="float32",
        vocab_size=padded_vocab(model),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=ffn_size(model),
        hidden_act=ACTIVATIONS[model.activation],
        max_position_embeddings=model.seq_length,
        layer_norm_eps=model.norm_eps,
        initializer_range=model.init_std,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": model.rotary_base,
            "partial_rotary_factor": model.rotary_pct,
        },
        use_parallel_residual=model.parallel_residual,
        tie_word_embeddings=model.tie_embeddings,
        attention_bias=model.bias,
        bos_token_id=eod,
        eos_token_id=eod,
    )


def exported_name(name: str) -> str:
    """GPTNeoXForCausalLM's name of our logical tensor `name`."""
    module, _, part = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    if layer is None:
        return f"{MODULES[module]}.{part}"
    pattern = module.replace(layer[0], ".{i}.", 1)
    return f"{MODULES[pattern].format(i=layer[1])}.{part}"


def _tensors(model: ModelConfig) -> Iterator[tuple[str, str | None, torch.Size]]:
    """(exported name, our name or None for zeros, shape) of every tensor of the exported model."""
    with torch.device("meta"):
        parameters = dict(GPT(model, padded_vocab(model)).named_parameters())
    for name, parameter in parameters.items():
        yield exported_name(name), name, parameter.shape
        # GPTNeoX's attention_bias leaves out the attention's biases only; its MLP always has them.
        if ".mlp." in name and not model.bias:
            bias = exported_name(name.removesuffix("weight") + "bias")
            yield bias, None, parameter.shape[:1]


def _write_weights(model: ModelConfig, read: ReadWeight, folder: Path, shard_bytes: int) -> None:
    """One shard at a time: tensors are read only when their file is written."""
    shards: list[list[tuple[str, str | None, torch.Size]]] = [[]]
    size = total = 0
    for tensor in _tensors(model):
        num_bytes = 4 * tensor[2].numel()
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += num_bytes
        total += num_bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {name: _read(read, ours, shape) for name, ours, shape in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / "config.json").stat().st_mode)  # safetensors lets the owner alone read
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _read(read: ReadWeight, name: str | None, shape: torch.Size) -> Tensor:
    if name is None:
        return torch.zeros(shape)
    tensor = read(name)
    if tensor.shape != shape:
        raise UserError(f"the checkpoint's {name} is {list(tensor.shape)}, its configuration says {list(shape)}")
    return tensor.contiguous().float()


def _write_configs(model: ModelConfig, tokenizer: LoadedTokenizer, folder: Path) -> None:
    gpt_neox_config(model, tokenizer.eod).save_pretrained(folder)
    # What transformers 4 and the tools made for it read instead of rope_parameters.
    _add_keys(folder / "config.json", rotary_pct=model.rotary_pct, rotary_emb_base=model.rotary_base)
    undefined = list(range(tokenizer.vocab_size, padded_vocab(model)))
    generation = GenerationConfig(
        bos_token_id=tokenizer.eod,
        eos_token_id=tokenizer.eod,
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


def _add_keys(path: Path, **values: str | float) -> None:
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
        return bool(json.loads(config.read_text())["model_type"] == GPTNeoXConfig.model_type)
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
