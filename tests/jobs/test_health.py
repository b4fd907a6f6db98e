"""Nodes are looked at before ranks start: what one says of itself, what they find out together, what becomes of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs import health, meeting, warning
from jobs.examination import examine, judge
from jobs.health import Health, Report
from jobs.launch import LAUNCHERS
from jobs.launch.contract import Launcher
from jobs.scheduler import lsf, slurm
from jobs.spec import JobSpec, Launch


def fake_tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o700)


@pytest.mark.parametrize(
    ("tool", "script", "problems"),
    [
        ("nvidia-smi", 'case "$*" in *gpu=index*) printf "0\\n1\\n";; esac', []),
        ("nvidia-smi", 'case "$*" in *gpu=index*) echo 0;; esac', ["1 of 2 GPUs visible"]),
        ("nvidia-smi", 'case "$*" in *gpu=index*) exit 9;; esac', ["0 of 2 GPUs visible"]),
        (
            "nvidia-smi",
            'case "$*" in *gpu=index*) printf "0\\n1\\n";; *) printf "71\\n72\\n";; esac',
            ["GPUs are in use by process 71, 72"],
        ),
        (
            "rocm-smi",
            'case "$*" in *json*) echo \'{"card0": {}, "card1": {}}\';; *) echo "No KFD PIDs currently running";; esac',
            [],
        ),
        (
            "rocm-smi",
            'case "$*" in *json*) echo \'{"card0": {}}\';; *) printf "PID\\tPROCESS\\n4711\\tpython\\n";; esac',
            ["1 of 2 GPUs visible", "GPUs are in use by process 4711"],
        ),
        ("other", "", []),
    ],
)
def test_gpus_are_counted_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, script: str, problems: list[str]
) -> None:
    """By fakes of the vendors' tools, whose formats are those of their documentation."""
    fake_tool(tmp_path, tool, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(health.gpu_problems(2)) == problems
    assert list(health.gpu_problems(0)) == []


def test_memory_and_folders(tmp_path: Path) -> None:
    assert list(health.memory_problems(0.01)) == []
    assert next(iter(health.memory_problems(1e6))).endswith("GB of memory free, 1e+06 wanted")
    assert list(health.folder_problems(str(tmp_path), 0)) == []
    assert list(health.folder_problems(str(tmp_path / "absent"), 0)) == [
        f"{tmp_path}/absent: No such file or directory"
    ]
    assert next(iter(health.folder_problems(str(tmp_path), 1e9))).endswith(" GB free, 1e+09 wanted")
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def gather(world_size: int, present: range, limit_s: float) -> list[meeting.Meeting]:
    port, seen = free_port(), {}

    def attend(rank: int) -> None:
        seen[rank] = meeting.meet(rank, world_size, "localhost", port, limit_s)

    threads = [threading.Thread(target=attend, args=(rank,)) for rank in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [seen[rank] for rank in present]


def test_nodes_meet_and_pass_data_on() -> None:
    found = gather(3, range(3), 20)
    assert [one.problem for one in found] == ["", "", ""]
    assert [one.next_rank for one in found] == [1, 2, 0]
    assert all(one.link_s and one.link_s > 0 for one in found)
    assert all(abs(one.clock_offset_s) < 5 for one in found), "one clock"


def test_those_who_come_do_without_the_one_who_does_not() -> None:
    found = gather(3, range(2), 2)
    assert [(one.problem, one.next_rank) for one in found] == [("", 1), ("", 0)]
    (alone,) = gather(3, range(1, 2), 0.5)
    assert alone.problem.startswith("the master localhost:") and "cannot be reached" in alone.problem
    assert "cannot be reached" in meeting.meet(1, 2, "no-such-host.invalid", 1, 0.5).problem


def test_bad_nodes_are_named() -> None:
    wanted, hosts = Health(20), ("n0", "n1", "n2", "n3")
    links = (0.01, 0.9, 0.8, 0.01)
    reports = [Report(rank, hosts[rank], (), links[rank], (rank + 1) % 4) for rank in range(4)]
    assert judge(reports, hosts, wanted) == {"n2": "its links are slow: 0.90 s for 8 MB"}
    assert judge(reports[:3], hosts, wanted)["n3"] == "no answer within 20 s"
    sick = [Report(0, "n0", ("a", "b"), 0.01, 1), Report(1, "n1", (), 9.0, 0)]
    assert judge(sick, hosts[:2], wanted) == {"n0": "a; b"}, "of two nodes nobody knows which is slow"


def test_nodes_are_asked_by_launchers_that_read_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(launch: Launch) -> list[str]:
        return ["cp", str(launch.folder / "hostfile"), str(tmp_path / "seen")]

    monkeypatch.setitem(LAUNCHERS, "copy", Launcher("copy", copy, sets_ranks=False, forwards_signals=False))
    launch = Launch(("train",), 2, 8, 1, tmp_path, hosts=("a", "b"))
    assert list(examine(Health(5), "copy", launch, os.environ)) == ["a", "b"], "neither has answered"
    assert (tmp_path / "seen").read_text() == "a slots=1\nb slots=1\n"


def test_exclusions_are_bounded_and_reach_the_scheduler(tmp_path: Path) -> None:
    environ = {warning.VARIABLE: str(tmp_path / "notes")}
    warning.exclude(environ, ["n3", "n1"])
    warning.exclude(environ, ["n2", "n1"])
    assert warning.excluded(tmp_path / "notes", 4) == ["n1", "n2", "n3"]
    assert warning.excluded(tmp_path / "notes", 2) == ["n1", "n2"], "the last found"
    spec = JobSpec(name="x", exclude=("n1", "n2"))
    assert "--exclude=n1,n2" in slurm.submit_argv(spec, Path("job.sh"))
    assert "select[hname!='n1' && hname!='n2'] span[ptile=1]" in lsf.submit_argv(spec, Path("job.sh"))


def test_an_unfit_machine_starts_no_rank(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "site_configs" / "local" / "site.yaml"
    (tmp_path / "site.yaml").write_text(source.read_text() + "\nhealth: {timeout_s: 20, folders: [$SCRATCH_OF_NODE]}\n")
    command = [
        sys.executable,
        "-m",
        "jobs",
        "launch",
        "--site",
        "site.yaml",
        "--run-dir",
        "run",
        "--",
        "touch",
        "started",
    ]
    environ = {**os.environ, "SCRATCH_OF_NODE": str(tmp_path / "scratch")}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    where = f"node {socket.gethostname()}: {tmp_path}/scratch: No such file or directory"
    assert (done.returncode, done.stderr) == (84, f"jobs: error: {where}\n")
    assert not (tmp_path / "started").exists()
    (tmp_path / "scratch").mkdir()
    assert subprocess.run(command, cwd=tmp_path, env=environ, timeout=60).returncode == 0
    assert (tmp_path / "started").exists()
