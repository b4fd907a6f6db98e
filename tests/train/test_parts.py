"""Stop flags, metrics files and the run directory, each alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from neox.checkpoint import manifest as manifests
from neox.checkpoint.manifest import Manifest
from neox.config.derive import resolve
from neox.config.errors import UserError
from neox.config.load import load_config, to_dict
from neox.train.directory import RunDirectory, code_version, differences
from neox.train.metrics import Metrics, drop_after
from neox.train.stop import SIGNALS, StopRequest
from tests.train.launch import CONFIG


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_a_flag(number):
    old = {known: signal.getsignal(known) for known in SIGNALS}
    try:
        stop = StopRequest()
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"signal {number.name}"
        stop.ignore_signals()
        assert {signal.getsignal(known) for known in SIGNALS} == {signal.SIG_IGN}
    finally:
        for known, handler in old.items():
            signal.signal(known, handler)


def test_deadline_is_a_reason():
    old = {known: signal.getsignal(known) for known in SIGNALS}
    try:
        assert StopRequest(stop_after_min=1000).reason is None
        assert StopRequest(stop_after_min=0).reason == "the time of --stop-after is over"
    finally:
        for known, handler in old.items():
            signal.signal(known, handler)


def record(step, loss=2.0):
    return {
        "step": step,
        "samples": 8 * step,
        "tokens": 128 * step,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "step_time_s": 0.5,
        "tokens_per_s": 256.0,
    }


def test_metrics_after_the_resumed_step_and_torn_lines_are_dropped(tmp_path):
    run = RunDirectory(tmp_path)
    lines = [json.dumps(record(step)) for step in (1, 2)] + ['{"step": 2, "valid_loss": 1.5}', json.dumps(record(3))]
    run.metrics.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    drop_after(run, 2)
    assert run.metrics.read_text() == "\n".join(lines[:3]) + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metrics_are_strict_json_and_the_progress_line_is_readable(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    metrics = Metrics(run, first_step=0, num_steps=100, interval=10, tensorboard=False)
    for step in range(1, 11):
        rates = {"tokens_per_s": 1.0, "mfu": 0.001} if step == 10 else {"mfu": 0.4114}  # one slow step shows nowhere
        metrics.record_step(record(step, loss=math.inf if step == 4 else 2.0) | rates)
    metrics.close()
    assert [r["loss"] for r in run.records()] == [2.0, 2.0, 2.0, None] + [2.0] * 6
    assert "Infinity" not in run.metrics.read_text()
    out = capsys.readouterr().out.splitlines()
    step, speed = "step 10/100 | loss 2.0000 | lr 1.00e-03 | grad norm 1.00", "256 tokens/s | MFU 41.1% | ETA 0:00:45"
    assert out[-1] == f"{step} | {speed}"
    assert len(out) == 2


def test_what_was_done_about_a_bad_step_is_a_line_that_says_where_it_was(tmp_path, capsys):
    metrics = Metrics(RunDirectory(tmp_path), first_step=0, num_steps=100, interval=10, tensorboard=False)
    metrics.record_event({"step": 7, "event": "skip", "reason": "the loss is nan"})
    metrics.record_event({"step": 5, "event": "rewind", "reason": "the loss is nan", "from_step": 9, "samples": 72})
    metrics.close()
    assert capsys.readouterr().err.splitlines() == [
        "neox: warning: step 7: skip: the loss is nan",
        "neox: warning: step 9: rewind to step 5, on behind sample 72: the loss is nan",
    ]


def test_summary_is_made_from_the_metrics(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics.write_text(
        "".join(json.dumps(record(step)) + "\n" for step in (1, 2)) + '{"step": 2, "valid_loss": 1.5}\n'
    )
    run.write_summary()
    assert json.loads(run.summary.read_text()) == {
        "steps": 2,
        "tokens": 256,
        "final_loss": 2.0,
        "final_valid_loss": 1.5,
        "checkpoints": [],
        "wall_s": 1.0,
        "tokens_per_s": 256.0,
    }


@pytest.fixture
def resumable(tmp_path):
    """A run directory with one checkpoint's manifest, and the configuration it was made with."""
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    config = resolve(load_config([path]), 1)
    run = RunDirectory(tmp_path / "run")
    run.store.path(10).mkdir(parents=True)
    manifests.write(Manifest(10, {"config": to_dict(config)}, ()), run.store.path(10))
    return run, path


ALLOWED = [
    "checkpoint.interval=7",
    "log.interval=1",
    "train.valid_interval=0",
    "train.micro_batch_size=1",
    "data.path=elsewhere",
    "data.index_dir=elsewhere",
    "train.global_batch_size=16",
]
REFUSED = ["optim.lr=1.0e-3", "train.seed=5", "data.seed=5", "model.num_layers=3", "data.weight_alpha=0.3"]


@pytest.mark.parametrize("override", ALLOWED)
def test_resume_allows_what_does_not_change_the_curve(resumable, override):
    run, path = resumable
    assert run.check(resolve(load_config([path], [override]), 1)) == 10
    assert run.check(resolve(load_config([path], ["parallel.pp=2", override]), 4)) == 10


@pytest.mark.parametrize("override", REFUSED)
def test_resume_refuses_by_name_what_does(resumable, override):
    run, path = resumable
    with pytest.raises(UserError) as caught:
        run.check(resolve(load_config([path], [override]), 1))
    assert str(caught.value).startswith(override.partition("=")[0] + " = ")


def test_more_steps_need_the_same_decay(resumable):
    run, path = resumable
    with pytest.raises(UserError, match=r"optim.decay_steps = 80: the run in .* has 40"):
        run.check(resolve(load_config([path], ["train.steps=80"]), 1))
    assert run.check(resolve(load_config([path], ["train.steps=80", "optim.decay_steps=40"]), 1)) == 10


def test_run_dir_must_be_a_folder(resumable, tmp_path):
    config = resolve(load_config([resumable[1]]), 1)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"^--run-dir {folder}: {tmp_path}/file is not a folder"):
            RunDirectory(folder).check(config)
    assert RunDirectory(tmp_path / "a" / "b").check(config) is None


def test_differences_see_both_sides():
    assert list(differences({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1}, "e": 2})) == [
        ("a.c", 2, None),
        ("d", 1, None),
        ("e", None, 2),
    ]


def test_code_version_is_the_commit_of_this_checkout():
    commit = code_version()["commit"]
    root = Path(__file__).parents[2]
    assert (commit is not None) == (root / ".git").is_dir()
    if commit and shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
        assert git.returncode or commit == git.stdout.strip()
