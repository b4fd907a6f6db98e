"""A checkpoint appears whole or not at all, whenever the process dies, and damage is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal

import pytest
import torch

from neox.checkpoint import save as saving
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.save import SaveError, commit, copied, save, write_rank
from neox.checkpoint.store import Store
from neox.config.errors import UserError
from tests.checkpoint.pieces import cut, full_tensors, save_at


class OneRank:
    """The process group of a single process."""

    rank = 0

    def any_rank(self, flag: bool) -> bool:
        return flag


def pieces_of(full):
    return [piece for _, piece in cut(full, tp=1, dp=1)]


def killed_in_save(folder, num_flushes):
    """Child process: dies by SIGKILL just before the num_flushes-th time that `save` waits for the disk."""
    real, count = saving.flush, iter(range(1000))

    def flush(path):
        if next(count) == num_flushes:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    saving.flush = flush
    save(Store(folder), OneRank(), 2, pieces_of(full_tensors(2)), {"step": 2})
    os._exit(0)


def test_kill_at_any_moment_of_a_save_leaves_a_whole_latest(tmp_path):
    latest = []
    for num_flushes in range(6):
        store = Store(tmp_path / str(num_flushes))
        save_at(store, 1, full_tensors(1))
        child = multiprocessing.get_context("fork").Process(target=killed_in_save, args=(store.folder, num_flushes))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        latest.append(store.latest())
        expected = full_tensors(store.latest())
        reader = TensorReader(store.path(store.latest()))
        assert all(torch.equal(reader.read(*key), tensor) for key, tensor in expected.items())
        store.remove_leftovers()
        assert sorted(path.name for path in store.folder.iterdir()) == [
            f"step_{step:08d}" for step in range(1, store.latest() + 1)
        ]
    assert latest == [1, 1, 1, 2], "killed after the file, the manifest, the folder, and the rename"


def test_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    save_at(store, 1, full_tensors(1))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, old[1]))
    try:
        with pytest.raises(
            SaveError, match=r"checkpoint not saved, earlier ones are intact: .*File too large.*step_00000002"
        ):
            save(store, OneRank(), 2, pieces_of(full_tensors(2)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert torch.equal(
        TensorReader(store.path(1)).read("weight", "embed.weight"), full_tensors(1)["weight", "embed.weight"]
    )


def test_missing_rank_is_never_committed(tmp_path):
    store = Store(tmp_path)
    parts = list(cut(full_tensors(), tp=2, dp=2))
    for rank in range(3):
        write_rank(store.temporary(1), rank, [piece for owner, piece in parts if owner == rank])
    with pytest.raises(AssertionError, match=r"shards hold|gap or overlap"):
        commit(store, 1, {})
    assert store.latest() is None


def test_copies_do_not_follow_training():
    pieces = pieces_of(full_tensors())
    kept = copied(pieces)
    before = pieces[0].tensor.clone()
    pieces[0].tensor.add_(1)
    assert torch.equal(kept[0].tensor, before)


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
    ("keep_last", "keep", "left"),
    [(None, (), [1, 2, 3, 4]), (1, (), [4]), (2, (), [3, 4]), (1, (1,), [1, 4]), (1, (4, 2), [2, 3, 4])],
)
def test_prune_keeps_the_newest_and_the_listed(tmp_path, keep_last, keep, left):
    store = Store(tmp_path)
    for step in (1, 2, 3, 4):
        save_at(store, step, full_tensors())
    store.prune(keep_last, keep)
    assert store.steps() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.path(step).name for step in left]


def test_latest_ignores_what_is_not_complete(tmp_path):
    store = Store(tmp_path / "none")
    assert store.latest() is None
    store = Store(tmp_path)
    save_at(store, 3, full_tensors())
    (tmp_path / "step_00000009").mkdir()
    (tmp_path / ".tmp-step_00000010").mkdir()
    assert store.latest() == 3
    assert [path.name for path in store.remove_leftovers()] == [".tmp-step_00000010"]
