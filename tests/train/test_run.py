"""`neox train` end to end: interruptions leave the loss curve bit for bit as it was, on any layout to rounding."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neox.checkpoint import generation
from neox.checkpoint import manifest as manifests
from neox.checkpoint.mirror import complete_steps
from neox.checkpoint.reshard import TensorReader, load_model_weights
from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.config.derive import padded_vocab, resolve
from neox.config.load import load_config
from neox.data import s3
from neox.data.indexed import IndexedReader, IndexedWriter
from neox.data.parts import plan_part
from neox.model.gpt import GPT
from tests.object_store import bucket, s3_server  # noqa: F401 (fixtures)
from tests.train.launch import STEPS, Launch, records, run, steps_of, write_config, write_tokens

ORDER = 360
"""Samples in the order of the training part: whole epochs, and more than the 320 that were asked for."""
STATE_KEYS = ("step", "samples", "tokens", "loss", "lr", "grad_norm", "valid_loss")


def curve(run_dir: Path) -> list[str]:
    """Everything in metrics.jsonl but times, as the text that was written."""
    return [json.dumps({key: r[key] for key in STATE_KEYS if key in r}) for r in records(run_dir)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """The run directory of dp2 from the first step to the last."""
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(run_dir, config, world_size=2, anew=True)
    return run_dir


@pytest.fixture(scope="module")
def interrupted(config, tmp_path_factory):
    """The same run, killed between checkpoints, resumed, stopped by a signal to one rank, resumed, finished."""
    run_dir = tmp_path_factory.mktemp("runs") / "interrupted"
    first = Launch(run_dir, config, world_size=2)
    first.wait_for_step(13)
    first.signal(signal.SIGKILL)
    assert first.wait() == [-signal.SIGKILL] * 2
    killed = steps_of(run_dir)[-1]["step"]
    assert Store(run_dir / "checkpoints").latest() < killed < STEPS, "killed between checkpoints"
    (run_dir / "checkpoints" / ".tmp-step_00000099").mkdir()

    second = Launch(run_dir, config, world_size=2)
    second.wait_for_step(killed + 1)
    second.signal(signal.SIGUSR2, rank=1)
    assert second.wait() == [85, 85], second.output
    stopped = steps_of(run_dir)[-1]["step"]
    assert Store(run_dir / "checkpoints").latest() == stopped < STEPS, "saved where it stopped"
    assert f"saved the state after step {stopped}: " in second.output
    assert not (run_dir / "train_summary.json").exists()

    leaked = Store(run_dir / "checkpoints", generation.claim(Store(run_dir / "checkpoints")))
    leaked.temporary(7).mkdir()
    write_rank(leaked.temporary(7), 0, [])
    commit(leaked, 7, {"is_passing": True})  # as of a run that was killed after the next save, before this one went
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOX_MTBF_H", "1e-6")  # nodes that fail all the time: saves as often as they reach the disk
        output = run(run_dir, config, world_size=2)
    between = {int(step) for step in re.findall(r"saved step (\d+):", output)} - {10, 20, 30, STEPS}
    assert between, output
    assert not (between | {7}) & set(Store(run_dir / "checkpoints").steps()), "each has made way for the next"
    assert f"going on from {run_dir / 'checkpoints' / f'step_{stopped:08d}'}" in output
    return run_dir


def test_it_learns_and_says_so(uninterrupted):
    steps = steps_of(uninterrupted)
    assert [r["step"] for r in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.8
    assert steps[0]["loss"] == pytest.approx(np.log(128), abs=0.5)
    assert [r["step"] for r in records(uninterrupted) if "valid_loss" in r] == [15, 30, 40]
    assert (steps[-1]["samples"], steps[-1]["tokens"]) == (320, 5120)


def test_run_directory_is_complete(uninterrupted, config):
    summary = json.loads((uninterrupted / "train_summary.json").read_text())
    last = records(uninterrupted)[-2:]
    assert summary["steps"] == STEPS and summary["tokens"] == 5120
    assert (summary["final_loss"], summary["final_valid_loss"]) == (last[0]["loss"], last[1]["valid_loss"])
    for rate in ("tokens_per_s", "model_tflops", "mfu", "hfu"):
        assert summary[rate] == np.median([record[rate] for record in steps_of(uninterrupted)]), rate
    names = [f"step_{step:08d}" for step in (0, 5, 10, 20, 30, 40)]
    assert summary["checkpoints"] == names
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == [generation.NAME, *names]
    resolved = yaml.safe_load((uninterrupted / "config.yaml").read_text())
    assert resolved["parallel"]["dp"] == 2 and resolved["train"]["grad_accum"] == 2
    assert (uninterrupted / "sources" / "00_tiny.yaml").read_text() == config.read_text()
    for name in names:
        state = manifests.read(uninterrupted / "checkpoints" / name).state
        assert state["samples"] == 8 * state["step"] and state["config"] == resolved
        assert state["optimizer"]["step"] == state["step"]


def test_interruptions_leave_the_curve_bit_for_bit(uninterrupted, interrupted):
    assert curve(interrupted) == curve(uninterrupted)


def test_interruptions_leave_the_weights_bit_for_bit(uninterrupted, interrupted):
    final = [manifests.read(folder / "checkpoints" / f"step_{STEPS:08d}") for folder in (uninterrupted, interrupted)]
    assert [f.sha256 for f in final[0].files] == [f.sha256 for f in final[1].files]
    assert not list((interrupted / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("which", ["uninterrupted", "interrupted"])
def test_tensorboard_reads_the_same_values(request, which):
    run_dir = request.getfixturevalue(which)
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    for tag, key in (("train/loss", "loss"), ("train/mfu", "mfu"), ("valid/loss", "valid_loss")):
        shown = [(event.step, np.float32(event.value)) for event in events.Scalars(tag)]
        assert shown == [(r["step"], np.float32(r[key])) for r in records(run_dir) if key in r], tag


def test_finished_run_ends_at_once_and_leaves_its_files(uninterrupted, config):
    summary = uninterrupted / "train_summary.json"
    text = summary.read_text()
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert "finished already" in run(uninterrupted, config, world_size=2)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
    summary.unlink()
    run(uninterrupted, config, world_size=2)
    assert summary.read_text() == text, "a workflow engine removed it"


@pytest.mark.parametrize(
    ("override", "ranks", "left"),
    [
        ("parallel.pp=2", 2, [0, 5, 10, 20, 30, 40]),
        ("parallel.tp=2", 2, [0, 5, 10, 20, 30, 40]),
        ("checkpoint.keep_last=2", 1, [0, 5, 30, 40]),
    ],
)
def test_another_layout_goes_on_with_the_same_curve(uninterrupted, config, tmp_path, override, ranks, left):
    run_dir = tmp_path / "moved"
    shutil.copytree(uninterrupted, run_dir)
    for step in (20, 30, 40):
        shutil.rmtree(run_dir / "checkpoints" / f"step_{step:08d}")
    run(run_dir, config, override, world_size=ranks)
    assert Store(run_dir / "checkpoints").steps() == left
    moved, straight = records(run_dir), records(uninterrupted)
    assert [r["step"] for r in moved] == [r["step"] for r in straight]
    assert curve(run_dir)[:10] == curve(uninterrupted)[:10]
    for a, b in zip(moved, straight, strict=True):
        for name in {"loss", "valid_loss", "grad_norm"} & (a.keys() | b.keys()):
            assert a[name] == pytest.approx(b[name], rel=1e-5), a["step"]


def mistakes():
    return [
        (["model.num_heads=3"], "model.num_heads = 3 must divide model.hidden_size"),
        (["train.global_batch_size=7"], "train: global_batch_size = micro_batch_size × grad_accum × dp"),
        (["optim.learning_rate=1"], "unknown key 'optim.learning_rate'; nearest: .*optim"),
        (["data.path=/nonexistent/tokens"], "/nonexistent/tokens.idx: no such file"),
        (["data.path=null"], "data.path or data.train_paths is required"),
        (["data.split=[1,0,0]"], "data.split 1,0,0 leaves none of 60 documents to the part 'valid'"),
        (["parallel.tp=2"], "dp × tp × pp must be the number of ranks"),
        (["missing.yaml"], "cannot read configuration file missing.yaml"),
    ]


@pytest.mark.parametrize(("arguments", "message"), mistakes())
def test_mistake_is_one_line_and_leaves_nothing(config, tmp_path, arguments, message):
    output = run(tmp_path / "run", config, *arguments, expect=2, anew=True)
    assert re.search(message, output) and output.startswith("neox: error: ") and output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_mistake_found_late_ends_every_rank_alike(config, tmp_path):
    output = run(tmp_path / "run", config, "data.index_dir=/proc/none", world_size=2, expect=2)
    errors = [line for line in output.splitlines() if "neox: error: " in line]
    assert len(errors) == 1 and "cannot make the folder /proc/none" in errors[0] and "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_flipped_byte_is_found_and_the_checkpoint_before_goes_on(uninterrupted, config, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    checkpoints = run_dir / "checkpoints"
    file = checkpoints / f"step_{STEPS:08d}" / "rank_00001.safetensors"
    manifest = checkpoints / f"step_{STEPS:08d}" / "manifest.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good.replace(b'"samples": 320', b'"samples": 321'))  # or the run would be finished already
    data = bytearray((checkpoints / "step_00000030" / file.name).read_bytes())
    data[-3] ^= 1
    (checkpoints / "step_00000030" / file.name).write_bytes(data)
    output = run(run_dir, config, world_size=2)
    for step, name in ((STEPS, manifest.name), (30, file.name)):
        assert f"checkpoints/step_{step:08d}/{name} is damaged: its sha256" in output
        assert f"the checkpoint of step {step} is not used, and is now {checkpoints}/damaged_step_{step:08d}" in output
    assert f"going on from {checkpoints}/step_00000020\n" in output
    assert curve(run_dir) == curve(uninterrupted)
    assert Store(checkpoints).steps() == Store(uninterrupted / "checkpoints").steps()


def test_checkpoint_before_a_damaged_one_needs_its_own_samples(uninterrupted, config, tmp_path):
    """After step 10 the order has enough samples for the larger batches, after step 5, which goes on instead, not."""
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    checkpoints = run_dir / "checkpoints"
    for step in (20, 30, 40):
        shutil.rmtree(checkpoints / f"step_{step:08d}")
    (checkpoints / "step_00000010" / "rank_00000.safetensors").write_bytes(b"")
    steps = 5 + (ORDER - 40) // 16 + 1
    assert 80 + (steps - 10) * 16 <= ORDER < 40 + (steps - 5) * 16
    changed = ["train.global_batch_size=16", f"train.steps={steps}", "optim.decay_steps=40"]
    output = run(run_dir, config, *changed, expect=2)
    assert f"going on from {checkpoints}/step_00000005\n" in output
    assert f"neox: error: train.steps = {steps}: the run would need {40 + (steps - 5) * 16} samples" in output
    assert "Traceback" not in output


def test_older_of_two_starts_says_why_it_ends_and_writes_nothing(config, tmp_path):
    run_dir, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    older = Launch(run_dir, config, world_size=2)
    older.wait_for_step(13)
    older.signal(signal.SIGSTOP)  # a node that the scheduler lost sight of
    run(run_dir, config, world_size=2)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if "tensorboard" not in path.parts}
    older.signal(signal.SIGCONT)
    assert older.wait() == [1, 1]
    errors = [line for line in older.output.splitlines() if "neox: error: " in line]
    assert len(errors) == 1 and "has taken this run over; this copy of it writes nothing more" in errors[0]
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if "tensorboard" not in p.parts} == before
    assert Store(checkpoints).steps() == [0, 5, 10, 20, 30, 40]


def test_run_goes_on_from_s3_where_nothing_else_is_left(uninterrupted, config, tmp_path, bucket):  # noqa: F811
    run_dir, mirror = tmp_path / "moving", "checkpoint.mirror=s3://models/runs"
    first = Launch(run_dir, config, mirror, world_size=2, anew=True)  # a forked rank may have no process of its own
    first.wait_for_step(13)
    first.signal(signal.SIGUSR2)
    assert first.wait() == [85, 85]
    (stopped_at,) = {record["step"] for record in records(run_dir)[-1:]}
    shutil.rmtree(run_dir)
    output = run(run_dir, config, mirror, world_size=2, anew=True)
    assert f"fetched the checkpoint of step {stopped_at} from s3://models/runs/moving" in output
    assert curve(run_dir) == curve(uninterrupted)
    steps = {stopped_at, *Store(uninterrupted / "checkpoints").steps()}
    assert complete_steps(s3.Place("models", "runs/moving")) == sorted(steps)
    other = Launch(tmp_path / "elsewhere" / "moving", config, mirror, "optim.lr=1e-3")
    assert other.wait() == [2] and "optim.lr = 0.001: the run in" in other.output


def test_full_disk_stops_the_run_with_one_line(config, tmp_path):
    limit = 100_000  # bytes a file: logs fit, a checkpoint does not

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    output = run(tmp_path / "run", config, expect=1, anew=True, preexec_fn=limit_files)
    errors = [line for line in output.splitlines() if "neox: error: " in line]
    assert len(errors) == 1 and "step_00000000: checkpoint not saved" in errors[0] and "Traceback" not in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [generation.NAME]


def test_what_is_refused_leaves_no_index_maps_beside_the_data(config, tmp_path):
    """A run that goes on with other data, or with more steps than its order of samples has, writes nothing."""
    folder = tmp_path / "data"
    own = write_config(folder)
    run(tmp_path / "run", own, "train.steps=5")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    other = write_tokens(tmp_path / "other", num_documents=50)
    more = ["train.steps=9000", "optim.decay_steps=5"]
    for arguments, message in (
        (["train.steps=6", "optim.decay_steps=5", f"data.path={other}"], r"has \[documents, tokens\] = \[50, "),
        (more, "train.steps = 9000: the run would need 72000 samples"),
    ):
        output = run(tmp_path / "run", own, *arguments, expect=2)
        assert re.search(message, output) and output.count("\n") == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.glob("other*")) == ["other.bin", "other.idx"]


def test_another_batch_size_goes_on_at_the_next_sample(uninterrupted, config, tmp_path):
    """5 steps of 8 samples on two ranks, then 16 a step on one, the first over samples 40 to 55 of the same order."""
    run_dir = tmp_path / "moved"
    shutil.copytree(uninterrupted, run_dir)
    for step in (10, 20, 30, 40):
        shutil.rmtree(run_dir / "checkpoints" / f"step_{step:08d}")
    larger = ["train.global_batch_size=16", "train.steps=22", "optim.decay_steps=40"]
    expected = loss_of(run_dir / "checkpoints" / "step_00000005", config, range(40, 56))
    run(run_dir, config, *larger)
    steps = steps_of(run_dir)
    assert [r["samples"] for r in steps][4:7] == [40, 56, 72] and steps[-1]["samples"] == 312
    assert steps[5]["loss"] == pytest.approx(expected, rel=1e-5)
    assert not list(config.parent.glob("*_352ns_*")), "another order"
    state = manifests.read(run_dir / "checkpoints" / "step_00000020").state
    assert (state["samples"], state["data"]["requested"]) == (280, 320)


def loss_of(checkpoint: Path, config: Path, items: range, *overrides: str) -> float:
    """Loss of a checkpoint's weights on samples of the training part, by the single-device model."""
    cfg = resolve(load_config([config], overrides), 1)
    model = GPT(cfg.model, padded_vocab(cfg.model))
    load_model_weights(model, checkpoint)
    dataset = plan_part(cfg, "train").open()
    text, labels = (
        torch.from_numpy(np.stack(column)) for column in zip(*(dataset[item] for item in items), strict=True)
    )
    with torch.no_grad():
        return float(F.cross_entropy(model(text[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100))


def test_label_files_of_a_blend_say_what_counts(config, tmp_path):
    """The mean is over all that counts in the global batch, however it is cut, with the vocabulary on two ranks too."""
    prefixes, labels = [config.parent / "tokens", write_tokens(tmp_path / "more", 9)], []
    for text in map(IndexedReader, prefixes):
        rows = np.where(np.random.default_rng(5).random(len(text.tokens)) < 0.4, -100, text.tokens.astype(np.int32))
        labels.append(tmp_path / f"labels{len(labels)}")
        with IndexedWriter(labels[-1], rows.dtype) as writer:
            writer.add_items(rows, text.sizes)
    paths = [f"data.train_{name}paths=[{a}, {b}]" for name, (a, b) in (("", prefixes), ("label_", labels))]
    paths += ["data.path=null", "data.train_weights=[3, 1]"]
    rest = ["data.packing=pack_until_overflow", f"data.index_dir={tmp_path}/maps", "train.valid_interval=0"]
    size = ["train.steps=1", "train.global_batch_size=4", "train.micro_batch_size=1", "checkpoint.steps=[0]"]
    overrides = [*paths, *rest, *size]
    run(tmp_path / "run", config, *overrides, "parallel.tp=2", world_size=2)
    expected = loss_of(tmp_path / "run" / "checkpoints" / "step_00000000", config, range(4), *overrides)
    assert steps_of(tmp_path / "run")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_compat_follows_gpt_neox_curve(config, tmp_path):
    """Version 1.0 begins with rate 0, so that its first step changes no weight."""
    run(tmp_path / "run", config, "compat=neox_v1", "train.steps=3", "optim.decay_steps=40", "checkpoint.steps=[0,1]")
    assert [r["lr"] for r in steps_of(tmp_path / "run")] == [0.0, 3e-3 * 1 / 4.0, 3e-3 * 2 / 4.0]
    before, after = (TensorReader(tmp_path / "run" / "checkpoints" / f"step_0000000{step}") for step in (0, 1))
    assert all(torch.equal(before.read("weight", name), after.read("weight", name)) for name in before.names())
