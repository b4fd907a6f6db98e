"""A rank that hangs ends the launch, and every rank that can says where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neox.train.watchdog import step_limit_s
from tests.train.hanging import HANGING_STEP, SLOW_S
from tests.train.launch import records, steps_of, write_config

HOWS = ("stopped", "asleep")
TIMEOUT_S = 2
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, subprocess.CompletedProcess[str]]]:
    """Run directory and end of a launch by each way of hanging, of 2 ranks; both at a time, for they mostly wait."""
    config = write_config(tmp_path_factory.mktemp("data"))
    folders = {how: tmp_path_factory.mktemp("runs") / how for how in HOWS}
    processes = {how: launch(how, folder, config) for how, folder in folders.items()}
    ends = {}
    for how, process in processes.items():
        out, _ = process.communicate(timeout=200)
        ends[how] = (folders[how], subprocess.CompletedProcess(process.args, process.returncode, out))
    return ends


def launch(how: str, run_dir: Path, config: Path) -> subprocess.Popen[str]:
    trainer = [sys.executable, "-m", "tests.train.hanging", how, "train", "--run-dir", str(run_dir), str(config)]
    overrides = ["train.valid_interval=3", f"train.step_timeout_s={TIMEOUT_S}"]
    command = ["-m", "jobs", "launch", "--site", "local", "--ranks-per-node", "2", "--", *trainer, *overrides]
    environ: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command], env=environ, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("how", HOWS)
def test_a_hanging_rank_ends_the_launch_as_failed(launches: Any, how: str) -> None:
    run_dir, end = launches[how]
    assert end.returncode == 1, end.stdout
    assert steps_of(run_dir)[-1]["step"] == HANGING_STEP - 1, "and neither the first step"
    assert "valid_loss" in records(run_dir)[3] and SLOW_S > TIMEOUT_S, "nor a validation may trip it"
    line = f"neox: error: rank 0: step {HANGING_STEP} did not end within {TIMEOUT_S} s (train.step_timeout_s)"
    assert line in end.stdout


@pytest.mark.parametrize("how", HOWS)
def test_every_rank_that_can_says_where_it_was(launches: Any, how: str) -> None:
    run_dir, end = launches[how]
    stacks = {file.name: file.read_text() for file in (run_dir / "logs").glob("stacks_*")}
    names = {"stopped": ["stacks_rank_00000.txt"], "asleep": ["stacks_rank_00000.txt", "stacks_rank_00001.txt"]}[how]
    assert sorted(stacks) == names, end.stdout
    waiting = stacks["stacks_rank_00000.txt"]
    assert f"rank 0: step {HANGING_STEP}" in waiting.splitlines()[0]
    assert "distributed_c10d.py" in waiting and "loop.py" in waiting, "it waits in a collective of the step"
    if how == "asleep":
        assert 'hanging.py", line' in stacks["stacks_rank_00001.txt"] and "in hang" in stacks["stacks_rank_00001.txt"]


def test_a_call_that_keeps_pythons_lock_is_no_shelter() -> None:
    script = """
import ctypes, pathlib
from neox.train import watchdog
watchdog.EXIT_DELAY_S = 0.2
with watchdog.Watchdog(pathlib.Path("none"), 0, 0.2) as dog:
    for number in (1, 2):
        with dog.step(number):
            ctypes.PyDLL(None).sleep(number)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and 'File "<string>", line 8 in <module>' in done.stderr, done.stderr


def test_the_limit_follows_the_steps() -> None:
    assert step_limit_s(None, []) == step_limit_s(None, [0.5, 0.5]) == 300
    assert step_limit_s(None, [60, 70, 400]) == 1400
    assert step_limit_s(7, [60]) == 7
