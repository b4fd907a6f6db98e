"""A checkpoint is written behind training and appears whole or not at all, whenever and whoever of its ranks dies."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import weakref

import pytest
import torch

from neox.checkpoint import generation, saver, store
from neox.checkpoint import save as saving
from neox.checkpoint.ranks import SaveError
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.resume import newest_intact, take_over
from neox.checkpoint.saver import Saver
from neox.checkpoint.staging import Staging
from neox.checkpoint.store import Store
from neox.config.schema import CheckpointConfig
from tests.checkpoint.pieces import cut, full_tensors, save_at
from tests.checkpoint.ranks import ThreadRanks, run_ranks

KEEP_TWO = CheckpointConfig(keep_last=2)


def pieces_of(full, ranks):
    return [piece for owner, piece in cut(full, tp=1, dp=ranks.world_size) if owner == ranks.rank]


def start(claimed, ranks, step, config=KEEP_TWO, lines=None):
    """A saver with the save of `step` under way, of tensors that are this step's own."""
    saver_ = Saver(claimed, ranks, config, [].append if lines is None else lines.append)
    saver_.start(step, pieces_of(full_tensors(step), ranks), {"step": step}, lambda: None)
    return saver_


def holds_step(folder, step):
    """Whether every tensor of the checkpoint is that step's."""
    reader = TensorReader(Store(folder).path(step))
    return all(torch.equal(reader.read(*key), tensor) for key, tensor in full_tensors(step).items())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def slow_rank(monkeypatch):
    """Holds the writing of the rank that is set as `.rank`, until `.go` is set."""

    class Slow:
        rank, go = 0, threading.Event()

    slow, real = Slow(), saver.write_rank

    def write_rank(folder, rank, pieces):
        if rank == slow.rank:
            assert slow.go.wait(60)
        real(folder, rank, pieces)

    monkeypatch.setattr(saver, "write_rank", write_rank)
    return slow


def test_copies_hold_one_piece_at_a_time_and_use_the_same_memory_again():
    given, staging = [], Staging()

    def pieces(step):
        """As of quantized state, whose values are made for each piece; that before this one is still looked at."""
        given.clear()
        for _, piece in cut(full_tensors(step), tp=1, dp=2):
            assert all(made() is None for made in given[:-1])
            values = piece.tensor.clone()
            given.append(weakref.ref(values))
            yield dataclasses.replace(piece, tensor=values)
            del values

    places = []
    for step in (1, 2):
        copies = staging.copy(pieces(step))
        want = [piece.tensor for _, piece in cut(full_tensors(step), tp=1, dp=2) if piece.numel]
        assert all(torch.equal(copy.tensor, tensor) for copy, tensor in zip(copies, want, strict=True))
        places.append([copy.tensor.data_ptr() for copy in copies])
    assert places[0] == places[1] and len(set(places[0])) == len(want)


@pytest.mark.parametrize("rank", [0, 2])
def test_training_goes_on_while_the_slowest_rank_writes(tmp_path, slow_rank, rank):
    slow_rank.rank = rank

    def train(ranks):
        claimed = take_over(Store(tmp_path), ranks)
        full = full_tensors(1)
        mine = pieces_of(full, ranks)
        saver_ = Saver(claimed, ranks, KEEP_TWO, print)
        saver_.start(1, mine, {"step": 1}, lambda: None)
        for piece in mine:
            piece.tensor.add_(1)  # the next step
        went_on = [saver_.poll() for _ in range(3)]
        latest = Store(tmp_path).latest()
        ranks.gather(None)
        slow_rank.go.set()
        saver_.wait()
        return went_on, latest, saver_.poll()

    assert run_ranks(train, 3) == [([True] * 3, None, False)] * 3
    assert holds_step(tmp_path, 1)


def test_next_save_waits_for_the_one_before(tmp_path, slow_rank):
    def train(ranks):
        saver_ = start(take_over(Store(tmp_path), ranks), ranks, 1)
        threading.Timer(0.2, slow_rank.go.set).start()
        saver_.start(2, pieces_of(full_tensors(2), ranks), {}, lambda: None)
        first_stands = Store(tmp_path).steps()[:1]
        saver_.wait()
        return first_stands

    assert run_ranks(train, 2) == [[1], [1]]
    assert holds_step(tmp_path, 1) and holds_step(tmp_path, 2)


def test_logs_are_on_the_disk_before_the_checkpoint_and_old_ones_go_after(tmp_path):
    for step in (1, 2):
        save_at(Store(tmp_path), step, full_tensors(step))
    seen, lines = [], []

    def train(ranks):
        saver_ = Saver(take_over(Store(tmp_path), ranks), ranks, KEEP_TWO, lines.append)
        saver_.start(3, pieces_of(full_tensors(3), ranks), {}, lambda: seen.append(Store(tmp_path).steps()))
        saver_.wait()

    assert run_ranks(train) == [None]
    assert seen == [[1, 2]] and Store(tmp_path).steps() == [2, 3]
    assert len(lines) == 1 and lines[0].startswith("saved step 3: training waited ")


def test_full_disk_is_one_error_at_the_next_step_and_leaves_nothing(tmp_path):
    save_at(Store(tmp_path), 1, full_tensors(1))

    def train(ranks):
        start(take_over(Store(tmp_path), ranks), ranks, 2).wait()

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, old[1]))
    try:
        (error,) = run_ranks(train)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert isinstance(error, SaveError) and error.filename == str(tmp_path / "step_00000002")
    assert error.strerror == "checkpoint not saved, earlier ones are intact: File too large"
    assert names(tmp_path) == [generation.NAME, "step_00000001"] and holds_step(tmp_path, 1)


def test_one_rank_that_cannot_write_ends_all_alike(tmp_path, monkeypatch):
    real = saver.write_rank

    def write_rank(folder, rank, pieces):
        if rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, rank, pieces)

    monkeypatch.setattr(saver, "write_rank", write_rank)
    errors = run_ranks(lambda ranks: start(take_over(Store(tmp_path), ranks), ranks, 2).wait(), 3)
    assert {type(error) for error in errors} == {SaveError}
    assert {error.strerror.rpartition(": ")[2] for error in errors} == {"No space left on device"}
    assert names(tmp_path) == [generation.NAME]


def killed_at(folder, number):
    """Child process: dies by SIGKILL right before the number-th thing that a save and its pruning do to files."""
    threads, count = threading.get_ident(), iter(range(10**6))
    real_flush = saving.flush

    def strike():
        if threading.get_ident() != threads and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def flush(path):
        strike()
        real_flush(path)

    def on_event(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.listdir", "shutil.rmtree"):
            strike()

    claimed = Store(folder, generation.claim(Store(folder)))
    saving.flush = store.flush = flush
    sys.addaudithook(on_event)
    ranks = ThreadRanks(0, [None], threading.Barrier(1))
    start(claimed, ranks, 3, CheckpointConfig(keep_last=1)).wait()
    os._exit(0)


def test_kill_before_any_system_call_of_a_save_leaves_a_whole_latest(tmp_path):
    template = tmp_path / "template"
    for step in (1, 2):
        save_at(Store(template), step, full_tensors(step))
    latest = []
    for number in range(100):
        folder = tmp_path / str(number)
        shutil.copytree(template, folder)
        child = multiprocessing.get_context("fork").Process(target=killed_at, args=(folder, number))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        latest.append(Store(folder).latest())
        assert all(holds_step(folder, step) for step in Store(folder).steps())
        generation.claim(Store(folder))
        assert {name for name in names(folder) if name.startswith(".")} == {generation.NAME}
        if child.exitcode == 0:
            assert Store(folder).steps() == [3]
            break
    assert latest == sorted(latest) and latest.count(2) >= 15 and latest.count(3) >= 10, "before and after the rename"


def overtake(folder):
    """A second start of the run, by another process as it were."""
    return Store(folder, generation.claim(Store(folder)))


@pytest.mark.parametrize("moment", ["before the save", "while it writes", "at the rename"])
def test_older_start_cannot_commit_and_says_why(tmp_path, moment, slow_rank, monkeypatch):
    save_at(Store(tmp_path), 1, full_tensors(1))
    real = generation.check

    def check(claimed):
        real(claimed)
        if Store(tmp_path).token is None and list(tmp_path.glob(".tmp-*/manifest.json")):
            overtake(tmp_path)  # between the look at the token and the rename

    def train(ranks):
        claimed = take_over(Store(tmp_path), ranks)
        if moment == "before the save" and ranks.rank == 0:
            overtake(tmp_path)
        if moment == "at the rename":
            monkeypatch.setattr(generation, "check", check)
        saver_ = start(claimed, ranks, 2)
        if moment == "while it writes" and ranks.rank == 0:
            overtake(tmp_path)
        slow_rank.go.set()
        saver_.wait()

    if moment == "before the save":
        slow_rank.go.set()
    errors = run_ranks(train, 2)
    assert {type(error) for error in errors} == {SaveError}
    assert {"taken this run over; this copy of it writes nothing more" in str(error) for error in errors} == {True}
    assert names(tmp_path) == [generation.NAME, "step_00000001"] and holds_step(tmp_path, 1)


def test_older_start_that_stops_behind_its_commit_writes_nothing_after_it(tmp_path, monkeypatch):
    folder, real = tmp_path / "run" / "checkpoints", saver.commit
    save_at(Store(folder), 1, full_tensors(1))

    def commit(claimed, *arguments):
        real(claimed, *arguments)
        overtake(folder)

    def train(ranks):
        start(take_over(Store(folder), ranks), ranks, 2, CheckpointConfig(keep_last=1)).wait()

    monkeypatch.setattr(saver, "commit", commit)
    assert ["this copy of it writes nothing more" in str(error) for error in run_ranks(train, 2)] == [True, True]
    assert names(folder) == [generation.NAME, "step_00000001", "step_00000002"]
    assert names(tmp_path / "run") == ["checkpoints"]


def test_newer_start_goes_on_from_what_the_older_one_committed(tmp_path):
    def first(ranks):
        start(take_over(Store(tmp_path), ranks), ranks, 2).wait()

    def second(ranks):
        claimed = take_over(Store(tmp_path), ranks)
        found = newest_intact(claimed, ranks, print).manifest.step
        start(claimed, ranks, 3).wait()
        return found

    assert run_ranks(first, 2) == [None, None] and run_ranks(second, 2) == [2, 2]
    assert Store(tmp_path).steps() == [2, 3]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", ["rank_00000.safetensors", "rank_00001.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, truncate])
def test_damaged_checkpoint_is_passed_over_by_all_ranks(tmp_path, world_size, name, damage):
    store_ = Store(tmp_path)
    for step in (1, 2, 3):
        save_at(store_, step, full_tensors(step), dp=2)
    damage(store_.path(3) / name)
    lines = []

    def resume(ranks):
        say = lines.append if ranks.rank == 0 else lambda line: None
        return newest_intact(take_over(store_, ranks), ranks, say).manifest.step

    assert run_ranks(resume, world_size) == [2] * world_size
    assert len(lines) == 2 and f"step_00000003/{name} is damaged" in lines[0]
    assert f"the checkpoint of step 3 is not used, and is now {tmp_path}/damaged_step_00000003" in lines[1]
    assert store_.steps() == [1, 2]
    save_at(Store(tmp_path, overtake(tmp_path).token), 3, full_tensors(3))
    assert holds_step(tmp_path, 3)


def test_missing_file_is_damage_and_all_damaged_is_refused(tmp_path):
    store_ = Store(tmp_path)
    for step in (1, 2):
        (save_at(store_, step, full_tensors(step)) / "rank_00000.safetensors").unlink()
    (error,) = run_ranks(lambda ranks: newest_intact(store_, ranks, print))
    assert "every checkpoint is damaged" in str(error) and store_.steps() == [1, 2]
    assert run_ranks(lambda ranks: newest_intact(Store(tmp_path / "none"), ranks, print)) == [None]


def test_each_file_is_read_by_one_rank(tmp_path, monkeypatch):
    store_, read = Store(tmp_path), []
    save_at(store_, 1, full_tensors(1), dp=4)
    from neox.checkpoint import manifest as manifests

    real = manifests.check_file
    monkeypatch.setattr(manifests, "check_file", lambda folder, file: (read.append(file.name), real(folder, file)))
    readers = run_ranks(lambda ranks: newest_intact(store_, ranks, print), 3)
    readers[0].read("weight", "embed.weight")
    assert sorted(read) == [f"rank_{rank:05d}.safetensors" for rank in range(4)]
