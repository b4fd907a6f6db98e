"""Checkpoints copied to a real S3 server: what is there is whole, however a copy ends, and comes back as it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from neox.checkpoint.mirror import Copying, Mirror, complete_steps, copy_all, steps_at
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.restore import restore
from neox.checkpoint.resume import take_over
from neox.checkpoint.store import Store
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig
from neox.data import s3
from neox.data.fetch import Download, fetch
from tests.checkpoint.pieces import full_tensors, save_at
from tests.checkpoint.ranks import run_ranks
from tests.object_store import bucket, proxied, s3_server  # noqa: F401 (fixtures)

KEEP_TWO = CheckpointConfig(keep_last=2, steps=(5,), mirror_part_bytes=5 << 20)
LARGE = {("weight", "deep.weight"): torch.randn(700, 100, 60, generator=torch.Generator().manual_seed(1))}
"""17 MB: several parts."""


@pytest.fixture
def target(bucket):  # noqa: F811
    return bucket / "runs" / "a"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "a" / "checkpoints")


def restored(tmp_path, target, world_size=1):
    """The store of an empty machine after `restore`, and what it said."""
    lines = []

    def start(ranks):
        claimed = take_over(Store(tmp_path / "elsewhere" / "a" / "checkpoints"), ranks)
        restore(claimed, target, ranks, lines.append if ranks.rank == 0 else lambda line: None)

    for raised in run_ranks(start, world_size):
        if raised is not None:
            raise raised
    return Store(tmp_path / "elsewhere" / "a" / "checkpoints"), lines


def is_same(store, step, full):
    reader = TensorReader(store.path(step))
    return all(torch.equal(reader.read(*key), tensor) for key, tensor in full.items())


def test_copies_go_by_the_same_rules_and_come_back(tmp_path, store, target):
    copying = Copying(store, target, KEEP_TWO)
    assert copying.copy_one() is False
    for step in (5, 10, 20, 30):
        save_at(store, step, full_tensors(step), dp=3)
        (store.folder.parent / "metrics.jsonl").write_text(f"up to {step}\n")
        assert copying.copy_one() and not copying.copy_one()
    assert complete_steps(target) == [5, 20, 30]
    elsewhere, lines = restored(tmp_path, target, world_size=2)
    assert elsewhere.steps() == [30] and is_same(elsewhere, 30, full_tensors(30))
    assert (elsewhere.folder.parent / "metrics.jsonl").read_text() == "up to 30\n"
    assert lines == [f"fetched the checkpoint of step 30 from {target}"]
    assert restored(tmp_path, target)[1] == []  # what is there is not fetched again
    save_at(store, 40, full_tensors(40))
    (store.folder.parent / "metrics.jsonl").write_text("up to 40\n")
    copying.copy_one()
    assert restored(tmp_path, target)[0].latest() == 40
    assert (elsewhere.folder.parent / "metrics.jsonl").read_text() == "up to 40\n"  # no hole before what follows


def test_newest_first_and_older_ones_after(store, target):
    for step in (10, 20):
        save_at(store, step, full_tensors(step))
    copying = Copying(store, target, CheckpointConfig())
    copying.copy_one()
    assert complete_steps(target) == [20]
    copying.copy_one()
    assert complete_steps(target) == [10, 20]
    copy_all(store, target, CheckpointConfig())


def test_of_the_saves_in_between_the_one_that_a_run_ends_with(store, target):
    copying = Copying(store, target, KEEP_TWO)
    for step in (10, 20, 25, 30, 35):
        save_at(store, step, full_tensors(step), is_passing=step in (25, 35))
        while copying.copy_one():
            pass
    assert complete_steps(target) == [20, 30]
    while copying.copy_one(is_last=True):
        pass
    assert complete_steps(target) == [20, 30, 35]


def test_damaged_and_half_copies_are_passed_over(tmp_path, store, target):
    for step in (10, 20, 30):
        save_at(store, step, full_tensors(step))
    copy_all(store, target, CheckpointConfig())
    s3.remove(target / "step_00000030" / "manifest.json")
    bad = target / "step_00000020" / "rank_00000.safetensors"
    s3.client().put_object(Bucket=bad.bucket, Key=bad.key, Body=bytes(len(s3.read(bad))))
    elsewhere, lines = restored(tmp_path, target)
    assert elsewhere.steps() == [10] and is_same(elsewhere, 10, full_tensors(10))
    assert "the copy of step 20 is not used" in lines[0] and "expected sha256" in lines[0] and len(lines) == 2


def test_a_file_of_another_run_is_not_taken_for_this_ones(tmp_path, store, target):
    other = Store(tmp_path / "b" / "checkpoints")
    save_at(other, 10, full_tensors(1))
    copy_all(other, target, CheckpointConfig())
    s3.remove(target / "step_00000010" / "manifest.json")
    save_at(store, 10, full_tensors(2))
    copy_all(store, target, CheckpointConfig())
    assert is_same(restored(tmp_path, target)[0], 10, full_tensors(2))


def test_removal_that_breaks_leaves_nothing_that_looks_whole(store, target, monkeypatch):
    for step in (10, 20, 30):
        save_at(store, step, full_tensors(step))
    copy_all(store, target, CheckpointConfig())
    remove, removed = s3.remove, []

    def remove_one(place):
        if removed:
            raise s3.StorageError("gone away")
        removed.append(place)
        remove(place)

    save_at(store, 40, full_tensors(40))
    with monkeypatch.context() as patch, pytest.raises(s3.StorageError):
        patch.setattr(s3, "remove", remove_one)
        copy_all(store, target, CheckpointConfig(keep_last=3))
    assert complete_steps(target) == [20, 30, 40] and len(steps_at(target)[10]) == 1


def test_connections_that_break(tmp_path, store, target, s3_server, monkeypatch):  # noqa: F811
    save_at(store, 10, LARGE, dp=2)
    cuts = [None, *[cut for cut in (0, 3000, 2_000_000, 900_000, 4_000_000, 100) for _ in range(3)]]
    with proxied(s3_server, monkeypatch, cuts) as proxy:
        copying, failures = Copying(store, target, KEEP_TWO), 0
        while 10 not in complete_steps(target):
            try:
                copying.copy_one()
            except OSError as error:
                failures += 1
                assert "\n" not in str(error)
        monkeypatch.setattr("neox.data.fetch.Download.backoff_s", 0.01)
        proxy._cuts[:] = [0, 300, 0]  # what the copy left over, where the server keeps connections, would be too many
        elsewhere, _ = restored(tmp_path, target)
    assert is_same(elsewhere, 10, LARGE) and not proxy._cuts
    (held,) = {len(names) for names in steps_at(target).values()}
    assert held == 3  # two files and a manifest


def test_kill_during_a_copy(tmp_path, store, target, s3_server, monkeypatch):  # noqa: F811
    save_at(store, 10, LARGE, dp=2)
    with proxied(s3_server, monkeypatch, []) as proxy:
        process = multiprocessing.get_context("spawn").Process(target=copy_all, args=(store, target, KEEP_TWO))
        process.start()
        wait_for(lambda: proxy.passed > 9_000_000)
        proxy.is_open.clear()
        process.kill()
        process.join()
    assert complete_steps(target) == []
    assert restored(tmp_path, target)[0].steps() == []
    uploads = s3.client().list_multipart_uploads(Bucket=target.bucket).get("Uploads", [])
    assert uploads
    copy_all(store, target, KEEP_TWO)
    assert s3.client().list_multipart_uploads(Bucket=target.bucket).get("Uploads", []) == []
    elsewhere, _ = restored(tmp_path, target)
    assert is_same(elsewhere, 10, LARGE)


def wait_for(condition):
    while not condition():
        time.sleep(0.002)


def test_process_copies_behind_training_and_ends_with_it(store, target):
    with Mirror(store, target, KEEP_TWO) as mirror:
        pid = mirror._process.pid
        for number in (signal.SIGUSR2, signal.SIGTERM):
            os.kill(pid, number)  # meant for training
        save_at(store, 10, full_tensors(10))
        mirror.wake()
        wait_for(lambda: complete_steps(target) == [10])
        save_at(store, 20, full_tensors(20))
        assert mirror.finish() and complete_steps(target) == [10, 20]
    with Mirror(store, target, KEEP_TWO) as mirror:
        pass
    assert not mirror._process.is_alive()


def test_store_that_does_not_answer(tmp_path, store, target, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.client.cache_clear()
    with pytest.raises(UserError, match=r"checkpoint\.mirror: .*connect") as caught:
        restored(tmp_path / "empty", target)
    assert "\n" not in str(caught.value)
    save_at(Store(tmp_path / "elsewhere" / "a" / "checkpoints"), 10, full_tensors(10))
    assert "going on from what is here" in restored(tmp_path, target)[1][0]


def test_what_the_user_got_wrong_is_one_line(tmp_path, bucket, monkeypatch):  # noqa: F811
    for url, message in [
        ("s3://models/none", "s3://models/none: HTTP status 404"),
        ("s3://no-such-bucket/x", "HTTP status 404"),
        ("s3://BAD", "must be s3://BUCKET/KEY"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            fetch(Download(url, tmp_path / "out"))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no-such-bucket"):
        complete_steps(s3.Place("no-such-bucket", "x"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        s3.client.cache_clear()
        with pytest.raises(UserError, match=r"needs the package boto3: pip install 'neox-hpc\[s3\]'"):
            fetch(Download("s3://models/x", tmp_path / "out"))


def test_fetch_from_s3(tmp_path, bucket):  # noqa: F811
    (tmp_path / "in").write_bytes(bytes(range(256)) * 100_000)
    s3.upload(tmp_path / "in", bucket / "corpus" / "a b+c.jsonl", 5 << 20)
    fetch(Download("s3://models/corpus/a b+c.jsonl", tmp_path / "out"))  # 25 MB: over several connections
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
