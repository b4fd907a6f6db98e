"""Checkpoints in GPT-NeoX's and Meta's layouts are merged by their own rules; transformers and plain torch agree."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from neox.__main__ import main
from tests.checkpoint.test_import import assert_same_logits, imported, make

NEW = {"mlp.dense_h_to_4h": "mlp.linear1", "mlp.dense_4h_to_h": "mlp.linear2"}
COLUMN = ("query_key_value", "dense_h_to_4h")
CONFIG: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 96,
    "max_position_embeddings": 96,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "use_wandb": True,  # refused for training, and nothing to an import
}
NEOX = CONFIG | {"rotary_pct": 0.25, "gpt_j_residual": True, "intermediate_size": 96}
GROUPED = CONFIG | {
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-6,
    "activation": "swiglu",
    "intermediate_size": 288,
    "use_bias_in_mlp": False,
    "use_bias_in_attn_linear": False,
    "no_weight_tying": False,
}


def shard(name: str, whole: Tensor, rank: int, tp: int, is_parallel: bool) -> Tensor:
    """GPT-NeoX's layers: column-parallel, row-parallel, biases that are summed over ranks, norms on each rank."""
    module, kind = name.rsplit(".", 2)[-2:]
    if module in COLUMN or module in ("word_embeddings", "final_linear"):
        return whole.chunk(tp)[rank].clone()
    if module in ("dense", "dense_4h_to_h") and kind == "weight":
        return whole.chunk(tp, 1)[rank].clone()
    if module in ("dense", "dense_4h_to_h") and is_parallel:
        return whole * (0.25, 0.75)[rank] if tp == 2 else whole
    return whole + (0.5 if rank else -0.5) * (tp == 2) * ("norm" in name)  # their mean is what counts


def neox_layers(theirs: Any, tp: int, is_parallel: bool) -> list[dict[int, dict[str, Tensor]]]:
    """The tensors of a GPTNeoX of transformers, by rank and by GPT-NeoX's number of the layer."""
    last = theirs.config.num_hidden_layers + 3
    ranks: list[dict[int, dict[str, Tensor]]] = [{} for _ in range(tp)]
    for name, whole in theirs.state_dict().items():
        if name == "gpt_neox.embed_in.weight":
            layer, part = 0, "word_embeddings.weight"
        elif name == "lm_head.weight":
            layer, part = last + 1, "final_linear.weight"
        elif "final_layer_norm" in name:
            layer, part = last, name.replace("gpt_neox.final_layer_norm", "norm")
        else:
            _, _, number, part = name.split(".", 3)
            layer = int(number) + 2
        for rank in range(tp):
            ranks[rank].setdefault(layer, {})[part] = shard(part, whole, rank, tp, is_parallel)
    return ranks


def write_neox(
    folder: Path, ranks: list[dict[int, dict[str, Tensor]]], config: dict[str, Any], is_layered: bool, is_new: bool
) -> None:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "model.yml").write_text(yaml.safe_dump({**config, "model_parallel_size": len(ranks)}))
    names = NEW if is_new else {}
    rest = {"np_rng_state": np.random.get_state(), "random_rng_state": random.getstate(), "iteration": 7}
    for rank, layers in enumerate(ranks):
        renamed = {
            layer: {
                f"{names.get(k.rpartition('.')[0], k.rpartition('.')[0])}.{k.rpartition('.')[2]}": v
                for k, v in t.items()
            }
            for layer, t in layers.items()
        }
        for layer, tensors in renamed.items() if is_layered else ():
            torch.save(tensors, folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt")
        whole = {f"sequential.{layer}.{k}": v for layer, t in renamed.items() for k, v in t.items()}
        torch.save({"module": None if is_layered else whole, **rest}, folder / f"mp_rank_{rank:02d}_model_states.pt")


@pytest.mark.parametrize(("is_layered", "is_new", "tp"), [(True, False, 2), (True, True, 1), (False, True, 2)])
@pytest.mark.parametrize("is_parallel", [True, False])
def test_gpt_neox(tmp_path: Path, is_layered: bool, is_new: bool, tp: int, is_parallel: bool) -> None:
    theirs = make("neox", tmp_path / "hf")
    theirs.config.use_parallel_residual = is_parallel
    for layer in theirs.gpt_neox.layers:
        layer.use_parallel_residual = is_parallel
    ranks = neox_layers(theirs, tp, is_parallel)
    write_neox(tmp_path / "global_step7", ranks, {**NEOX, "gpt_j_residual": is_parallel}, is_layered, is_new)
    assert main(["convert", str(tmp_path / "global_step7"), "--output", str(tmp_path / "ours")]) == 0
    cfg, ours = imported(tmp_path / "ours")
    assert (cfg.activation, cfg.parallel_residual) == ("gelu", is_parallel)
    assert_same_logits(ours, theirs)


def test_gpt_neox_grouped_queries_and_gates(tmp_path: Path) -> None:
    """[queries, keys, values] and [up, gate] on each of two ranks, RMSNorm's scale, tied embeddings."""
    theirs = make("llama-gqa-tied", tmp_path / "hf")
    ranks: list[dict[int, dict[str, Tensor]]] = [{}, {}]
    for rank in range(2):
        half = {k: v.chunk(2)[rank] for k, v in theirs.state_dict().items() if v.dim() == 2}
        for i, layer in enumerate(theirs.model.layers):
            name = f"model.layers.{i}."
            qkv = torch.cat([half[f"{name}self_attn.{part}_proj.weight"] for part in "qkv"])
            ranks[rank][i + 2] = {
                "input_layernorm.scale": layer.input_layernorm.weight.detach(),
                "post_attention_layernorm.scale": layer.post_attention_layernorm.weight.detach(),
                "attention.query_key_value.weight": qkv,
                "attention.dense.weight": layer.self_attn.o_proj.weight.detach().chunk(2, 1)[rank].clone(),
                "mlp.linear1.weight": torch.cat([half[f"{name}mlp.{part}_proj.weight"] for part in ("up", "gate")]),
                "mlp.linear2.weight": layer.mlp.down_proj.weight.detach().chunk(2, 1)[rank].clone(),
            }
        ranks[rank][0] = {"word_embeddings.weight": half["model.embed_tokens.weight"].clone()}
        ranks[rank][6] = {"norm.scale": theirs.model.norm.weight.detach()}
    write_neox(tmp_path / "global_step7", ranks, GROUPED, is_layered=True, is_new=True)
    assert main(["convert", str(tmp_path / "global_step7"), "--output", str(tmp_path / "ours")]) == 0
    assert_same_logits(imported(tmp_path / "ours")[1], theirs)


def test_gpt_neox_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "global_step7"
    write_neox(folder, neox_layers(make("neox", tmp_path / "hf"), 2, True), NEOX, is_layered=True, is_new=True)
    file = folder / "layer_03-model_01-model_states.pt"
    whole = file.read_bytes()
    config = (folder / "configs" / "model.yml").read_text()
    for content, text, message in (
        (whole[:900], config, "layer_03-model_01-model_states.pt is damaged"),
        (None, config, "layer_03-model_01-model_states.pt: No such file"),
        (whole, config.replace("hidden_size: 64", "hidden_size: 32"), "has shape"),
        (whole, config.replace("pos_emb: rotary", "pos_emb: t5"), "pos_emb"),
        (whole, config + "attention_config: [[[mamba], all]]\n", "'mamba' layers are not in this trainer"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        (folder / "configs" / "model.yml").write_text(text)
        capsys.readouterr()
        assert main(["convert", str(folder), "--output", str(tmp_path / "ours")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "ours").exists()


def meta_logits(tokens: Tensor, weights: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    """Meta's equations, with complex rotations of neighbouring dimensions (its model.py)."""
    heads, kv_heads, width = params["n_heads"], params["n_kv_heads"], params["dim"] // params["n_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weights[name]

    freqs = params["rope_theta"] ** -(torch.arange(0, width, 2) / width)
    turns = torch.outer(torch.arange(tokens.shape[1]).float(), freqs)
    turned = torch.polar(torch.ones_like(turns), turns)[:, None]

    def rotate(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turned).flatten(-2)

    x = weights["tok_embeddings.weight"][tokens]
    mask = torch.full((tokens.shape[1],) * 2, -math.inf).triu(1)
    for i in range(params["n_layers"]):
        w = {key.removeprefix(f"layers.{i}."): value for key, value in weights.items()}
        y = norm(x, f"layers.{i}.attention_norm.weight")
        q, k, v = (
            F.linear(y, w[f"attention.w{part}.weight"]).unflatten(-1, (count, width))
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = rotate(q), rotate(k).repeat_interleave(heads // kv_heads, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width) + mask
        y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.repeat_interleave(heads // kv_heads, 2)).flatten(2)
        x = x + F.linear(y, w["attention.wo.weight"])
        y = norm(x, f"layers.{i}.ffn_norm.weight")
        gate = F.silu(F.linear(y, w["feed_forward.w1.weight"])) * F.linear(y, w["feed_forward.w3.weight"])
        x = x + F.linear(gate, w["feed_forward.w2.weight"])
    return F.linear(norm(x, "norm.weight"), weights["output.weight"])


@pytest.mark.parametrize("embedding_dim", [0, 1], ids=["llama3", "llama2"])
def test_meta(tmp_path: Path, embedding_dim: int, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "rope_theta": 700.0}
    generator = torch.Generator().manual_seed(1)
    blocks = {
        **{"attention.wq": (64, 64), "attention.wk": (32, 64), "attention.wv": (32, 64), "attention.wo": (64, 64)},
        **{"feed_forward.w1": (96, 64), "feed_forward.w3": (96, 64), "feed_forward.w2": (64, 96)},
        **{"attention_norm": (64,), "ffn_norm": (64,)},
    }
    shapes = {f"layers.{i}.{name}.weight": shape for i in range(2) for name, shape in blocks.items()}
    shapes |= {"tok_embeddings.weight": (320, 64), "output.weight": (320, 64), "norm.weight": (64,)}
    weights = {
        name: torch.randn(shape, generator=generator) * (0.15 if len(shape) == 2 else 0.3) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    columns = {"attention.wo": 1, "feed_forward.w2": 1, "tok_embeddings": embedding_dim}
    for rank in range(2):
        shards = {}
        for name, whole in weights.items():
            dim = next((d for part, d in columns.items() if part in name), 0)
            shards[name] = whole if whole.dim() == 1 else whole.chunk(2, dim)[rank].clone()
        torch.save(shards, tmp_path / "meta" / f"consolidated.{rank:02d}.pth")
    assert main(["convert", str(tmp_path / "meta"), "--output", str(tmp_path / "ours")]) == 0
    _, ours = imported(tmp_path / "ours")
    tokens = torch.randint(0, 320, (2, 50), generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), meta_logits(tokens, weights, params), rtol=1e-4, atol=1e-4)
    for part, shape in (("wq", (34, 64)), ("wk", (18, 64)), ("wv", (16, 62)), ("wo", (62, 32))):
        for ranks, message in (((1,), "in consolidated.00.pth"), ((0, 1), "params.json asks for")):
            assert_refused(tmp_path / "meta", f"layers.1.attention.{part}.weight", shape, ranks, message, capsys)


def assert_refused(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows of another shape than all ranks share, or params.json asks for, are not taken for the model's."""
    files = [folder / f"consolidated.{rank:02d}.pth" for rank in ranks]
    whole = [file.read_bytes() for file in files]
    for file in files:
        torch.save({**torch.load(file), name: torch.zeros(shape)}, file)
    capsys.readouterr()
    assert main(["convert", str(folder), "--output", str(folder.parent / "refused")]) == 2
    error = capsys.readouterr().err
    assert f"{name if len(ranks) == 1 else ''} has shape" in error and message in error and error.count("\n") == 1
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content)
