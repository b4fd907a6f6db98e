"""Exported models compute what ours compute, and `transformers` finds every tensor."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from neox.checkpoint.huggingface import export, exported_name
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.data.tokenizer import load_tokenizer, train_tokenizer
from neox.model.gpt import GPT
from neox.model.init import init_weights

TINY = ModelConfig(
    num_layers=3, hidden_size=48, num_heads=3, seq_length=80, vocab_size=300, intermediate_size=112, vocab_multiple=64
)
TEXT = "Das Übermaß, 𝔪𝔲𝔠𝔥 of a good thing:\n\n\tdef f(x):  return x ** 2  # naïve\n"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([TEXT] * 3 + ["of course the other things return"], 300, path)
    return path


def build(cfg: ModelConfig) -> GPT:
    """A model whose biases and norms are not at their initial zeros and ones."""
    torch.manual_seed(1)
    model = GPT(cfg, padded_vocab(cfg)).eval()
    init_weights(model, cfg, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * 0.3
            else:
                parameter *= 2
    return model


def exported(cfg: ModelConfig, model: GPT, tokenizer: Path, output: Path, **options: int) -> GPTNeoXForCausalLM:
    export(cfg, dict(model.named_parameters()).__getitem__, tokenizer, output, **options)
    loaded, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True, attn_implementation="eager")
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    assert isinstance(loaded, GPTNeoXForCausalLM)
    return loaded.eval()


def assert_same_logits(cfg: ModelConfig, ours: GPT, theirs: GPTNeoXForCausalLM) -> None:
    with torch.inference_mode():
        for length in (1, 2, 7, 33, cfg.seq_length):
            tokens = torch.randint(0, padded_vocab(cfg), (2, length), generator=torch.Generator().manual_seed(length))
            ours_logits = ours(tokens)
            assert 0.5 < ours_logits.std() < 10  # as of a trained model
            torch.testing.assert_close(theirs(tokens).logits, ours_logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("parallel_residual", "tie", "bias", "activation"),
    list(itertools.product([True, False], [True, False], [True, False], ["gelu", "gelu_tanh"])),
)
def test_logits_are_ours(
    tmp_path: Path, tokenizer: Path, parallel_residual: bool, tie: bool, bias: bool, activation: str
) -> None:
    cfg = dataclasses.replace(
        TINY, parallel_residual=parallel_residual, tie_embeddings=tie, bias=bias, activation=activation
    )
    model = build(cfg)
    assert_same_logits(cfg, model, exported(cfg, model, tokenizer, tmp_path / "hf"))


@pytest.mark.parametrize(
    "change",
    [{"rotary_pct": 1.0}, {"rotary_pct": 0.5, "rotary_base": 500.0}, {"norm_eps": 1e-2}, {"intermediate_size": None}],
)
def test_logits_are_ours_for_other_shapes(tmp_path: Path, tokenizer: Path, change: dict) -> None:
    cfg = dataclasses.replace(TINY, **change)
    model = build(cfg)
    assert_same_logits(cfg, model, exported(cfg, model, tokenizer, tmp_path / "hf"))


def test_large_models_are_written_in_shards(tmp_path: Path, tokenizer: Path) -> None:
    model = build(TINY)
    theirs = exported(TINY, model, tokenizer, tmp_path / "hf", shard_bytes=100_000)
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "hf" / file).stat().st_size < 110_000 for file in files)
    assert_same_logits(TINY, model, theirs)


def test_weights_are_the_same_bits(tmp_path: Path, tokenizer: Path) -> None:
    model = build(TINY)
    theirs = exported(TINY, model, tokenizer, tmp_path / "hf").state_dict()
    for name, parameter in model.named_parameters():
        # transformers renames the published embed_out when it loads
        assert torch.equal(theirs[exported_name(name).replace("embed_out", "lm_head")], parameter), name


def test_tokenizer_is_ours(tmp_path: Path, tokenizer: Path) -> None:
    exported(TINY, build(TINY), tokenizer, tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "hf"), load_tokenizer(tokenizer)
    for text in (TEXT, " leading", "trailing ", "a<|endoftext|>b", ""):
        tokens = theirs(text)["input_ids"]
        assert tokens == ours.tokenizer.encode(text).ids
        assert theirs.decode(tokens) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert theirs.model_max_length == TINY.seq_length


def test_config_declares_the_model(tmp_path: Path, tokenizer: Path) -> None:
    model = exported(TINY, build(TINY), tokenizer, tmp_path / "hf")
    assert model.config.vocab_size == 320 and model.config.max_position_embeddings == 80
    assert model.generation_config.eos_token_id == 0
    assert model.generation_config.suppress_tokens == list(range(load_tokenizer(tokenizer).vocab_size, 320))
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert raw["architectures"] == ["GPTNeoXForCausalLM"] and raw["model_type"] == "gpt_neox"


@pytest.mark.parametrize(
    ("change", "key"),
    [({"norm": "rmsnorm"}, "model.norm"), ({"activation": "swiglu"}, "model.activation"), ({"vocab_size": 270}, "270")],
)
def test_refuses_what_it_cannot_express(tmp_path: Path, tokenizer: Path, change: dict, key: str) -> None:
    cfg = dataclasses.replace(TINY, **change)
    with pytest.raises(UserError, match=key) as error:
        export(cfg, dict(build(cfg).named_parameters()).__getitem__, tokenizer, tmp_path / "hf")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_replaces_an_export_and_nothing_else(tmp_path: Path, tokenizer: Path) -> None:
    output = tmp_path / "hf"
    exported(TINY, build(TINY), tokenizer, output, shard_bytes=100_000)
    wider = dataclasses.replace(TINY, hidden_size=96)
    model = build(wider)
    assert_same_logits(wider, model, exported(wider, model, tokenizer, output))
    assert [path.name for path in output.glob("*.safetensors")] == ["model.safetensors"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mine"):
        export(wider, dict(model.named_parameters()).__getitem__, tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_failure_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    read = dict(build(TINY).named_parameters())

    def broken(name: str) -> torch.Tensor:
        if name == "final_norm.weight":
            raise OSError("disk gone")
        return read[name]

    exported(TINY, build(TINY), tokenizer, tmp_path / "hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    with pytest.raises(OSError, match="disk gone"):
        export(TINY, broken, tokenizer, tmp_path / "hf", shard_bytes=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before
