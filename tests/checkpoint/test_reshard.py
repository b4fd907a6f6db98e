"""What one layout wrote, every other reads back, element for element."""

from __future__ import annotations

import itertools

import pytest
import torch

from neox.checkpoint.reshard import TensorReader, load_model_weights
from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.parallel.pieces import Piece
from tests.checkpoint.pieces import cut, full_tensors, save_at

LAYOUTS = [(1, 1), (2, 1), (1, 3), (2, 2), (4, 3)]


@pytest.mark.parametrize(("saved", "wanted"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_any_layout_reads_any_other(tmp_path, saved, wanted):
    full = full_tensors()
    reader = TensorReader(save_at(Store(tmp_path), 7, full, *saved))
    for _, piece in cut(full, *wanted):
        assert torch.equal(reader.read_piece(piece), piece.tensor), piece
    for (kind, name), tensor in full.items():
        assert torch.equal(reader.read(kind, name), tensor)


def test_only_files_that_overlap_are_opened(tmp_path):
    full = full_tensors()
    folder = save_at(Store(tmp_path), 7, full, dp=3)
    reader = TensorReader(folder)
    for number in (0, 1):
        (folder / f"rank_{number:05d}.safetensors").unlink()
    last = [piece for rank, piece in cut(full, tp=1, dp=3) if rank == 2]
    assert all(torch.equal(reader.read_piece(piece), piece.tensor) for piece in last)


def test_wrong_name_or_shape_is_one_line_that_names_it(tmp_path):
    reader = TensorReader(save_at(Store(tmp_path), 7, full_tensors()))
    with pytest.raises(UserError, match=r"holds no weight of head.weight"):
        reader.read("weight", "head.weight")
    with pytest.raises(UserError, match=r"embed.weight has shape \[12, 5\], the model needs \[12, 6\]"):
        reader.read_piece(Piece("weight", "embed.weight", (12, 6), None, 0, 1, 0, 72, torch.empty(0)))


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_single_device_model_loads_a_checkpoint(tmp_path, tie_embeddings):
    cfg = ModelConfig(2, 16, 2, vocab_size=32, vocab_multiple=32, tie_embeddings=tie_embeddings)
    trained, fresh = GPT(cfg, 32), GPT(cfg, 32)
    init_weights(trained, cfg, seed=1)
    init_weights(fresh, cfg, seed=2)
    full = {("weight", name): parameter.detach() for name, parameter in trained.named_parameters()}
    pieces = [Piece(*key, tuple(t.shape), None, 0, 1, 0, t.numel(), t.flatten()) for key, t in full.items()]
    store = Store(tmp_path)
    store.temporary(3).mkdir()
    write_rank(store.temporary(3), 0, pieces)
    commit(store, 3, {})
    load_model_weights(fresh, store.path(3))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), trained.parameters(), strict=True))
