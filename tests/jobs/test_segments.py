"""A line of segments.jsonl says which steps the allocation made and why it ended, also where it could not say so."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs import segments
from jobs.running import Running
from jobs.scheduler import SCHEDULERS
from jobs.state import State

IN_SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}


def write_metrics(run_dir: Path, numbers: range) -> None:
    records = "".join(f'{{"step": {number}, "loss": 1.0}}\n' for number in numbers)
    (run_dir / "metrics.jsonl").write_text(records + '{"step": 99')  # a killed trainer's half line


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "segments.jsonl").read_text().splitlines()]


def recorded(run_dir: Path, end: segments.End) -> dict[str, Any]:
    segments.begin(run_dir, SCHEDULERS["local"], {}).finish(run_dir, end)
    return lines(run_dir)[-1]


@pytest.mark.parametrize(
    ("first", "numbers", "expected"),
    [
        (1, range(1, 11), (1, 10)),
        (11, range(1, 21), (11, 20)),
        (11, range(1, 11), (None, None)),
        (1, range(0), (None, None)),
    ],
)
def test_steps_of_an_allocation(tmp_path: Path, first: int, numbers: range, expected: tuple[int | None, ...]) -> None:
    (tmp_path / "segment.json").write_text(json.dumps({"first_step": first}))
    write_metrics(tmp_path, numbers)
    finished = segments.warned(0, [], 0, 60, lambda: False)
    line = recorded(tmp_path, finished)
    assert (line["first_step"], line["last_step"], line["cause"]) == (*expected, "finished")
    assert recorded(tmp_path, finished)["last_step"] is None, "the steps of the one before"


@pytest.mark.parametrize(
    ("accounting", "kind"),
    [
        ("echo '7|NODE_FAIL'; echo '7|RUNNING'", "node failure"),
        ("echo '7|NODE_FAIL'", "node failure"),
        ("echo '7|NODE_FAIL'; echo '7|PREEMPTED'; echo '7|RUNNING'", "preemption"),
        ("echo '7|OUT_OF_MEMORY'; echo '7|RUNNING'", "out of memory"),
        ("echo '7|NODE_FAIL'; echo '7|REQUEUED'; echo '7|RUNNING'", "unknown"),
        ("echo 'Slurm accounting storage is disabled' >&2; exit 1", "unknown"),
    ],
)
def test_who_comes_next_writes_down_an_end_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accounting: str, kind: str
) -> None:
    (tmp_path / "sacct").write_text(f"#!/bin/sh\n{accounting}\n")
    (tmp_path / "sacct").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    first = segments.begin(tmp_path, SCHEDULERS["slurm"], IN_SLURM)
    (tmp_path / "segment.json").write_text('{"first_step": 1}')
    write_metrics(tmp_path, range(1, 11))
    second = segments.begin(tmp_path, SCHEDULERS["slurm"], {**IN_SLURM, "JOBS_RESTART_COUNT": "1"})
    (line,) = lines(tmp_path)
    assert (line["job_id"], line["restart"], line["nodes"], line["last_step"]) == ("7", 0, "node[1-2]", 10)
    assert (line["exit_code"], line["kind"]) == (None, kind)
    (tmp_path / "segment.json").write_text('{"first_step": 11}')
    first.finish(tmp_path, segments.failed(1, "", tmp_path, 0))
    assert segments.left(tmp_path) == second and len(lines(tmp_path)) == 1, "an old copy that was believed dead"
    assert (tmp_path / "segment.json").exists(), "is the new one's"


@pytest.mark.parametrize(
    ("signals", "left_s", "kind"),
    [
        (["SIGUSR2"], 150.0, "preemption"),
        (["SIGTERM"], 2900.0, "preemption"),
        ([], 2900.0, "preemption"),
        (["SIGUSR2"], 100.0, "walltime"),
        (["SIGUSR2"], 200.0, "walltime"),
        (["SIGUSR2"], 20.0, "preemption"),
        (["SIGTERM"], 100.0, "cancelled"),
        (["SIGTERM"], 5.0, "walltime"),
        (["SIGUSR2"], 3000.0, "preemption"),
        (["SIGTERM"], 3000.0, "cancelled"),
        ([], 3000.0, "saved"),
    ],
)
def test_walltime_is_told_from_preemption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: list[str], left_s: float, kind: str
) -> None:
    """By when the signal came; where that leaves it open Slurm is asked, which says so of the first two."""
    asked = "2026-11-21T18:00:00" if left_s in (150.0, 2900.0) else "None"
    (tmp_path / "scontrol").write_text(
        f"#!/bin/sh\necho 'PreemptEligibleTime=2026-11-21T17:00:00 PreemptTime={asked}'\n"
    )
    (tmp_path / "scontrol").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ask = partial(segments.ending, SCHEDULERS["slurm"], "7")
    assert segments.warned(85, signals, left_s, 120, ask).kind == kind


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        ("7|PREEMPTED", "preemption"),
        ("7|REQUEUED\n7|NODE_FAIL\n7|PENDING", "node failure"),
        ("7|NODE_FAIL\n7|PREEMPTED\n7|PENDING", "preemption"),
        ("7|PREEMPTED\n7|RUNNING", "cancelled"),
        ("7|PREEMPTED\n7|CANCELLED by 0", "cancelled"),
    ],
)
def test_what_queues_a_job_again_at_once_is_known_to_accounting_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: str, kind: str
) -> None:
    """As Slurm 22.05 keeps it, with GraceTime=0 and of a dead slurmd: what ends now has the last record that began."""
    for command, said in (("scontrol", "JobState=COMPLETING PreemptTime=None"), ("sacct", records)):
        (tmp_path / command).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / command).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ask = partial(segments.ending, SCHEDULERS["slurm"], "7")
    assert segments.warned(85, ["SIGTERM"], 3000.0, 120, ask).kind == kind


@pytest.mark.parametrize(
    ("said", "kind"), [("srun: error: Node failure on node2\n", "node failure"), ("", "cancelled")]
)
def test_ranks_that_save_as_a_node_is_lost_were_not_cancelled(tmp_path: Path, said: str, kind: str) -> None:
    """Slurm ends the processes on the other nodes with TERM; what an earlier allocation's srun said does not count."""
    earlier = "srun: error: Node failure on node1\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / segments.LOG).write_text(earlier + said)
    running = object.__new__(Running)
    running.run_dir, running.signals, running.left_s, running.signal_delay_s = tmp_path, ["SIGTERM"], 3000.0, 120
    running.log_size = len(earlier)
    end = running.end(85, "", lambda: False)
    assert (end.code, end.kind) == (85, kind)


def test_an_allocation_is_known_as_its_submitter_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the element's id in an array, whose records alone are asked for, and only from the cluster that has them."""
    (tmp_path / "sacct").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked; echo "7_3|NODE_FAIL"\n')
    (tmp_path / "sacct").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    element = {**IN_SLURM, "SLURM_CLUSTER_NAME": "one", "JOBS_JOB_ID": "7_3"}
    assert segments.begin(tmp_path, SCHEDULERS["slurm"], element).job_id == "7_3"
    segments.begin(tmp_path, SCHEDULERS["slurm"], {**IN_SLURM, "SLURM_CLUSTER_NAME": "two"})
    assert not (tmp_path / "asked").exists()
    segments.begin(tmp_path, SCHEDULERS["slurm"], {**element, "JOBS_JOB_ID": "9"})
    segments.begin(tmp_path, SCHEDULERS["slurm"], element)
    assert (tmp_path / "asked").read_text().split()[-1] == "--jobs=9"
    assert [line["kind"] for line in lines(tmp_path)] == ["unknown", "unknown", "node failure"]


@pytest.mark.parametrize(
    ("code", "victim", "said", "kind"),
    [
        (1, "", "neox: error: run/checkpoints: No space left on device", "no space"),
        (1, "", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory"),
        (
            137,
            "rank 1 was killed by SIGKILL",
            "slurmstepd: error: Detected 1 oom_kill event",
            "out of memory",
        ),
        (137, "rank 1 was killed by SIGKILL", "RuntimeError: Connection closed by peer", "killed"),
        (1, "", "ValueError: no such thing", "crash"),
        (137, "", "srun: error: Node failure on node1\nsrun: error: node2: tasks 2-3: Killed", "node failure"),
    ],
)
def test_a_failure_is_told_by_what_the_ranks_said(tmp_path: Path, code: int, victim: str, said: str, kind: str) -> None:
    log = tmp_path / segments.LOG
    log.parent.mkdir()
    log.write_text("OSError: No space left on device, an earlier time\n")
    size = segments.log_size(tmp_path)
    log.open("a").write(f"step 3\n{said}\n")
    end = segments.failed(code, victim, tmp_path, size)
    assert end.kind == kind
    assert end.cause.startswith(victim or ("failed with exit code 1: " if code == 1 else "Node failure on node1"))
    assert kind in ("killed", "node failure") or end.cause.endswith(said)


def test_the_controller_knows_an_end_by_its_state() -> None:
    assert segments.lost(State.TIMEOUT).kind == "walltime" and segments.lost(State.FAILED).kind == "unknown"
