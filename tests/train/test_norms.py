"""Norms of a run's tensors against those of its checkpoint, whole tensors that know no layout; and its noise scale."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from neox.checkpoint.reshard import TensorReader
from neox.config.schema import OptimConfig
from neox.parallel.engine import StepResult
from neox.parallel.pieces import Piece
from neox.train import norms
from neox.train.noise import NoiseScale
from tests.parallel.training import Case
from tests.train.launch import Launch, records, steps_of, write_config

LAYOUTS = {"dp2": (), "tp2": ("parallel.tp=2",), "pp2": ("parallel.pp=2", "model.tie_embeddings=true")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories by layout, of 5 steps on 2 ranks."""
    config, folder = write_config(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs")
    common = (config, "train.steps=5", "train.valid_interval=0", "log.tensorboard=false")
    common += ("log.state_norms_interval=5", "log.gradient_norms_interval=4", "log.noise_scale_steps=2")
    launches = {name: Launch(folder / name, *common, *LAYOUTS[name], world_size=2) for name in LAYOUTS}
    for launch in launches.values():
        assert launch.wait() == [0, 0], launch.output
    return {name: launch.run_dir for name, launch in launches.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_are_those_of_the_whole_tensors(runs: dict[str, Path], layout: str) -> None:
    measured = {record["step"]: record for record in records(runs[layout]) if "norms" in record}
    assert list(measured) == [4, 5]
    found, reader = measured[5]["norms"], TensorReader(runs[layout] / "checkpoints" / "step_00000005")
    saved = set(reader.manifest.tensors())
    assert set(found) == {f"{kind}/{name}" for kind, name in saved}
    for kind, name in saved:
        expected = float(torch.as_tensor(reader.read(kind, name)).double().norm())
        assert found[f"{kind}/{name}"] == pytest.approx(expected, rel=1e-9), name
    assert found["exp_avg/embed.weight"] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_of_gradients_make_up_that_of_the_step(runs: dict[str, Path], layout: str) -> None:
    (measured,) = (record for record in records(runs[layout]) if record["step"] == 4 and "norms" in record)
    whole = next(step["grad_norm"] for step in steps_of(runs[layout]) if step["step"] == 4)
    assert math.hypot(*measured["norms"].values()) == pytest.approx(whole, rel=1e-5)
    zeros = measured["zeros"]
    assert zeros["layers.0.attn.out.weight"] == 0
    # Those of tokens that the step has not met, unless the head's gradient, of all tokens, is the same tensor's.
    is_tied = "model.tie_embeddings=true" in LAYOUTS[layout]
    assert zeros["embed.weight"] == 0 if is_tied else 0 < zeros["embed.weight"] < 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_tells_and_keeps_the_noise_of_its_gradients(runs: dict[str, Path], layout: str) -> None:
    """What it is worth is compared in tests/parallel/test_layouts.py."""
    found = [record for record in records(runs[layout]) if "noise_scale" in record]
    assert [record["step"] for record in found] == [2, 4]
    state = TensorReader(runs[layout] / "checkpoints" / "step_00000005").manifest.state["noise"]
    assert state["num_estimates"] == 2
    assert state["gradient_variance"] / (1 - 0.99**2) == pytest.approx(found[-1]["gradient_variance"])


def test_a_square_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "PART", 64)
    x, doubles = torch.randn(1000), []
    real = torch.linalg.vector_norm
    monkeypatch.setattr(
        torch.linalg, "vector_norm", lambda part, **keys: doubles.append(len(part)) or real(part, **keys)
    )
    assert norms.square(x) == pytest.approx(float(x.double().square().sum()), rel=1e-12)
    assert max(doubles) == 64 and sum(doubles) == 1000


class OneRank:
    """An engine's sum where there is but one rank."""

    sum_over_ranks = staticmethod(list)

    def __init__(self, pieces: tuple[Piece, ...] = ()) -> None:
        self.pieces = lambda: pieces


def test_factors_are_no_moments() -> None:
    """Adafactor's are of the shape of no tensor."""
    config = Case("", optim=OptimConfig(name="adafactor")).config()
    name, ones = "embed.weight", torch.ones(9)
    kinds = ("weight", "exp_avg_sq_row", "exp_avg_sq_col")
    pieces = tuple(Piece(kind, name, (9,), None, 0, 1, 0, 9, ones) for kind in kinds)
    measured = norms.StateNorms(config).measure(OneRank(pieces))  # type: ignore[arg-type]
    assert measured[f"weight/{name}"] == 3 and not any("exp_avg" in key for key in measured)


def noise_of(steps: range, meter: NoiseScale, skipped: int = 0) -> dict[int, dict[str, float] | None]:
    """What the meter says after each step, over gradients that depend on the number of the step alone."""
    found = {}
    for step in steps:
        gradient = torch.randn(50, generator=torch.Generator().manual_seed(step))
        if meter.needs(step):
            meter.see(Piece("gradient", "w", (50,), None, 0, 1, 0, 50, gradient))
        result = StepResult(1.0, float(gradient.norm()), is_skipped=step == skipped)
        found[step] = meter.update(OneRank(), step, (8, 16), result)  # type: ignore[arg-type]
    return found


def test_noise_goes_on_where_a_checkpoint_left_it() -> None:
    """From the end of a window as if nothing had been; from the midst of one that window is left out."""
    whole = noise_of(range(1, 13), NoiseScale(3))
    assert [step for step, noise in whole.items() if noise] == [3, 6, 9, 12]
    first, second = NoiseScale(3), NoiseScale(3)
    noise_of(range(1, 7), first)
    second.restore(json.loads(json.dumps(first.state())))
    assert noise_of(range(7, 13), second) == {step: whole[step] for step in range(7, 13)}
    first, second = NoiseScale(3), NoiseScale(3)
    noise_of(range(1, 6), first)
    second.restore(first.state())
    assert [step for step, noise in noise_of(range(6, 13), second).items() if noise] == [9, 12]
    noise_of(range(13, 15), second)
    second.restore(second.state())
    assert not any(noise_of(range(14, 16), second).values()), "after a rewind too"


def test_a_window_with_a_skipped_step_tells_nothing() -> None:
    found = noise_of(range(1, 10), NoiseScale(3), skipped=5)
    assert [step for step, noise in found.items() if noise] == [3, 9]
