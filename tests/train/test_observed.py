"""What is asked for beside training, traces and curves elsewhere, changes nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neox.config.errors import UserError
from neox.config.schema import LogConfig
from neox.train.profile import Profile
from neox.train.tracker import check_tracker
from tests.train.launch import run, steps_of, write_config

FAKE_WANDB = """
import json, pathlib
class errors:
    Error = RuntimeError
def note(what, value):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        file.write(json.dumps([what, value], default=str) + "\\n")
class Settings(dict):
    pass
class init:
    def __init__(self, **options):
        note("init", options)
    def log(self, values, step):
        note("log", [step, values])
    def finish(self):
        note("finish", None)
"""
"""A fake of the package at its outer boundary: it writes down what it is asked. The real one was tried by hand."""
STEPS = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Any]]:
    """A plain run; one with everything on, in two parts; and what W&B was asked."""
    config, folder = write_config(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs")
    (folder / "wandb.py").write_text(FAKE_WANDB)
    common = (config, "train.valid_interval=5", "train.valid_batches=1", "checkpoint.steps=[]", "log.tensorboard=false")
    run(folder / "plain", *common, f"train.steps={STEPS}", anew=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        observed = (*common, "log.wandb=offline", "log.wandb_group=g", "log.profile_steps=[2,3]")
        run(
            folder / "observed",
            *observed,
            "train.steps=4",
            f"optim.decay_steps={STEPS}",
            "log.profile_steps=[2,3]",
            anew=True,
        )
        run(folder / "observed", *observed, f"train.steps={STEPS}", "log.profile_steps=[2,3]", anew=True)
    calls = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    return folder / "plain", folder / "observed", calls


def test_losses_are_those_of_a_plain_run(runs: Any) -> None:
    plain, observed = ([(r["loss"], r["grad_norm"]) for r in steps_of(folder)] for folder in runs[:2])
    assert len(plain) == STEPS and observed == plain


def test_trace_holds_the_steps_asked_for(runs: Any) -> None:
    traces = list((runs[1] / "profile").iterdir())
    assert [trace.name for trace in traces] == ["rank_00000.json"], "and the second part has none of these steps"
    names = [event.get("name") for event in json.loads(traces[0].read_text())["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 2 * 2, "of both groups of parameters, in two steps"


def test_parts_of_a_run_are_one_run_in_wandb(runs: Any) -> None:
    starts = [value for what, value in runs[2] if what == "init"]
    assert [(s["resume"], s["name"], s["mode"]) for s in starts] == [("allow", "observed", "offline")] * 2
    assert len(starts[0]["id"]) == 8 and starts[0]["id"] == starts[1]["id"]
    assert starts[0]["group"] == "g" and starts[0]["config"]["train"]["steps"] == 4
    drawn = [value for what, value in runs[2] if what == "log"]
    losses = {step: values["train/loss"] for step, values in drawn if "train/loss" in values}
    assert losses == {record["step"]: record["loss"] for record in steps_of(runs[1])}
    assert [step for step, values in drawn if "valid/loss" in values] == [4, 5, 6]
    assert [what for what, _ in runs[2]].count("finish") == 2


def test_what_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_tracker(LogConfig())
    with pytest.raises(UserError, match=r"log\.wandb = online: the package wandb is not installed"):
        check_tracker(LogConfig(wandb="online"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"log\.memory_snapshot = True: .*there is no GPU here"):
        Profile(LogConfig(profile_steps=(1, 2), memory_snapshot=True), tmp_path, 0)
