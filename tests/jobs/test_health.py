"""Nodes are looked at before ranks start: what one says of itself, what they find out together, what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import health, meeting, warning
from jobs.errors import LauncherError
from jobs.examination import examine, judge_links
from jobs.health import Health, Report
from jobs.launch import LAUNCHERS
from jobs.launch.contract import Launcher
from jobs.ranks import free_port, wrapper_argv
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
        (
            "rocm-smi",  # AMD's own agents are listed too
            'case "$*" in *json*) echo \'{"card0": {}, "card1": {}}\';; *) printf '
            '"PID PROCESS GPU(s) VRAM SDMA CU\n2131 gpuagent 0 0 0 0\n4711 my python 1 1048576 0 UNKNOWN\n";; esac',
            ["GPUs are in use by process 4711"],
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


CUT = float("inf")


def gather(world_size: int, present: range, limit_s: float, strangers: Sequence[bytes] = ()) -> list[meeting.Meeting]:
    """`strangers`: what those say who come to the master before the other nodes do, and stay."""
    port, seen = free_port(), {}

    def attend(rank: int) -> None:
        seen[rank] = meeting.meet(rank, world_size, "localhost", port, limit_s)

    threads = [threading.Thread(target=attend, args=(rank,)) for rank in present]
    with contextlib.ExitStack() as stay:
        threads[0].start()
        for said in strangers:
            stay.enter_context(meeting._connect("localhost", port, time.monotonic() + 20)).sendall(said)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join(60)
    return [seen[rank] for rank in present]


def test_nodes_meet_and_pass_data_on() -> None:
    found = gather(4, range(4), 20)
    assert [one.problem for one in found] == [""] * 4
    assert [set(one.links) for one in found] == [{1, 2}, {2, 3}, {3, 0}, {0, 1}]
    assert all(0 < seconds < 20 for one in found for seconds in one.links.values())
    assert all(abs(one.clock_offset_s) < 5 for one in found), "one clock"


def test_those_who_come_do_without_the_one_who_does_not() -> None:
    found = gather(3, range(2), 2)
    assert [(one.problem, set(one.links)) for one in found] == [("", {1}), ("", {0})]
    (alone,) = gather(3, range(1, 2), 0.5)
    assert alone.problem.startswith("the master localhost:") and "cannot be reached" in alone.problem
    assert "cannot be reached" in meeting.meet(1, 2, "no-such-host.invalid", 1, 0.5).problem


def test_strangers_at_the_masters_port_keep_no_node_out() -> None:
    found = gather(3, range(3), 40, [b"", b"GET / HTTP/1.0\r\n\r\n", b"5\n", b"{}\n"])
    assert [(one.problem, len(one.links)) for one in found] == [("", 2)] * 3


def test_nodes_that_fall_silent_hold_up_nobody() -> None:
    """As many die after they came to the master as would each cost the others all of their time."""
    dead = [f'{{"rank": {rank}, "port": 1}}\n'.encode() for rank in range(3, 9)]
    found = gather(9, range(3), 6, dead)
    assert [one.problem for one in found] == [""] * 3
    reached = [{rank for rank, seconds in one.links.items() if seconds < CUT} for one in found]
    assert reached == [{1, 2}, {2}, set()]
    reports = [Report(rank, f"n{rank}", (), tuple(one.links.items())) for rank, one in enumerate(found)]
    assert judge_links(reports, 1e9) == {}, "their links to the dead are not their fault"


def reports_of(num_nodes: int, changed: dict[tuple[int, int], float]) -> list[Report]:
    """Of nodes whose links take 10 ms but for some."""
    others = {rank: sorted({(rank + 1) % num_nodes, (rank + 2) % num_nodes} - {rank}) for rank in range(num_nodes)}
    links = {rank: tuple((other, changed.get((rank, other), 0.01)) for other in others[rank]) for rank in others}
    return [Report(rank, f"n{rank}", (), links[rank]) for rank in range(num_nodes)]


@pytest.mark.parametrize(
    ("num_nodes", "changed", "named"),
    [
        (4, {}, []),
        (4, {(1, 2): 0.9, (1, 3): 0.8}, ["n1"]),  # its way out
        (4, {(0, 1): 0.9, (3, 1): 0.8}, ["n1"]),  # its way in
        (4, {(1, 2): 0.9}, []),  # one link is nobody's fault
        (3, {(1, 2): 0.9, (1, 0): 0.9, (0, 1): 0.9, (2, 1): 0.9}, ["n1"]),  # most of the links, but one node's
        (8, {(1, 2): 0.9, (1, 3): 0.9, (0, 2): 0.9}, ["n1", "n2"]),
        (4, {(1, 2): 0.09, (1, 3): 0.09}, []),  # too little to be told from a process that waits for its turn
        (2, {(0, 1): 9.0}, []),  # of two nodes nobody knows which is slow
        (4, {(0, 1): CUT, (3, 1): CUT}, ["n1"]),
        (4, {(0, 1): CUT}, ["n0"]),
        (2, {(0, 1): CUT}, ["n0", "n1"]),
    ],
)
def test_nodes_with_slow_links_are_named(
    num_nodes: int, changed: dict[tuple[int, int], float], named: list[str]
) -> None:
    assert sorted(judge_links(reports_of(num_nodes, changed), 5)) == named


def test_how_slow_is_for_the_site_to_say() -> None:
    slow = reports_of(4, {(1, 2): 0.3, (1, 3): 0.2})
    assert judge_links(slow, 19) == {"n1": "its links are slow: 0.20 s for 16 MB, where 0.01 s are usual"}
    assert judge_links(slow, 21) == {}


NETWORK = """
set -e
ip netns add {b}switch && ip -n {b}switch link add bridge type bridge && ip -n {b}switch link set bridge up
for rank in 0 1 2 3; do
    ip netns add {b}n$rank
    ip -n {b}switch link add port$rank type veth peer name eth0 netns {b}n$rank
    ip -n {b}switch link set port$rank master bridge up
    ip -n {b}n$rank address add 10.211.7.$((rank + 1))/24 dev eth0
    ip -n {b}n$rank link set eth0 up && ip -n {b}n$rank link set lo up
done
tc -n {b}n2 qdisc add dev eth0 root tbf rate 40mbit burst 64kb latency 50ms
"""
NODES = """
for rank in 0 1 2 3; do
    export RANK=$rank WORLD_SIZE=4 MASTER_ADDR=10.211.7.1 MASTER_PORT=29500
    ip netns exec {b}n$rank unshare --uts bash -c 'hostname "$0"; exec "$@"' node$rank "$@" &
done
wait
"""
CLEAN = "for name in switch n0 n1 n2 n3; do ip netns delete {b}$name; done"


@pytest.fixture
def slow_network() -> Iterator[str]:
    """A network of four nodes, of which the third sends at 40 Mbit/s; what starts a command on each of them."""
    if os.geteuid() != 0 or not shutil.which("tc"):
        pytest.skip("not root, or without tc: no network can be made and slowed down")
    name = f"b{os.getpid() % 100000}"
    made = subprocess.run(["bash", "-c", NETWORK.format(b=name)], capture_output=True, text=True)
    try:
        assert made.returncode == 0, made.stderr
        yield NODES.format(b=name)
    finally:
        subprocess.run(["bash", "-c", CLEAN.format(b=name)], capture_output=True)


def test_a_node_on_a_slow_network_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_network: str) -> None:
    """Real links: network namespaces on a bridge, and the kernel's own traffic control."""

    def on_each(launch: Launch) -> list[str]:
        return ["bash", "-c", slow_network, "bash", *launch.command]

    monkeypatch.setitem(LAUNCHERS, "namespaces", Launcher("namespaces", on_each, False, False))
    launch = Launch(("train",), 4, 8, 1, tmp_path, hosts=("node0", "node1", "node2", "node3"))
    _, found = examine(Health(60), "namespaces", launch, os.environ)
    assert list(found) == ["node2"] and found["node2"].startswith("its links are slow: "), found


def test_nodes_are_asked_by_launchers_that_read_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(launch: Launch) -> list[str]:
        return ["cp", str(launch.folder / "hostfile"), str(tmp_path / "seen")]

    monkeypatch.setitem(LAUNCHERS, "copy", Launcher("copy", copy, sets_ranks=False, forwards_signals=False))
    launch = Launch(("train",), 2, 8, 1, tmp_path, hosts=("a", "b"))
    _, silent = examine(Health(5), "copy", launch, os.environ)
    assert silent == dict.fromkeys("ab", "no answer; copy ended with code 0")
    assert (tmp_path / "seen").read_text() == "a slots=1\nb slots=1\n"


def test_a_launcher_that_fails_at_once_is_not_the_nodes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(launch: Launch) -> list[str]:
        return ["bash", "-c", "echo 'srun: error: Invalid job step' >&2; exit 7"]

    monkeypatch.setitem(LAUNCHERS, "broken", Launcher("broken", fail, sets_ranks=False, forwards_signals=False))
    launch = Launch(("train",), 2, 8, 1, tmp_path, hosts=("a", "b"))
    message = r"^broken started nothing on any node \(exit code 7\): srun: error: Invalid job step$"
    with pytest.raises(LauncherError, match=message) as caught:
        examine(Health(3600), "broken", launch, os.environ)
    assert caught.value.code == 7 and "Invalid job step" in capfd.readouterr().err


def test_a_port_that_is_taken_on_the_master_is_nobodys_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By srun's place: it ends the other ranks with the first that fails. Ranks are told the port as the nodes are."""
    script = """for rank in 0 1; do SLURM_PROCID=$rank SLURM_NTASKS=2 "$@" & done
    wait -n || { kill $(jobs -p); exit 1; }; wait"""
    words = {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "localhost"}

    def srun(launch: Launch) -> list[str]:
        return ["bash", "-c", script, "bash", *wrapper_argv(launch, ranks_from="slurm")]

    monkeypatch.setitem(LAUNCHERS, "like srun", Launcher("like srun", srun, sets_ranks=False, forwards_signals=True))
    with socket.create_server(("", 0)) as somebodys:
        taken = somebodys.getsockname()[1]
        launch = Launch(("train",), 2, 8, 1, tmp_path, hosts=("localhost", "n2"), port=taken)
        launch, bad = examine(Health(60), "like srun", launch, {**os.environ, **words})
    assert bad == {} and launch.port not in (taken, None)
    assert f"jobs: port {taken} of localhost is taken: MASTER_PORT is {launch.port}\n" in capfd.readouterr().err


def test_a_master_that_is_gone_is_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others say that they cannot reach it."""

    def without_master(launch: Launch) -> list[str]:
        place = "WORLD_SIZE=3 MASTER_ADDR=no-such-host.invalid MASTER_PORT=1"
        return ["bash", "-c", f'for rank in 1 2; do {place} RANK=$rank "$@" & done; wait', "bash", *launch.command]

    monkeypatch.setitem(LAUNCHERS, "without", Launcher("without", without_master, False, False))
    launch = Launch(("train",), 3, 8, 1, tmp_path, hosts=("n0", "n1", "n2"))
    assert examine(Health(60), "without", launch, os.environ)[1] == {"n0": "no answer; without ended with code 0"}


def test_nodes_that_the_launcher_lost_are_named_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In srun's words (Slurm's sources); it ends the other nodes' part, so that none of them has answered."""
    words = (
        "Node failure on n[2-3]\nsrun: error: n1: task 0: Killed",
        "Task launch for StepId=7.0 failed on node n3: Communication connection failure",
    )
    for said, lost in zip(words, (["n2", "n3"], ["n3"]), strict=True):

        def lose(launch: Launch, said: str = said) -> list[str]:
            return ["bash", "-c", f"echo 'srun: error: {said}' >&2; exit 1"]

        monkeypatch.setitem(LAUNCHERS, "losing", Launcher("losing", lose, sets_ranks=False, forwards_signals=False))
        launch = Launch(("train",), 3, 8, 1, tmp_path, hosts=("n1", "n2", "n3"))
        _, found = examine(Health(60), "losing", launch, os.environ)
        assert sorted(found) == lost and found["n3"] == said.splitlines()[0]


def test_a_node_is_named_as_the_scheduler_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may call itself otherwise, and what the scheduler does not know cannot be avoided."""
    own = socket.gethostname().split(".")[0]

    def here(launch: Launch) -> list[str]:
        return list(launch.command)

    monkeypatch.setitem(LAUNCHERS, "here", Launcher("here", here, sets_ranks=True, forwards_signals=False))
    launch = Launch(("train",), 1, 8, 1, tmp_path, hosts=(f"{own}.some.domain",))
    _, found = examine(Health(60, memory_free_gb=1e6), "here", launch, os.environ)
    assert list(found) == [f"{own}.some.domain"] and found[f"{own}.some.domain"].endswith("1e+06 wanted")


def test_nodes_that_never_answer_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(launch: Launch) -> list[str]:
        return ["sleep", "60"]

    monkeypatch.setitem(LAUNCHERS, "stuck", Launcher("stuck", hang, sets_ranks=False, forwards_signals=False))
    launch = Launch(("train",), 1, 8, 1, tmp_path, hosts=("a",))
    assert examine(Health(1), "stuck", launch, os.environ)[1] == {"a": "no answer within 1 s"}


def test_exclusions_are_bounded_and_reach_the_scheduler(tmp_path: Path) -> None:
    environ = {warning.VARIABLE: str(tmp_path / "notes")}
    warning.exclude(environ, ["n3", "n1"])
    warning.exclude(environ, ["n2", "n1"])
    assert warning.excluded(tmp_path / "notes", 4) == ["n1", "n2", "n3"]
    assert warning.excluded(tmp_path / "notes", 2) == ["n1", "n2"], "the last found"
    spec = JobSpec(name="x", exclude=("n1", "n2"))
    assert "--exclude=n1,n2" in slurm.submit_argv(spec, Path("job.sh"))
    assert "select[hname!='n1' && hname!='n2'] span[ptile=1]" in lsf.submit_argv(spec, Path("job.sh"))


def launch_locally(folder: Path, changes: dict[str, Any], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`jobs launch` of a command that leaves a trace, by the local site with some other keys."""
    source = Path(__file__).parents[2] / "site_configs" / "local" / "site.yaml"
    (folder / "site.yaml").write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | changes))
    options = ["--site", "site.yaml", "--run-dir", "run", "--", "touch", "started"]
    command = [sys.executable, "-m", "jobs", "launch", *options]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60
    )


def test_an_unfit_machine_starts_no_rank(tmp_path: Path) -> None:
    changes = {"health": {"timeout_s": 20, "folders": ["$SCRATCH_OF_NODE"]}}
    environ = {"SCRATCH_OF_NODE": str(tmp_path / "scratch")}
    done = launch_locally(tmp_path, changes, environ)
    where = f"node {socket.gethostname()}: {tmp_path}/scratch: No such file or directory"
    assert (done.returncode, done.stderr) == (84, f"jobs: error: {where}\n")
    assert not (tmp_path / "started").exists()
    (tmp_path / "scratch").mkdir()
    assert launch_locally(tmp_path, changes, environ).returncode == 0
    assert (tmp_path / "started").exists()


def test_a_launch_whose_launcher_fails_ends_with_its_code_and_words(tmp_path: Path) -> None:
    fake_tool(tmp_path, "mpirun", "echo mpirun: no such option >&2; exit 5")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = launch_locally(tmp_path, {"launcher": "openmpi", "health": {"timeout_s": 3600}}, environ)
    cause = "openmpi started nothing on any node (exit code 5): mpirun: no such option"
    assert (done.returncode, done.stderr) == (5, f"mpirun: no such option\njobs: error: {cause}\n")
    line = json.loads((tmp_path / "run" / "segments.jsonl").read_text())
    assert (line["exit_code"], line["kind"], line["cause"]) == (5, "crash", cause)


def test_a_launcher_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = launch_locally(tmp_path, {"launcher": "openmpi"}, {"PATH": ""})
    message = "jobs: error: mpirun: command not found: site nodes starts its ranks with it\n"
    assert (done.returncode, done.stderr) == (2, message.replace("nodes", tmp_path.name))
    assert [file.name for file in tmp_path.iterdir()] == ["site.yaml"]
