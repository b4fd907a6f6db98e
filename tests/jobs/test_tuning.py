"""Sweeping a site's knobs: the statistics, what is tried and kept, and what an overlay does to a launch."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import launcher, ranking
from jobs.errors import UserError
from jobs.site import Knob, Site, load_site, with_overlay
from jobs.tuning import BASELINE, Sweep

COMMAND = ("bench", "--output", "{output}")
KNOBS = (Knob("algorithm", ({"ALGO": "ring"}, {"ALGO": "tree"})), Knob("limit", ({"LIMIT": "1", "UNIT": "k"},)))


@pytest.fixture
def site() -> Site:
    return replace(load_site("local"), tuning=KNOBS)


def measured(
    monkeypatch: pytest.MonkeyPatch, factors: dict[str, float], noise: float = 0.02, seed: int = 1, spikes: float = 0
) -> list[dict[str, str]]:
    """Launches become seconds: a drifting machine's, times the factor of every variable's value. Returns what ran.

    `spikes`: share of the launches that something else slowed down, without bound.
    """
    ran: list[dict[str, str]] = []
    generator = random.Random(seed)

    def run(site: Site, command: list[str], *rest: Any) -> int:
        ran.append(site.environment)
        seconds = (1 + len(ran) / 50) * generator.lognormvariate(0, noise)
        seconds *= generator.paretovariate(1.2) if generator.random() < spikes else 1
        for value in site.environment.values():
            seconds *= factors.get(value, 1)
        if seconds == float("inf"):
            return 1
        Path(command[-1]).write_text(json.dumps({"step_s": seconds}))
        return 0

    monkeypatch.setattr(launcher, "run", run)
    return ran


def overlay(folder: Path) -> dict[str, str]:
    settings = yaml.safe_load((folder / "overlay.yaml").read_text())["environment"]
    return {item["name"]: item["value"] for item in settings}


def test_intervals_hold_as_often_as_they_say() -> None:
    generator, held, trials = random.Random(0), 0, 400
    for _ in range(trials):
        pairs = {
            BASELINE: [1.0] * 12,
            **{str(i): [generator.lognormvariate(0, 1) for _ in range(12)] for i in range(3)},
        }
        held += all(one.low <= 1 <= one.high for one in ranking.rank(pairs, BASELINE))
    assert held / trials >= ranking.CONFIDENCE


@pytest.mark.parametrize("num_candidates", [1, 2, 7, 30])
def test_the_least_rounds_are_enough_and_one_less_is_not(num_candidates: int) -> None:
    error = (1 - ranking.CONFIDENCE) / num_candidates
    rounds = ranking.least_rounds(num_candidates)
    assert 2 * 0.5**rounds <= error < 2 * 0.5 ** (rounds - 1)
    assert ranking.skipped_at_each_end(rounds, error) == 0


def test_the_better_settings_are_found_and_combined(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = measured(monkeypatch, {"tree": 0.8, "ring": 0.9, "k": 0.85})
    assert Sweep(site, COMMAND, 1, 2, 12, tmp_path).run() == 0
    assert overlay(tmp_path) == {"ALGO": "tree", "LIMIT": "1", "UNIT": "k"}
    assert len(ran) == 12 * (1 + 3) + 12 * (1 + 2)
    assert all(site.environment.items() <= environment.items() for environment in ran)


def test_settings_that_spoil_each_other_are_not_combined(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, {"tree": 0.8, "k": 0.85})
    alone = launcher.run

    def run(site: Site, command: list[str], *rest: Any) -> int:
        code = alone(site, command, *rest)
        if {"ALGO", "LIMIT"} <= site.environment.keys():
            Path(command[-1]).write_text('{"step_s": 3}')
        return code

    monkeypatch.setattr(launcher, "run", run)
    Sweep(site, COMMAND, 1, 2, 12, tmp_path).run()
    assert overlay(tmp_path) == {"ALGO": "tree"}


def test_noise_is_not_taken_for_a_gain(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, {}, noise=0.5)
    Sweep(site, COMMAND, 1, 2, 12, tmp_path).run()
    assert overlay(tmp_path) == {}
    assert capsys.readouterr().out.endswith("nothing is measurably faster than the site's settings\n")


@pytest.mark.parametrize(("factor", "least", "most"), [(1.0, 0, 1), (0.9, 12, 20)])
def test_on_a_busy_machine_a_tenth_is_found_and_nothing_is_not(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, least: int, most: int
) -> None:
    """Of 20 sweeps; at the stated confidence one may find what is not there."""
    found = 0
    for seed in range(20):
        measured(monkeypatch, {"tree": factor}, noise=0.05, seed=seed, spikes=0.2)
        Sweep(site, COMMAND, 1, 2, 20, tmp_path / str(seed)).run()
        found += bool(overlay(tmp_path / str(seed)))
    assert least <= found <= most


def test_settings_that_fail_are_left_out_at_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = measured(monkeypatch, {"tree": float("inf"), "ring": 0.8})
    Sweep(site, COMMAND, 1, 2, 12, tmp_path).run()
    assert overlay(tmp_path) == {"ALGO": "ring"}
    assert sum(environment.get("ALGO") == "tree" for environment in ran) == 1


@pytest.mark.parametrize("code", [85, 143])
def test_an_interrupted_sweep_goes_on(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """By the end of the job, or by Ctrl-C, of which the ranks die."""
    ran = measured(monkeypatch, {"tree": 0.8})
    ours = launcher.run
    monkeypatch.setattr(launcher, "run", lambda *given: code if len(ran) == 20 else ours(*given))
    assert Sweep(site, COMMAND, 1, 2, 12, tmp_path).run() == 85
    monkeypatch.setattr(launcher, "run", ours)
    assert Sweep(site, COMMAND, 1, 2, 12, tmp_path).run() == 0
    assert overlay(tmp_path) == {"ALGO": "tree"} and len(ran) == 12 * 4 + 12 * 2
    fewer = replace(site, tuning=KNOBS[1:])
    assert Sweep(fewer, COMMAND, 1, 2, 10, tmp_path).run() == 0, "trials of other knobs and rounds are passed over"
    ranking = json.loads((tmp_path / "ranking.json").read_text())
    assert [(one["name"], one["rounds"]) for one in ranking["screen"]] == [("LIMIT=1 UNIT=k", 10)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 4}, r"--rounds 4: 3 choices need at least 7"),
        ({"command": ("bench",)}, r"the command must have \{output\}"),
        ({"site": load_site("local")}, r"site local: its site.yaml has no `tuning`"),
    ],
)
def test_what_cannot_be_tuned_is_refused(site: Site, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(Sweep(site, COMMAND, 1, 2, 12, tmp_path), **changes).run()


def test_a_command_that_fails_ends_the_sweep(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "run", lambda *given: 3)
    with pytest.raises(UserError, match=r"fails with the site's own settings \(exit code 3\)"):
        Sweep(site, COMMAND, 1, 2, 12, tmp_path).run()
    assert not (tmp_path / "overlay.yaml").exists()


def test_overlay_wins_over_the_site_and_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "overlay.yaml"
    file.write_text("environment:\n- {name: GLOO_SOCKET_IFNAME, value: eth0, reason: measured}\n")
    command = [
        sys.executable,
        "-m",
        "jobs",
        "launch",
        "--site",
        "local",
        "--overlay",
        str(file),
        "--dry-run",
        "--",
        "x",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout
    assert "GLOO_SOCKET_IFNAME=eth0\n" in shown and "PYTHONUNBUFFERED=1\n" in shown
    file.write_text("environment:\n- {name: 7up, value: eth0, reason: measured}\n")
    with pytest.raises(UserError, match=r"overlay.yaml: environment\.0\.name: '7up'"):
        with_overlay(load_site("local"), file)
    file.write_text("launcher: srun\n")
    with pytest.raises(UserError, match=r"overlay.yaml: launcher: unknown key"):
        with_overlay(load_site("local"), file)
