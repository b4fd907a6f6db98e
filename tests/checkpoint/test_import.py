"""Models that transformers made are imported, computed, exported and trained from: their logits and bits stay."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from neox.__main__ import main
from neox.checkpoint import mapping
from neox.checkpoint.families import identify
from neox.checkpoint.reshard import load_model_weights
from neox.config.derive import padded_vocab, resolve
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import ModelConfig
from neox.data.parts import plan_part
from neox.data.tokenizer import train_tokenizer
from neox.model.gpt import GPT
from tests.train.launch import run, steps_of, write_tokens

SIZES = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
ROPE = {"rope_theta": 500.0}
LLAMA3 = {"low_freq_factor": 1.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 32}
LONG = {"max_position_embeddings": 128}
MODELS: dict[str, PretrainedConfig] = {
    "neox": GPTNeoXConfig(**SIZES, intermediate_size=96, max_position_embeddings=96, hidden_act="gelu"),
    "neox-unbiased": GPTNeoXConfig(
        **SIZES, intermediate_size=256, attention_bias=False, use_parallel_residual=False, tie_word_embeddings=True
    ),
    "llama-gqa-tied": LlamaConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-mqa-biased": LlamaConfig(
        **SIZES, intermediate_size=96, num_key_value_heads=1, head_dim=24, attention_bias=True, mlp_bias=True
    ),
    "llama-linear": LlamaConfig(
        **SIZES, **LONG, intermediate_size=96, rope_parameters={**ROPE, "rope_type": "linear", "factor": 4.0}
    ),
    "llama-yarn": LlamaConfig(
        **SIZES,
        **LONG,
        intermediate_size=96,
        rope_parameters={**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "llama3": LlamaConfig(
        **SIZES,
        **LONG,
        intermediate_size=96,
        rope_parameters={**ROPE, "rope_type": "llama3", "factor": 8.0, **LLAMA3},
    ),
    "mistral": MistralConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, sliding_window=9),
    "mistral-global": MistralConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, sliding_window=None),
    "qwen3": Qwen3Config(**SIZES, intermediate_size=96, num_key_value_heads=2, head_dim=24, attention_bias=True),
    "falcon-7b": FalconConfig(**SIZES, ffn_hidden_size=96, multi_query=True, bias=False),
    "falcon-40b": FalconConfig(
        **SIZES, ffn_hidden_size=96, new_decoder_architecture=True, num_kv_heads=2, bias=True, tie_word_embeddings=False
    ),
}


def make(name: str, folder: Path, **options: Any) -> Any:
    """A model whose biases and norms are not at their initial zeros and ones, saved in files of 60 kB."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05)
    model.save_pretrained(folder, **{"max_shard_size": "60KB", **options})
    return model


def imported(folder: Path) -> tuple[ModelConfig, GPT]:
    cfg = load_config([folder / "config.yaml"], []).model
    model = GPT(cfg, padded_vocab(cfg)).eval()
    load_model_weights(model, folder / "checkpoints" / "step_00000000")
    return cfg, model


def assert_same_logits(ours: GPT, theirs: Any) -> None:
    tokens = torch.randint(0, 320, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["a river runs through the meadow"] * 3, 300, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rows come and go one small block at a time; the export holds the very bits that were imported."""
    monkeypatch.setattr(mapping, "BLOCK_BYTES", 1500)
    theirs = make(name, tmp_path / "hf")
    shutil.copy(tokenizer, tmp_path / "hf")
    assert main(["convert", str(tmp_path / "hf"), "--output", str(tmp_path / "ours")]) == 0
    cfg, ours = imported(tmp_path / "ours")
    assert padded_vocab(cfg) == 320 and 256 < (cfg.vocab_size or 0) < 300, "the rest is padding"
    assert_same_logits(ours, theirs)
    step = str(tmp_path / "ours" / "checkpoints" / "step_00000000")
    kept = str(tmp_path / "ours" / "tokenizer.json")
    again = ["convert", step, "--tokenizer", kept, "--output", str(tmp_path / "back"), "--max-shard-size", "60KB"]
    assert main(again) == 0
    back, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert {key: list(names) for key, names in info.items() if names} == {}
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    assert main([*again[:-3], str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_pytorch_files_are_read_without_their_pickle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = make("llama-gqa-tied", tmp_path / "hf", max_shard_size="5GB")
    (tmp_path / "hf" / "model.safetensors").unlink()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    assert main(["convert", "hf", "--output", "ours"]) == 0
    assert_same_logits(imported(tmp_path / "ours")[1], theirs)

    norm = state["model.norm.weight"]
    torch.save({**state, "model.norm.weight": norm.to_sparse(), 5: norm}, tmp_path / "hf" / "pytorch_model.bin")
    assert main(["convert", "hf", "--output", "again"]) == 2
    assert "has no tensor model.norm.weight" in capsys.readouterr().err

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({**state, "model.norm.weight": Harmful()}, tmp_path / "hf" / "pytorch_model.bin")
    capsys.readouterr()
    assert main(["convert", "hf", "--output", "again"]) == 2
    assert "pytorch_model.bin: it asks for posix.mkdir, which is not loaded" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1})[:-3])
    assert main(["convert", "hf", "--output", "again"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gpt2"},
            "config.json: model_type = gpt2: can be read here: falcon, gpt_neox, llama, mistral, qwen3",
        ),
        ({"hidden_act": "relu"}, "hidden_act = relu: of LlamaForCausalLM only silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type = dynamic"),
        ({"num_key_value_heads": 4}, "k_proj.weight has shape [32, 64], config.json asks for [64, 64]"),
        ({"num_hidden_layers": 2}, "has the tensor model.layers.2."),
        ({"num_hidden_layers": 4}, "has no tensor model.layers.3."),
        ({"tie_word_embeddings": False}, "has no tensor lm_head.weight"),
        ({"hidden_size": "64"}, "'hidden_size': TypeError: Field 'hidden_size'"),
        ({"num_attention_heads": 0}, "config.json: "),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}},
            "config.json: model.rotary_base = '1e4': expected float",
        ),
    ],
)
def test_what_is_not_computed_here_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    make("llama-gqa-tied", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "hf"), "--output", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mistral", "hidden_act", "relu"),
        ("qwen3", "hidden_act", "relu"),
        ("qwen3", "layer_types", ["sliding_attention"] * 3),
        ("falcon-7b", "alibi", True),
        ("falcon-7b", "parallel_attn", False),
        ("falcon-40b", "parallel_attn", False),
    ],
)
def test_what_a_family_has_but_we_do_not_compute_is_refused(name: str, key: str, value: Any) -> None:
    config = MODELS[name].to_dict()
    identify(config).read(config)
    with pytest.raises(UserError, match=rf"{key} = {re.escape(str(value))}: of .* only .* can be read here"):
        identify(config).read(config | {key: value})


def test_unknown_activations_name_the_known() -> None:
    config = MODELS["neox"].to_dict() | {"hidden_act": "mish"}
    with pytest.raises(UserError, match="hidden_act = mish: can be read here: gelu, gelu_pytorch_tanh, relu, silu"):
        identify(config).read(config)


def test_heads_of_tied_models_are_their_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Old files repeat the embedding under the head's name; another tensor would be left out."""
    theirs = make("llama-gqa-tied", tmp_path / "hf", max_shard_size="5GB")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, path)
    assert main(["convert", str(tmp_path / "hf"), "--output", str(tmp_path / "ours")]) == 0
    assert_same_logits(imported(tmp_path / "ours")[1], theirs)
    for other in (embedding + 1, embedding[:-1].clone()):
        save_file({**tensors, "lm_head.weight": other}, path)
        assert main(["convert", str(tmp_path / "hf"), "--output", str(tmp_path / "other")]) == 2
        assert "lm_head.weight is not the embedding" in capsys.readouterr().err


def test_damaged_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("neox", tmp_path / "hf", max_shard_size="5GB")
    path = tmp_path / "hf" / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:4], whole[:100], b"", (1 << 60).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(damaged)
        assert main(["convert", str(tmp_path / "hf"), "--output", str(tmp_path / "ours")]) == 2
        assert "model.safetensors is damaged" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_training_starts_from_imported_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first loss is the imported model's, and weights that are no start are refused before anything is written."""
    theirs = make("llama-gqa-tied", tmp_path / "hf")
    assert main(["convert", str(tmp_path / "hf"), "--output", str(tmp_path / "start")]) == 0
    rest = {
        "data": {"path": str(write_tokens(tmp_path / "tokens")), "split": [100, 0, 0]},
        "optim": {"lr": 1e-3},
        "model": {"seq_length": 16},
        "train": {"steps": 1, "global_batch_size": 4, "valid_interval": 0},
    }
    (tmp_path / "rest.yaml").write_text(yaml.safe_dump(rest))
    files = (tmp_path / "start" / "config.yaml", tmp_path / "rest.yaml")
    output = run(tmp_path / "run", *files)
    assert "starting from the weights of" in output and "model.seq_length = 16, and 2048" in output
    config = resolve(load_config(files, []), 1)
    samples = plan_part(config, "train").open()
    tokens = torch.stack([torch.from_numpy(samples[item][0]) for item in range(4)]).long()
    with torch.inference_mode():
        logits = theirs(tokens[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert steps_of(tmp_path / "run")[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    for override, message in (
        ("model.norm_eps=0.1", "model.norm_eps = 0.1: the weights of checkpoint.init_from have 1e-06"),
        ("model.vocab_size=400", "320 rows of the vocabulary, padding included, this model 448"),
        (f"checkpoint.init_from={tmp_path}", "checkpoint.init_from: "),
    ):
        assert main(["train", "--run-dir", str(tmp_path / "other"), *map(str, files), override]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
