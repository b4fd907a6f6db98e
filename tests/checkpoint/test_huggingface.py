"""Exported models compute what ours compute, and `transformers` finds every tensor."""

from __future__ import annotations

import dataclasses
import itertools
import json
import resource
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from neox.__main__ import main
from neox.checkpoint import manifest as manifests
from neox.checkpoint.families import choose, exported_names
from neox.checkpoint.huggingface import export
from neox.checkpoint.mapping import ReadRows
from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.load import to_dict
from neox.config.schema import Config, ModelConfig
from neox.data.tokenizer import load_tokenizer, train_tokenizer
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.parallel.pieces import Piece

TINY = ModelConfig(
    num_layers=3, hidden_size=48, num_heads=3, seq_length=80, vocab_size=300, intermediate_size=112, vocab_multiple=64
)
SHARDED = {"attn.qkv.weight": 0, "attn.qkv.bias": 0, "attn.out.weight": 1}
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


def rows_of(model: GPT) -> ReadRows:
    parameters = dict(model.named_parameters())
    return lambda name, row, num_rows: parameters[name].detach()[row : row + num_rows].flatten()


def exported(cfg: ModelConfig, model: GPT, tokenizer: Path, output: Path, **options: int) -> GPTNeoXForCausalLM:
    export(cfg, rows_of(model), tokenizer, output, **options)
    loaded, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True, attn_implementation="eager")
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    assert type(loaded).__name__ == choose(cfg).architecture
    return loaded.eval()


def assert_same_logits(cfg: ModelConfig, ours: GPT, theirs: GPTNeoXForCausalLM) -> None:
    with torch.inference_mode():
        for length in (1, 2, 7, 33, cfg.seq_length):
            tokens = torch.randint(0, padded_vocab(cfg), (2, length), generator=torch.Generator().manual_seed(length))
            ours_logits = ours(tokens)
            assert 0.5 < ours_logits.std() < 10  # as of a trained model
            allowed = 1e-5 * max(1.0, float(ours_logits.abs().max()))
            torch.testing.assert_close(theirs(tokens).logits, ours_logits, rtol=0, atol=allowed)


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
    theirs = exported(cfg, model, tokenizer, tmp_path / "hf")
    assert_same_logits(cfg, model, theirs)
    assert theirs.config.tie_word_embeddings == tie == (theirs.lm_head.weight is theirs.gpt_neox.embed_in.weight)


@pytest.mark.parametrize(
    "change",
    [{"rotary_pct": 1.0}, {"rotary_pct": 0.5, "rotary_base": 500.0}, {"norm_eps": 1e-2}, {"intermediate_size": None}],
)
def test_logits_are_ours_for_other_shapes(tmp_path: Path, tokenizer: Path, change: dict) -> None:
    cfg = dataclasses.replace(TINY, **change)
    model = build(cfg)
    assert_same_logits(cfg, model, exported(cfg, model, tokenizer, tmp_path / "hf"))


LLAMA = dataclasses.replace(
    TINY,
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
    parallel_residual=False,
    rotary_pct=1.0,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
)
WINDOW = {"layer_pattern": ("window",), "sliding_window": 9}
FALCON = dataclasses.replace(TINY, rotary_pct=1.0, activation="gelu", bias=False, tie_embeddings=True)
OTHERS = {
    "LlamaForCausalLM": [
        LLAMA,
        dataclasses.replace(LLAMA, num_kv_heads=None, tie_embeddings=True, bias=True, rotary_base=500.0),
        dataclasses.replace(LLAMA, num_kv_heads=1, head_dim=24, attn_bias=True),
        dataclasses.replace(LLAMA, rotary_scaling="linear", rotary_factor=3.0),
        dataclasses.replace(LLAMA, rotary_scaling="yarn", rotary_factor=4.0, rotary_base=100.0),
        dataclasses.replace(LLAMA, rotary_scaling="llama3", rotary_factor=8.0, rotary_ramp=(1.5, 3.0)),
    ],
    "MistralForCausalLM": [dataclasses.replace(LLAMA, **WINDOW, head_dim=24, norm_eps=1e-3, rotary_base=500.0)],
    "Qwen3ForCausalLM": [dataclasses.replace(LLAMA, qk_norm=True, norm_eps=1e-3, rotary_base=500.0)],
    "FalconForCausalLM": [
        dataclasses.replace(FALCON, shared_norm=True, num_kv_heads=1, norm_eps=1e-2, rotary_base=500.0),
        dataclasses.replace(
            FALCON, num_heads=4, num_kv_heads=2, tie_embeddings=False, bias=True, norm_eps=1e-2, rotary_base=500.0
        ),
    ],
}


@pytest.mark.parametrize(
    ("architecture", "cfg"), [(architecture, cfg) for architecture, cfgs in OTHERS.items() for cfg in cfgs]
)
def test_logits_are_ours_in_other_families(
    tmp_path: Path, tokenizer: Path, architecture: str, cfg: ModelConfig
) -> None:
    model = build(cfg)
    theirs = exported(cfg, model, tokenizer, tmp_path / "hf", shard_bytes=60_000)
    assert type(theirs).__name__ == architecture
    assert_same_logits(cfg, model, theirs)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())  # what transformers 4 reads:
    scaling = raw["rope_scaling"] or {"rope_type": "none", "factor": 1.0}
    assert (raw["rope_theta"], scaling["rope_type"]) == (cfg.rotary_base, cfg.rotary_scaling)
    assert scaling["factor"] == cfg.rotary_factor


NO_FAMILY_HAS = (
    *[(cfg, {key: 30.0}) for cfg in (TINY, LLAMA) for key in ("attn_softcap", "logit_softcap")],
    *[(cfg, {"sandwich_norm": True}) for cfg in (TINY, LLAMA)],
    *[(TINY, change) for change in ({"norm_bias": False}, {"rotary_scaling": "linear"}, {"shared_norm": True})],
    *[(OTHERS[name][0], {"rotary_pct": 0.5}) for name in OTHERS],
    *[(OTHERS[name][0], {"bias": True}) for name in ("MistralForCausalLM", "Qwen3ForCausalLM")],
    *[
        (falcon, change)
        for falcon in OTHERS["FalconForCausalLM"]
        for change in ({"norm": "rmsnorm"}, {"norm_bias": False}, {"rotary_scaling": "linear"}, {"rotary_pct": 0.5})
    ],
    *[(falcon, {"parallel_residual": False}) for falcon in OTHERS["FalconForCausalLM"]],
    (OTHERS["FalconForCausalLM"][1], {"shared_norm": True}),
)


@pytest.mark.parametrize(("cfg", "change"), NO_FAMILY_HAS)
def test_what_no_family_has_is_never_exported_as_one(cfg: ModelConfig, change: dict) -> None:
    choose(cfg)
    with pytest.raises(UserError, match="has only"):
        choose(dataclasses.replace(cfg, **change))


def test_large_models_are_written_in_shards(tmp_path: Path, tokenizer: Path) -> None:
    model = build(TINY)
    theirs = exported(TINY, model, tokenizer, tmp_path / "hf", shard_bytes=100_000)
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [(tmp_path / "hf" / file).stat().st_size for file in files]
    assert max(sizes) < 110_000 and min(a + b for a, b in itertools.pairwise(sizes)) > 100_000
    assert_same_logits(TINY, model, theirs)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_checkpoints_convert_whatever_layout_wrote_them(tmp_path: Path, tokenizer: Path, num_shards: int) -> None:
    """Ranks of tensor parallelism hold the heads, in turn; each wrote its slice."""
    model = build(TINY)
    checkpoint = save_checkpoint(tmp_path / "checkpoints", TINY, model, num_shards)
    assert main(["convert", str(checkpoint), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "hf")]) == 0
    assert_same_logits(TINY, model, AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval())


def save_checkpoint(folder: Path, cfg: ModelConfig, model: GPT, num_shards: int = 1) -> Path:
    store = Store(folder)
    store.temporary(4).mkdir(parents=True)
    for rank in range(num_shards):
        pieces = []
        for name, parameter in model.named_parameters():
            dim = next((d for end, d in SHARDED.items() if name.endswith(end) and num_shards > 1), None)
            if dim is None and rank > 0:
                continue
            index, count = (rank, num_shards) if dim is not None else (0, 1)
            flat = parameter.detach().chunk(count, dim or 0)[index].flatten()
            pieces.append(Piece("weight", name, tuple(parameter.shape), dim, index, count, 0, flat.numel(), flat))
        write_rank(store.temporary(4), rank, pieces)
    commit(store, 4, {"config": to_dict(Config(cfg))})
    return store.path(4)


@pytest.mark.parametrize(
    ("checkpoint", "tokenizer_name", "message"),
    [
        ("absent", "tokenizer.json", "absent is not a checkpoint"),
        ("empty", "tokenizer.json", "empty is not a checkpoint"),
        ("good", "absent.json", "absent.json: No such file"),
        ("good", "notes.json", "notes.json: not a tokenizer.json"),
        ("stateless", "tokenizer.json", "holds no configuration"),
        ("cut", "tokenizer.json", "cut/rank_00000.safetensors is damaged"),
    ],
)
def test_convert_says_what_is_wrong(
    tmp_path: Path,
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    checkpoint: str,
    tokenizer_name: str,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    for name in ("good", "stateless", "cut"):
        save_checkpoint(tmp_path / "checkpoints", TINY, build(TINY)).rename(tmp_path / name)
    stateless = dataclasses.replace(manifests.read(tmp_path / "stateless"), state={})
    manifests.write(stateless, tmp_path / "stateless")
    with (tmp_path / "cut" / "rank_00000.safetensors").open("r+b") as file:
        file.truncate(1000)
    arguments = [str(tmp_path / checkpoint), "--tokenizer", str(tmp_path / tokenizer_name)]
    for command in (["convert", *arguments, "--output", str(tmp_path / "hf")], ["generate", *arguments]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("neox: error: ") and message in error
    assert not (tmp_path / "hf").exists()


def test_weights_are_the_same_bits(tmp_path: Path, tokenizer: Path) -> None:
    model = build(TINY)
    theirs = exported(TINY, model, tokenizer, tmp_path / "hf").state_dict()
    for name, parameter in model.named_parameters():
        # transformers renames the published embed_out when it loads
        (exported_name,) = exported_names(choose(TINY), name)
        assert torch.equal(theirs[exported_name.replace("embed_out", "lm_head")], parameter), name


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
    assert (raw["rotary_pct"], raw["rotary_emb_base"]) == (0.25, 10000.0)  # what transformers 4 reads
    assert len({path.stat().st_mode for path in (tmp_path / "hf").iterdir()}) == 1  # whoever reads one file reads all


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"norm": "rmsnorm"}, "model.norm"),
        ({"activation": "swiglu"}, "model.activation"),
        ({"positions": "alibi"}, "model.positions = alibi: GPTNeoXForCausalLM has only rotary"),
        ({"qk_norm": True}, "model.qk_norm"),
        ({"logit_softcap": 30.0}, "model.logit_softcap"),
        ({"vocab_size": 270}, "270"),
    ],
)
def test_refuses_what_it_cannot_express(tmp_path: Path, tokenizer: Path, change: dict, key: str) -> None:
    cfg = dataclasses.replace(TINY, **change)
    with pytest.raises(UserError, match=key) as error:
        export(cfg, rows_of(build(cfg)), tokenizer, tmp_path / "hf")
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
        export(wider, rows_of(model), tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_failure_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    read = rows_of(build(TINY))

    def broken(name: str, row: int, num_rows: int) -> torch.Tensor:
        if name == "final_norm.weight":
            raise OSError("disk gone")
        return read(name, row, num_rows)

    exported(TINY, build(TINY), tokenizer, tmp_path / "hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    with pytest.raises(OSError, match="disk gone"):
        export(TINY, broken, tokenizer, tmp_path / "hf", shard_bytes=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before


@pytest.mark.parametrize("limit", [1 << 10, 1 << 16], ids=["tokenizer", "weights"])
def test_full_storage_is_one_line_and_leaves_nothing(tmp_path: Path, tokenizer: Path, limit: int) -> None:
    """A file that may not grow fails in the same place, with the same kind of error, as one on a full disk."""
    read = rows_of(build(TINY))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match="hf: File too large, nothing was written"):
            export(TINY, read, tokenizer, tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
