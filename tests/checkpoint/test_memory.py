"""Export and imports never hold a tensor whole: the process grows by less than the largest one, from any layout."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from neox.__main__ import main
from neox.checkpoint import mapping
from neox.checkpoint.mapping import logical_shapes
from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.config.load import to_dict
from neox.config.schema import Config, ModelConfig
from neox.data.tokenizer import train_tokenizer
from neox.parallel.pieces import Piece

MIB = 2**20
ROWS, HIDDEN, FFN, LAYERS = 24576, 256, 4096, 4
CFG = ModelConfig(
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    num_heads=4,
    num_kv_heads=2,
    seq_length=64,
    vocab_size=ROWS,
    vocab_multiple=1,
    intermediate_size=FFN,
    rotary_pct=1.0,
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
    parallel_residual=False,
    tie_embeddings=True,
)
COLUMNS = ("attn.out.weight", "mlp.down.weight")
NEOX = {
    **{"num_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": 4, "num_kv_heads": 2, "seq_length": 64},
    **{"max_position_embeddings": 64, "pos_emb": "rotary", "norm": "rmsnorm", "activation": "swiglu"},
    **{"intermediate_size": 3 * FFN, "use_bias_in_mlp": False, "use_bias_in_attn_linear": False},
}


def values(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


def ours(folder: Path) -> Path:
    """Two ranks of tensor parallelism."""
    store = Store(folder / "checkpoints")
    store.temporary(1).mkdir(parents=True)
    for rank in range(2):
        pieces = []
        for name, shape in logical_shapes(CFG).items():
            dim, count = (1 if name.endswith(COLUMNS) else 0, 2) if len(shape) > 1 else (None, 1)
            if count > rank:
                flat = values(torch.Size(shape).numel() // count)
                pieces.append(Piece("weight", name, shape, dim, rank % count, count, 0, flat.numel(), flat))
        write_rank(store.temporary(1), rank, pieces)
    commit(store, 1, {"config": to_dict(Config(CFG))})
    return store.path(1)


def transformers(folder: Path) -> Path:
    """PyTorch's files, one tensor of which is transposed."""
    (folder / "hf").mkdir()
    shape = {"vocab_size": ROWS, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    (folder / "hf" / "config.json").write_text(json.dumps({"model_type": "llama", **shape, **heads}))
    state = {"model.embed_tokens.weight": values(ROWS, HIDDEN), "model.norm.weight": values(HIDDEN)}
    for i in range(LAYERS):
        attention = {"q_proj": values(HIDDEN, HIDDEN).T, "k_proj": values(128, HIDDEN), "v_proj": values(128, HIDDEN)}
        mlp = {"gate_proj": values(FFN, HIDDEN), "up_proj": values(FFN, HIDDEN), "down_proj": values(HIDDEN, FFN)}
        attention["o_proj"] = values(HIDDEN, HIDDEN)
        norms = {"input_layernorm": values(HIDDEN), "post_attention_layernorm": values(HIDDEN)}
        for module, tensors in (("self_attn.", attention), ("mlp.", mlp), ("", norms)):
            state |= {f"model.layers.{i}.{module}{name}.weight": value for name, value in tensors.items()}
    torch.save(state, folder / "hf" / "pytorch_model.bin")
    return folder / "hf"


def neox(folder: Path) -> Path:
    """A rank's whole model in one file."""
    path = folder / "global_step7"
    (path / "configs").mkdir(parents=True)
    (path / "configs" / "m.yml").write_text(yaml.safe_dump(NEOX))
    block = {
        **{"input_layernorm.scale": values(HIDDEN), "post_attention_layernorm.scale": values(HIDDEN)},
        **{"attention.query_key_value.weight": values(256, HIDDEN), "attention.dense.weight": values(HIDDEN, 128)},
        **{"mlp.linear1.weight": values(FFN, HIDDEN), "mlp.linear2.weight": values(HIDDEN, FFN // 2)},
    }
    layers = {0: {"word_embeddings.weight": values(ROWS // 2, HIDDEN)}, LAYERS + 3: {"norm.scale": values(HIDDEN)}}
    layers |= {i + 2: {name: value.clone() for name, value in block.items()} for i in range(LAYERS)}
    state = {
        f"sequential.{layer}.{name}": value for layer, tensors in layers.items() for name, value in tensors.items()
    }
    for rank in range(2):
        torch.save({"module": state}, path / f"mp_rank_{rank:02d}_model_states.pt")
    return path


def meta(folder: Path) -> Path:
    """Two shards, the embedding by columns, as of Llama 1 and 2."""
    (folder / "meta").mkdir()
    params = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    (folder / "meta" / "params.json").write_text(json.dumps(params))
    state = {"tok_embeddings.weight": values(ROWS, HIDDEN // 2), "norm.weight": values(HIDDEN)}
    for i in range(LAYERS):
        attention = {"wq": values(128, HIDDEN), "wk": values(64, HIDDEN), "wv": values(64, HIDDEN)}
        attention["wo"] = values(HIDDEN, 128)
        mlp = {"w1": values(FFN // 2, HIDDEN), "w2": values(HIDDEN, FFN // 2), "w3": values(FFN // 2, HIDDEN)}
        state |= {f"layers.{i}.attention.{name}.weight": value for name, value in attention.items()}
        state |= {f"layers.{i}.feed_forward.{name}.weight": value for name, value in mlp.items()}
        state |= {f"layers.{i}.{name}_norm.weight": values(HIDDEN) for name in ("attention", "ffn")}
    for rank in range(2):
        torch.save(state, folder / "meta" / f"consolidated.{rank:02d}.pth")
    return folder / "meta"


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def grown(command: list[str]) -> int:
    """Bytes that the process grows by while a command runs."""
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps is no part of it
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = resident("VmRSS")
    assert main(command) == 0
    return resident("VmHWM") - before


@pytest.mark.parametrize("source", [ours, transformers, neox, meta])
def test_no_tensor_is_ever_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[[Path], Path]
) -> None:
    train_tokenizer(["a river runs through the meadow"] * 3, 300, tmp_path / "tokenizer.json")
    command = ["convert", str(source(tmp_path)), "--tokenizer", str(tmp_path / "tokenizer.json"), "--output"]
    monkeypatch.setattr(mapping, "BLOCK_BYTES", MIB)
    assert main([*command, str(tmp_path / "first")]) == 0  # what is imported and cached by this is not the point
    # Holes of a heap that thousands of tests have used, and their threads, add to a peak and take nothing off.
    assert min(grown([*command, str(tmp_path / str(i))]) for i in range(3)) < 16 * MIB, "the largest tensor has 24 MiB"
