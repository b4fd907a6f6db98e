"""Bad steps: one is found where it is, what the policy says is done on all ranks alike, and it is written down."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from neox.config.schema import TrainConfig
from neox.parallel.engine import StepResult
from neox.train.anomaly import Watch
from tests.distributed import run_ranks
from tests.train.launch import CONFIG, Launch, write_config
from tests.train.poisoned import Case, run_cases, write_noisy, write_rare

SHORT = ("train.steps=30", "checkpoint.interval=5", "train.valid_interval=0", "log.tensorboard=false", "data.seed=1235")
REWIND = (*SHORT, "train.on_nonfinite=rewind")
SPIKE = (
    *SHORT,
    "train.spike_window=8",
    "train.spike_sigma=8.0",
    "optim.schedule=constant",
    "optim.lr=1e-2",
    "data.seed=1241",
)


def good(loss: float) -> StepResult:
    return StepResult(loss, 1.0)


def test_a_spike_is_measured_against_the_losses_before_it() -> None:
    watch = Watch(TrainConfig(spike_window=8, spike_sigma=3.0))
    losses = [2.0, 2.1, 1.9]
    assert not any(watch.judge(good(loss)) for loss in (*losses, 2.0))
    assert watch.judge(good(2.2)) is None, "mean 2.0, deviation 0.082: within three"
    spike = watch.judge(good(2.8))
    assert spike is not None and spike.action == "log" and "2.8000 is more than 3 standard deviations" in spike.reason
    assert watch.judge(good(2.8)) is not None, "a spike is not remembered"
    assert watch.judge(good(1.0)) is None, "a low loss is none"
    assert not Watch(TrainConfig()).is_spike(1e9), "nothing to compare with"


def test_state_goes_through_json_and_answers_alike() -> None:
    watch, other = Watch(TrainConfig(spike_window=4)), Watch(TrainConfig(spike_window=4))
    for loss in (2.0, 2.1, math.nan, 1.9, 1.8):
        watch.judge(StepResult(loss, 1.0, is_skipped=math.isnan(loss)))
    other.restore(json.loads(json.dumps(watch.state())))
    assert other.state() == watch.state() and other.num_skipped == 1
    assert other.is_spike(2.9) == watch.is_spike(2.9) is True


def test_fp16_may_skip_while_it_finds_its_loss_scale_but_not_for_ever() -> None:
    skipped = StepResult(2.0, math.inf, is_skipped=True)
    watch = Watch(TrainConfig(precision="fp16", max_skipped=3))
    assert [watch.judge(result) for result in (skipped, skipped, good(2.0), skipped, skipped)] == [None] * 5
    last = watch.judge(skipped)
    assert last is not None and last.action == "stop" and "3 steps in a row" in last.reason
    anomaly = Watch(TrainConfig()).judge(skipped)
    assert anomaly is not None and anomaly.action == "skip", "in fp32 the gradients must be finite"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Name of the case → what each of two ranks ended with."""
    folder = tmp_path_factory.mktemp("poisoned")
    found: dict[str, list[dict[str, Any]]] = {}
    for write, cases in ((write_rare, weight_cases(folder)), (write_noisy, DATA_CASES)):
        config = folder / f"{write.__name__}.yaml"
        config.write_text(CONFIG.replace("PREFIX", str(write(folder / write.__name__))))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NEOX_MTBF_H", "1000")
            by_rank = run_ranks(run_cases, 2, cases, config, folder)
        found |= {case.name: [outs[case.name] for outs in by_rank] for case in cases}
    for ranks in found.values():
        ranks[0]["bad_steps"] = sorted({step for rank in ranks for step in rank["bad_steps"]})
    return found


def weight_cases(folder: Path) -> list[Case]:
    return [
        Case("dp2 skip", SHORT, poison=True),
        Case("pp2 skip", (*SHORT, "parallel.pp=2"), poison=True),
        Case("bf16 skip", (*SHORT, "train.precision=bf16"), poison=True),
        Case("zero3 skip", (*SHORT, "parallel.zero_stage=3"), poison=True),
        Case("dp2 rewind", REWIND, poison=True),
        Case("pp2 rewind", (*REWIND, "parallel.pp=2"), poison=True),
        Case("dp2 rewind resumed", REWIND, copy=folder / "dp2 rewind", copy_step=0),
        Case("dp2 one rewind", (*REWIND, "train.max_rewinds=1"), poison=True),
        Case("pp2 stop", (*SHORT, "parallel.pp=2", "train.on_nonfinite=stop"), poison=True),
    ]


HALF = ("bf16", "bf16 pp2", "bf16 zero2", "bf16 zero3")
DATA_CASES = [
    Case("pp2 spike skip", (*SPIKE, "parallel.pp=2", "train.on_spike=skip")),
    Case("dp2 spike skip", (*SPIKE, "train.on_spike=skip")),
    Case("zero3 spike skip", (*SPIKE, "parallel.zero_stage=3", "train.on_spike=skip")),
    Case("offload spike skip", (*SPIKE, "parallel.zero_stage=2", "parallel.offload=optimizer", "train.on_spike=skip")),
    Case("bf16 spike skip", (*SPIKE, "train.precision=bf16", "train.on_spike=skip")),
    Case("bf16 pp2 spike skip", (*SPIKE, "parallel.pp=2", "train.precision=bf16", "train.on_spike=skip")),
    Case("bf16 zero2 spike skip", (*SPIKE, "parallel.zero_stage=2", "train.precision=bf16", "train.on_spike=skip")),
    Case("bf16 zero3 spike skip", (*SPIKE, "parallel.zero_stage=3", "train.precision=bf16", "train.on_spike=skip")),
    Case("dp2 spike log", SPIKE),
]
SPIKE_ERRORS = {"pp2": 1e-4, "zero3": 1e-4, "offload": 1e-4} | dict.fromkeys(HALF, 0.05)
"""Relative, by layout, of losses and gradient norms: 1.4e-5 at most was found, and 0.017 in bf16."""


def events(outcome: dict[str, Any]) -> list[dict[str, Any]]:
    return [record for record in outcome["records"] if "event" in record]


def steps(outcome: dict[str, Any]) -> list[dict[str, Any]]:
    return [record for record in outcome["records"] if "loss" in record]


def test_all_ranks_agree(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for name, (first, second) in outcomes.items():
        first, second = ({k: out[k] for k in ("code", "samples", "updates", "watch")} for out in (first, second))
        assert json.dumps(first) == json.dumps(second), name


@pytest.mark.parametrize("layout", ["dp2", "pp2", "bf16", "zero3"])
def test_steps_that_meet_the_bad_weight_are_skipped_and_no_others(outcomes: Any, layout: str) -> None:
    out = outcomes[f"{layout} skip"][0]
    bad = [step for step in out["bad_steps"] if step <= 30]
    assert len(bad) == 2 and out["code"] == 0
    assert [(e["step"], e["event"]) for e in events(out)] == [(step, "skip") for step in bad]
    assert [r["step"] for r in steps(out) if r.get("skipped")] == bad
    assert [r["step"] for r in steps(out) if r["loss"] is None] == bad, "and the weights stayed finite"
    assert out["updates"] == 30 - len(bad)
    assert all("the loss is nan" in e["reason"] or "the loss is inf" in e["reason"] for e in events(out))


def test_the_rate_waits_for_skipped_steps(outcomes: Any) -> None:
    out = outcomes["dp2 skip"][0]
    rates = [r["lr"] for r in steps(out) if not r.get("skipped")]
    bad = out["bad_steps"][0]
    by_step = {r["step"]: r["lr"] for r in steps(out)}
    assert by_step[bad] == by_step[bad + 1], "as in GPT-NeoX, whose scheduler steps with the optimizer"
    assert len(set(rates)) >= len(rates) - 1, "the first two of the warm-up are equal"


def test_layouts_agree_about_every_other_loss(outcomes: Any) -> None:
    for kind in ("skip", "rewind"):
        a, b = (steps(outcomes[f"{layout} {kind}"][0]) for layout in ("dp2", "pp2"))
        assert [r["step"] for r in a] == [r["step"] for r in b]
        for one, two in zip(a, b, strict=True):
            assert one["loss"] == (two["loss"] and pytest.approx(two["loss"], rel=1e-5)), one["step"]


@pytest.mark.parametrize("layout", ["dp2", "pp2"])
def test_a_rewind_goes_on_behind_the_bad_data(outcomes: Any, layout: str) -> None:
    out = outcomes[f"{layout} rewind"][0]
    assert out["code"] == 0 and [r["step"] for r in steps(out)] == list(range(1, 31))
    assert all(r["loss"] is not None for r in steps(out)), "what the rewind went back over is dropped"
    first, *_ = events(out)
    bad = out["bad_steps"][0]
    assert (first["event"], first["from_step"], first["step"]) == ("rewind", bad, (bad - 1) // 5 * 5)
    assert first["samples"] == 8 * bad
    lost = sum(e["from_step"] - e["step"] for e in events(out))
    assert out["samples"] == 8 * (30 + lost) and out["watch"]["rewinds"] == len(events(out))
    last, by_step = events(out)[-1], {r["step"]: r["samples"] for r in steps(out)}
    assert by_step[last["step"] + 1] == last["samples"] + 8, "the next step reads what follows the bad one"
    assert first["step"] == last["step"] and first is not last, "both went back to the same checkpoint"


def test_no_saves_in_between_where_a_rewind_could_go_back_to_one(outcomes: Any) -> None:
    for name, ranks in outcomes.items():
        assert [out["saves_in_between"] for out in ranks] == [("rewind" not in name)] * 2, name


def test_a_resumed_run_rewinds_as_the_uninterrupted_one(outcomes: Any) -> None:
    def curve(name: str) -> list[Any]:
        hidden = ("step_time_s", "tokens_per_s", "model_tflops", "mfu", "hfu")
        return [{k: v for k, v in r.items() if k not in hidden} for r in outcomes[name][0]["records"]]

    assert curve("dp2 rewind resumed") == curve("dp2 rewind")


def test_limits_end_the_run_as_failed(outcomes: Any) -> None:
    assert len(events(outcomes["dp2 rewind"][0])) >= 2
    out = outcomes["dp2 one rewind"][0]
    assert out["code"] == 1
    assert [e["event"] for e in events(out)] == ["rewind", "stop"] and "max_rewinds" in events(out)[1]["reason"]
    out = outcomes["pp2 stop"][0]
    assert out["code"] == 1 and [e["step"] for e in events(out)] == out["bad_steps"][:1]


def test_a_spike_is_skipped_before_it_changes_the_weights(outcomes: Any) -> None:
    for layout in ("dp2", *SPIKE_ERRORS):
        out = outcomes[f"{layout} spike skip"][0]
        bad = [e["step"] for e in events(out)]
        assert bad == [19, 24] and {e["event"] for e in events(out)} == {"skip"}
        assert [r["step"] for r in steps(out) if r.get("skipped")] == bad
        assert out["updates"] == 30 - len(bad)
    logged = outcomes["dp2 spike log"][0]
    assert events(logged)[0]["event"] == "log" and logged["updates"] == 30
    assert events(logged)[0]["step"] == bad[0] and steps(logged)[: bad[0]] != []


@pytest.mark.parametrize("layout", SPIKE_ERRORS)
def test_a_skipped_spike_leaves_nothing_to_the_steps_after_it(outcomes: Any, layout: str) -> None:
    """Neither gradients nor moments: losses and norms of all other steps are those of two fp32 replicas."""
    got, want = (steps(outcomes[f"{name} spike skip"][0]) for name in (layout, "dp2"))
    for ours, theirs in zip(got, want, strict=True):
        if not theirs.get("skipped"):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=SPIKE_ERRORS[layout]), ours["step"]
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=SPIKE_ERRORS[layout]), ours["step"]


def test_a_run_that_diverges_fails_with_its_reason(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    changes = ("optim.lr=1e30", "optim.min_lr=0", "optim.schedule=constant", "optim.grad_clip=0", "train.max_skipped=3")
    launch = Launch(tmp_path / "run", config, *changes)
    assert launch.wait() == [1], launch.output
    assert "stop: 3 steps in a row were skipped (train.max_skipped)" in launch.output
    assert "Traceback" not in launch.output and not (tmp_path / "run" / "train_summary.json").exists()
