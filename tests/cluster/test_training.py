"""A training that outlives what happens to it: the losses are bit for bit those of a run to which nothing happened."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Slurm, wait_for
from tests.train import launch

pytestmark = [pytest.mark.cluster, pytest.mark.soak]
Interrupt = Callable[[subprocess.Popen[str], int], int]
LONG = """
parallel: {dp: 2, pp: 2}
train: {steps: 500, global_batch_size: 64}
checkpoint: {interval: 40}
"""
"""Long enough that no machine is done with it before all has happened."""
RANK = r"^\S+ -m neox train --run-dir run tiny\.yaml long\.yaml$"
"""The command line of a rank, not of what is around it."""


class Run:
    """The training job of one workflow, and what can happen to it."""

    def __init__(self, cluster: Slurm, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.run_dir = folder / "run"
        self.snakemake = cluster.start(folder, "run/train_summary.json")

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: any(record["step"] >= step for record in launch.steps_of(self.run_dir)), 180)

    def kill_rank(self) -> None:
        ranks = subprocess.run(["pgrep", "-f", RANK], capture_output=True).stdout.split()
        assert len(ranks) == 4
        os.kill(int(ranks[1]), signal.SIGKILL)

    def lose_a_node(self) -> None:
        node = self.cluster.hosts_of("trained")[0]
        self.cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        wait_for(lambda: not self.cluster.hosts_of("trained"), 30)
        self.cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[dict[str, float]]:
    """The steps of the same training on this machine, without a scheduler."""
    files = [launch.write_config(tmp_path), tmp_path / "long.yaml"]
    files[1].write_text(LONG)
    whole = launch.Launch(tmp_path / "undisturbed", *files, world_size=4)
    assert whole.wait(limit_s=900) == [0] * 4, whole.output
    return launch.steps_of(tmp_path / "undisturbed")


def test_losses_do_not_tell_what_happened(
    cluster: Slurm, tmp_path: Path, undisturbed: list[dict[str, float]], interrupt: Interrupt
) -> None:
    run = Run(cluster, tmp_path)
    run.wait_for_step(5)
    cluster.preempt(tmp_path)
    run.wait_for_step(50)  # behind the checkpoint of step 40, without which a crash would be final
    run.kill_rank()
    wait_for(lambda: (run.run_dir / "segments.jsonl").read_text().count("\n") == 2, 60)
    run.wait_for_step(60)
    cluster.restart_controller()
    interrupt(run.snakemake, signal.SIGKILL)
    run.snakemake = cluster.start(tmp_path, "run/train_summary.json")
    run.wait_for_step(90)
    run.lose_a_node()
    assert run.snakemake.wait(timeout=400) == 0, (tmp_path / "out.log").read_text()

    made = [(record["step"], record["loss"], record["grad_norm"]) for record in launch.steps_of(run.run_dir)]
    assert made == [(record["step"], record["loss"], record["grad_norm"]) for record in undisturbed]
    causes = [json.loads(line)["cause"] for line in (run.run_dir / "segments.jsonl").read_text().splitlines()]
    assert causes[0] == "saved after SIGUSR2" and causes[-1] == "finished", causes
    assert any(re.fullmatch(r"rank \d was killed by SIGKILL", cause) for cause in causes), causes
    log = (tmp_path / "out.log").read_text()
    assert log.count("submitted as") == 1 and log.count("adopted slurm job") == 1
    assert len({job_id for job_id, _ in cluster.history("trained")}) == 1, "one submission"
    orphans = ["pgrep", "-f", f"{tmp_path}|neox train --run-dir run"]
    wait_for(lambda: subprocess.run(orphans, capture_output=True).returncode == 1, 20)
