"""The executor plugin on a real Slurm: ranks, failures, requeues, Ctrl-C, and controllers that die."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.watch import log_text
from tests.cluster.conftest import Slurm, wait_for

pytestmark = pytest.mark.cluster
Interrupt = Callable[[subprocess.Popen[str], int], int]

NASTY = "-a 'b' \"$(touch pwned)\" `touch pwned` ;touch pwned 100%s ü"
"""The name of a folder."""


def segments(file: Path) -> list[tuple[int, int, str]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(line["restart"], line["exit_code"], line["kind"]) for line in lines]


def steps_of(folder: Path, target: str, rank: int) -> list[int]:
    """Every step that a rank of a counting job has made, in all its allocations."""
    trace = folder / f"{target}.trace_{rank}"
    return [int(step) for step in trace.read_text().split()] if trace.exists() else []


def test_two_nodes_with_two_ranks_each_know_their_place(cluster: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    code, log = cluster.run(folder, "ranks.txt", "plain_1.txt", "plain_2.txt")
    assert code == 0, log
    assert not list(tmp_path.rglob("pwned"))
    rows = sorted((line.split() for line in (folder / "ranks.txt").read_text().splitlines()), key=lambda row: row[1])
    hosts = [row[0] for row in rows]
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]
    assert [row[1:5] for row in rows] == [[str(r), "4", str(r % 2), "2"] for r in range(4)]
    assert {(row[5], row[7]) for row in rows} == {(hosts[0], "1")}
    assert len({row[6] for row in rows}) == 1
    assert (folder / "plain_2.txt").read_text() == "2\n"
    assert re.search(r"submitted as slurm job (\d+)_0, \1_1 ", log), "one job array"


def test_failures_say_why_in_one_line(cluster: Slurm, tmp_path: Path) -> None:
    code, log = cluster.run(tmp_path, "failing.txt", "unknown.txt", "flaky.txt")
    assert code == 1
    assert re.search(r"message: job \d+ failed \(exit code 1\): neox: error: model.hidden_size: 65 is not div", log)
    assert re.search(r"message: not submitted: .*[Ii]nvalid partition", log), log
    assert "Logfile" in log, "the job's log is shown"
    assert (tmp_path / "flaky.txt").exists(), "a retry submits again"
    wait_for(lambda: [state for _, state in cluster.history("flaky")] == ["FAILED", "COMPLETED"], 20)


def test_saved_jobs_come_back_under_their_own_id(cluster: Slurm, tmp_path: Path) -> None:
    """One is preempted, one stops itself with 85; both go on where they saved, with one submission and no retry."""
    preempted, again = "counted_preempt_10_no.txt", "counted_batch_10_again.txt"
    hold, ends = tmp_path / f"{preempted}.hold", tmp_path / "run_preempt_no" / "segments.jsonl"
    hold.touch()
    snakemake = cluster.start(tmp_path, preempted, again)
    wait_for(lambda: all(steps_of(tmp_path, preempted, rank)[2:] for rank in range(4)), 60)
    cluster.preempt(tmp_path)
    wait_for(ends.exists, 120)
    hold.unlink()
    assert snakemake.wait(timeout=120) == 0, (tmp_path / "out.log").read_text()
    assert segments(ends) == [(0, 85, "preemption"), (1, 0, "finished")]
    assert segments(tmp_path / "run_batch_again" / "segments.jsonl") == [(0, 85, "saved"), (1, 0, "finished")]
    for rank in range(4):  # no step was done twice: nothing was lost
        assert steps_of(tmp_path, preempted, rank) == list(range(1, 11))
        said = "".join(f"step {step}\n" for step in range(1, 11))
        assert "".join(log_text(tmp_path / "run_preempt_no", False, rank)) == said, "in a log of its own"
    wait_for(lambda: sum(state == "COMPLETED" for _, state in cluster.history("counted")) == 2, 20)
    runs = cluster.history("counted")
    assert len(runs) == 4 and len({job_id for job_id, _ in runs}) == 2, runs
    assert (tmp_path / "out.log").read_text().count("submitted as") == 2


def test_a_job_that_slurm_does_not_requeue_is_submitted_anew(cluster: Slurm, tmp_path: Path) -> None:
    """Preempted twice, no retry of Snakemake's: the successors are the same job, which goes on where it saved."""
    target = "counted_preempt_20_once.txt"
    hold, up = tmp_path / f"{target}.hold", tmp_path / f"{target}.up_3"
    ends = tmp_path / "run_preempt_once" / "segments.jsonl"
    hold.touch()
    snakemake = cluster.start(tmp_path, target)
    for restart in range(2):
        wait_for(lambda: up.exists() and up.read_text() == str(restart), 120)  # noqa: B023
        cluster.preempt(tmp_path)
        wait_for(lambda: ends.exists() and len(segments(ends)) > restart, 120)  # noqa: B023
    hold.unlink()
    assert snakemake.wait(timeout=150) == 0, (tmp_path / "out.log").read_text()
    for rank in range(4):
        assert steps_of(tmp_path, target, rank) == list(range(1, 21))
    assert segments(ends) == [(0, 85, "preemption"), (1, 85, "preemption"), (2, 0, "finished")]
    log = (tmp_path / "out.log").read_text()
    assert log.count("submitted as") == 1 and len(re.findall(r"job \d+ ended \(.*\) and runs on as job \d+", log)) == 2


def test_interrupted_controller_leaves_no_job(cluster: Slurm, tmp_path: Path, interrupt: Interrupt) -> None:
    snakemake = cluster.start(tmp_path, "counted_batch_300_no.txt")
    wait_for(lambda: (tmp_path / "counted_batch_300_no.txt.trace_0").exists(), 60)
    assert interrupt(snakemake, signal.SIGINT) == 1
    wait_for(lambda: not cluster.ask("squeue", "-h"), 20)
    ((restart, exit_code, _),) = segments(tmp_path / "run_batch_no" / "segments.jsonl")
    assert restart == 0 and exit_code > 128
    assert not list((tmp_path / "run_batch_no").glob(".launch-*"))
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}|counted_batch_300"], capture_output=True).stdout == b""


def test_killed_controller_is_succeeded(cluster: Slurm, tmp_path: Path, interrupt: Interrupt) -> None:
    target = "counted_batch_9_no.txt"
    hold = tmp_path / f"{target}.hold"
    hold.touch()
    first = cluster.start(tmp_path, target)
    wait_for(lambda: steps_of(tmp_path, target, 0), 60)
    second_code, log = cluster.run(tmp_path, target)
    assert second_code != 0 and "another controller works here" in log
    interrupt(first, signal.SIGKILL)
    (row,) = cluster.status(tmp_path)
    assert (row["name"], row["state"]) == ("counted", "running")
    third = cluster.start(tmp_path, target)
    wait_for(lambda: "adopted slurm job" in (tmp_path / "out.log").read_text(), 60)
    hold.unlink()
    code, log = third.wait(timeout=150), (tmp_path / "out.log").read_text()
    assert code == 0, log
    adopted = re.search(r"adopted slurm job (\d+)", log)
    assert adopted and adopted[1] == row["job_id"] and log.count("submitted as") == 1
    wait_for(lambda: [adopted[1], "COMPLETED"] in cluster.history("counted"), 20)  # slurmdbd lags behind
    assert {int(job_id) for job_id, _ in cluster.history("counted") if int(job_id) >= int(adopted[1])} == {
        int(adopted[1])
    }
    assert steps_of(tmp_path, target, 0) == list(range(1, 10))
