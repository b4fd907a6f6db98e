"""A checkpoint appears whole or not at all, whenever the process dies, and damage is found."""

from __future__ import annotations

import json

import pytest
import torch

from neox.checkpoint.reading import hold
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig
from tests.checkpoint.pieces import cut, full_tensors, save_at


def test_missing_rank_is_never_committed(tmp_path):
    store = Store(tmp_path)
    parts = list(cut(full_tensors(), tp=2, dp=2))
    store.temporary(1).mkdir()
    for rank in range(3):
        write_rank(store.temporary(1), rank, [piece for owner, piece in parts if owner == rank])
    with pytest.raises(AssertionError, match=r"shards hold|gap or overlap"):
        commit(store, 1, {})
    assert store.latest() is None


def test_flipped_byte_is_never_loaded(tmp_path):
    folder = save_at(Store(tmp_path), 1, full_tensors())
    file = folder / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    reader = TensorReader(folder)
    with pytest.raises(UserError, match=r"rank_00000.safetensors is damaged: its sha256 is not the manifest's"):
        reader.read("weight", "final_norm.weight")


def damage_truncate(folder):
    file = folder / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_missing(folder):
    (folder / "rank_00000.safetensors").unlink()


def damage_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:200])


def damage_keys(folder):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["files"][0]["slices"]
    path.write_text(json.dumps(data))


def damage_state(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 3'))


def damage_format(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def damage_all(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "rank_00000.safetensors is damaged: .* bytes, the manifest says"),
        (damage_missing, "rank_00000.safetensors is missing"),
        (damage_manifest, "manifest.json is damaged"),
        (damage_keys, "manifest.json is damaged"),
        (damage_state, "manifest.json is damaged: its sha256"),
        (damage_format, "manifest.json: written in another format"),
        (damage_all, "is not a checkpoint"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, damage, message):
    folder = save_at(Store(tmp_path), 1, full_tensors())
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        TensorReader(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (CheckpointConfig(), [0, 1, 2, 3, 4, 5]),
        (CheckpointConfig(keep_every=2), [0, 1, 2, 3, 4, 5]),
        (CheckpointConfig(keep_last=1), [5]),
        (CheckpointConfig(keep_last=2), [4, 5]),
        (CheckpointConfig(keep_last=9), [0, 1, 2, 3, 4, 5]),
        (CheckpointConfig(keep_last=1, steps=(0, 2)), [0, 2, 5]),
        (CheckpointConfig(keep_last=1, steps=(5, 2)), [2, 4, 5]),
        (CheckpointConfig(keep_last=1, keep_every=2), [0, 2, 4, 5]),
        (CheckpointConfig(keep_last=1, keep_every=3, steps=(1,)), [0, 1, 3, 5]),
    ],
)
def test_prune_keeps_the_newest_the_listed_and_every_kth(tmp_path, config, left):
    store = Store(tmp_path)
    for step in range(6):
        save_at(store, step, full_tensors())
    store.prune(config)
    assert store.steps() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.path(step).name for step in left]


def test_prune_leaves_what_is_being_read(tmp_path):
    store, keep_one = Store(tmp_path), CheckpointConfig(keep_last=1)
    for step in (1, 2, 3):
        save_at(store, step, full_tensors(step))
    reader = TensorReader(store.path(1))
    assert store.prune(keep_one) == [2] and store.steps() == [1, 3]
    assert torch.equal(reader.read("weight", "embed.weight"), full_tensors(1)["weight", "embed.weight"])
    del reader
    assert store.prune(keep_one) == [1] and store.steps() == [3]


def test_checkpoint_that_goes_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    store = Store(tmp_path)
    save_at(store, 1, full_tensors())
    monkeypatch.setattr("fcntl.flock", lambda file, how: store.path(1).rename(tmp_path / "gone"))
    with pytest.raises(UserError, match="step_00000001 is not a checkpoint any more: it has just been removed"):
        hold(store.path(1))


def test_latest_ignores_what_is_not_complete(tmp_path):
    store = Store(tmp_path / "none")
    assert store.latest() is None
    store = Store(tmp_path)
    save_at(store, 3, full_tensors())
    (tmp_path / "step_00000009").mkdir()
    (tmp_path / ".tmp-step_00000010").mkdir()
    assert store.latest() == 3
    assert [path.name for path in store.remove_leftovers()] == [".tmp-step_00000010"]
