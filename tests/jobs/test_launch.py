"""`jobs launch` on this machine: places, one exit code, signals, and no process left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from jobs import launcher, running, warning
from jobs.errors import LauncherError
from jobs.launch.contract import Launcher
from jobs.ranks import code_file
from jobs.running import combine, killed_first
from jobs.runs import time_to_save_s
from jobs.scheduler import SCHEDULERS
from jobs.site import load_site
from jobs.spec import Launch

LAUNCH = [sys.executable, "-m", "jobs", "launch", "--site", "local"]
SAVER = """
import os, signal, sys, time
rank = os.environ["RANK"]
signal.signal(signal.SIGUSR2, lambda *_: (open("saved_" + rank, "w"), time.sleep(float(rank)), sys.exit(85)))
signal.signal(signal.SIGTERM, lambda *_: (open("saved_" + rank, "w"), sys.exit(85)))
open("ready_" + rank, "w").write(str(os.getpid()))
while True: time.sleep(0.1)
"""


def wait_for(condition: Callable[[], object], limit_s: float = 40) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def launch(
    folder: Path, *command: str, options: tuple[str, ...] = (), environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCH, *options, "--", *command],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "3", **(environ or {})},
    )


def is_alive(pid_file: Path) -> bool:
    try:
        return Path(f"/proc/{pid_file.read_text()}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def start_savers(folder: Path, *options: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    process = launch(folder, sys.executable, "-c", SAVER, options=options, environ=environ)
    wait_for(lambda: all((folder / f"ready_{rank}").exists() and is_alive(folder / f"ready_{rank}") for rank in (0, 1)))
    return process


def test_ranks_and_first_failure(tmp_path: Path) -> None:
    """Rank 1 fails with 3 while rank 0 would wait for ever; arguments arrive untouched."""
    script = (
        'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $OMP_NUM_THREADS $1"; [ $RANK = 1 ] && exit 3; sleep 300'
    )
    process = launch(tmp_path, "bash", "-c", script, "_", "a 'b' $c $$ ${local_rank}")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert sorted(output.splitlines()) == [f"{rank}/2 {rank}/2 3 a 'b' $c $$ ${{local_rank}}" for rank in (0, 1)]
    assert list(tmp_path.iterdir()) == [], "the launch folder is gone"


@pytest.mark.parametrize(("code", "others"), [(2, "exit 2"), (2, "exec sleep 300"), (1, "exec sleep 300")])
def test_a_failure_ends_all_ranks_and_is_the_only_line(tmp_path: Path, code: int, others: str) -> None:
    script = f'[ $RANK = 1 ] && {{ {others}; }}; echo "neox: error: no such key" >&2; exit {code}'
    process = launch(tmp_path, "bash", "-c", script)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors and "ChildFailedError" not in errors
    assert [line for line in errors.splitlines() if "error" in line.lower()] == ["neox: error: no such key"]


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM", "SIGINT"])
def test_warned_ranks_save_and_the_launch_says_85(tmp_path: Path, name: str) -> None:
    process = start_savers(tmp_path, "--run-dir", "run")
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=30)
    assert process.returncode == 85
    assert (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()
    (line,) = (tmp_path / "run" / "segments.jsonl").read_text().splitlines()
    assert json.loads(line)["cause"] == f"saved after {name}"


def test_a_launcher_that_outlives_its_warned_ranks_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mpirun, which LSF tells to end too, sleeps for as long as ranks might still have saved."""
    monkeypatch.setattr(running, "FORWARDED", ())  # no handlers in this process
    monkeypatch.setattr(running, "LINGER_S", 0.2)
    launcher = Launcher("sleeper", lambda _: ["sleep", "300"], sets_ranks=False, forwards_signals=False)
    spec = Launch(("true",), 1, 2, 1, tmp_path)
    started = running.Running(launcher, spec, os.environ, None, 60, lambda is_over: False)
    started.on_signal(signal.SIGTERM, None)
    for rank in (0, 1):
        code_file(tmp_path, rank).write_text("85")
    code = started.run()
    assert code == 128 + signal.SIGKILL and combine(tmp_path, 2, code) == 85 and started.was_ended(code)


@pytest.mark.parametrize(
    ("begins", "answers", "code", "num_tries"),
    [(3, [True, True], 0, 3), (4, [True, True], 1, 3), (1, [], 1, 1), (2, [False], 1, 1)],
)
def test_a_launcher_that_missed_the_scheduler_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: int, answers: list[bool], code: int, num_tries: int
) -> None:
    """The first two attempts fail; ranks begin at attempt `begins`."""
    monkeypatch.setattr(running, "FORWARDED", ())  # no handlers in this process
    script = f"""cd {tmp_path}; echo >> tries; n=$(wc -l < tries)
[ $n -ge {begins} ] && touch started; [ $n -ge 3 ] && [ -e started ] && echo 0 > rank_00000.code"""
    launcher = Launcher("late", lambda _: ["bash", "-c", script], sets_ranks=False, forwards_signals=True)
    spec, left = Launch(("true",), 1, 1, 1, tmp_path), list(answers)
    started = running.Running(launcher, spec, os.environ, None, 60, lambda is_over: not is_over() and left.pop(0))
    assert started.run() == code and not left
    assert len((tmp_path / "tries").read_text()) == num_tries


def test_ranks_of_two_allocations_in_turn_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "FORWARDED", ())  # no handlers in this process
    ranks, apart = (["bash", "-c", f"echo {step} >> {tmp_path}/steps"] for step in ("ranks", "apart"))
    launcher = Launcher("counting", lambda _: ranks, sets_ranks=False, forwards_signals=True, apart=tuple(apart))
    for restart in range(3):
        environ = {**os.environ, warning.RESTART_VARIABLE: str(restart)}
        spec = Launch(("true",), 1, 1, 1, tmp_path)
        assert running.Running(launcher, spec, environ, None, 60, lambda is_over: False).run() == 0
    assert (tmp_path / "steps").read_text().split() == ["ranks", "apart", "ranks", "ranks"]


def test_nodes_are_examined_once_the_scheduler_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, spec, failures = load_site("slurm"), Launch(("true",), 1, 1, 1, tmp_path), [1]
    fit = replace(spec, port=5)
    said = iter([None, None, {}])

    def examine(*_: object) -> tuple[Launch, dict[str, str]]:
        if failures:
            raise LauncherError("srun: error: Unable to contact slurm controller", failures.pop())
        return fit, {}

    monkeypatch.setattr(launcher.examination, "examine", examine)
    monkeypatch.setattr(launcher.inquiry, "ask", lambda batch, ids: next(said))
    monkeypatch.setattr(launcher, "ASK_WAIT_S", 0)
    is_back = partial(launcher._is_back, SCHEDULERS["slurm"], {"SLURM_JOB_ID": "7"})
    assert launcher._prepare(site, spec, {}, is_back) == (fit, None) and next(said, "all") == "all"
    two, silent = replace(spec, nodes=2), {"node1": "no answer", "node2": "no answer"}
    for answers, prevents in (([silent, {}], False), ([silent] * 3, True), ([{"node1": "no answer"}], True)):
        monkeypatch.setattr(launcher.examination, "examine", lambda *_, left=answers: (two, left.pop(0)))
        assert bool(launcher._prepare(site, two, {}, lambda: True)[1]) == prevents and not answers
    monkeypatch.setattr(launcher.examination, "examine", examine)
    failures.append(5)
    _, prevented = launcher._prepare(site, spec, {}, partial(launcher._is_back, SCHEDULERS["local"], {}))
    assert prevented == (5, "crash", "srun: error: Unable to contact slurm controller")


def test_a_warning_waits_for_the_rank_that_still_imports(tmp_path: Path) -> None:
    """Until a rank has a handler for the warning it ignores it, and whatever came would be lost."""
    process = launch(tmp_path, sys.executable, "-c", f"import time; time.sleep(2)\n{SAVER}")
    wait_for(lambda: list(tmp_path.glob(".launch-*/started")))
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=30)
    assert process.returncode == 85
    assert (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()


def test_a_launch_that_is_ended_before_it_can_save_did_not_crash(tmp_path: Path) -> None:
    process = launch(tmp_path, "sleep", "300", options=("--run-dir", "run"))
    wait_for(lambda: list((tmp_path / "run").glob(".launch-*/started")))
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    line = json.loads((tmp_path / "run" / "segments.jsonl").read_text())
    assert (line["kind"], line["cause"]) == ("cancelled", "ended by SIGTERM before it had saved")


def test_a_warning_that_is_passed_on_keeps_its_time(tmp_path: Path) -> None:
    """The job was warned 60 s before its end, as the site asks, and this launch began 50 s later."""
    notes = tmp_path / "notes"
    notes.mkdir()
    now_s = time.time()
    environ = {"JOBS_ALLOCATION": str(notes), "JOBS_ALLOCATION_END": str(now_s + 10)}
    process = start_savers(tmp_path, "--run-dir", "run", environ=environ)
    warning.warn(notes, process.pid, now_s - 50)
    process.communicate(timeout=30)
    assert process.returncode == 85
    assert json.loads((tmp_path / "run" / "segments.jsonl").read_text())["kind"] == "walltime"


def test_ranks_save_in_time_for_the_walltime(tmp_path: Path) -> None:
    """The last save took 10 s and a step 2 s, so that 24 s and some slack before the end none is too early."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_save.json").write_text('{"step": 4, "stall_s": 0.1, "total_s": 10.0}')
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0, "step_time_s": 2.0}\n')
    assert time_to_save_s(tmp_path / "run") == 24
    assert time_to_save_s(tmp_path) is None
    command = (sys.executable, "-c", SAVER)
    environ = {"JOBS_ALLOCATION_END": str(time.time() + 30)}
    process = launch(tmp_path, *command, options=("--run-dir", "run"), environ=environ)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85 and "saving takes up to 24 s" in errors
    assert json.loads((tmp_path / "run" / "segments.jsonl").read_text())["kind"] == "walltime"
    environ = {"JOBS_ALLOCATION_END": str(time.time() + 6000)}
    process = start_savers(tmp_path, "--run-dir", "run", environ=environ)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=4)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert "saving takes" not in errors


def test_how_a_rank_ended_is_known_while_what_it_leaves_behind_holds_its_output(tmp_path: Path) -> None:
    """Data loaders do, for a while; the ends of the others, who fail for want of this one, must not come first."""
    patient = "from jobs import ranks; ranks.TEARDOWN_S = 600; ranks.main()"
    options = ["--from", "torchrun", "--folder", str(tmp_path), "--rank-logs", str(tmp_path / "logs"), "--"]
    script = "echo its last words; sleep 300 & echo -n $! > loader; kill -9 $$"
    process = subprocess.Popen(
        [sys.executable, "-c", patient, *options, "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "RANK": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: code_file(tmp_path, 1).exists() and (tmp_path / "failed").exists())
    assert is_alive(tmp_path / "loader") and process.poll() is None
    os.kill(int((tmp_path / "loader").read_text()), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert output == (tmp_path / "logs" / "rank_00001.log").read_text() == "its last words\n"
    assert killed_first(tmp_path, 2) == "rank 1 was killed by SIGKILL"


@pytest.mark.parametrize(("has_failed", "on_term", "code"), [(False, "sleep 1; exit 85", 85), (True, "", 137)])
def test_a_rank_that_waits_for_one_that_failed_is_ended(
    tmp_path: Path, has_failed: bool, on_term: str, code: int
) -> None:
    """TERM from srun says either to save, or that another rank has failed: then this one may be unable to end."""
    quick = "from jobs import ranks; ranks.TEARDOWN_S = 0.2; ranks.main()"
    words = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    words |= {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7"}
    script = f"trap '{on_term}' TERM; touch ready; while true; do sleep 0.1; done"
    process = subprocess.Popen(
        [sys.executable, "-c", quick, "--from", "slurm", "--folder", str(tmp_path), "--", "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **words},
    )
    wait_for((tmp_path / "ready").exists)
    if has_failed:
        (tmp_path / "failed").touch()
    process.terminate()
    process.wait(timeout=30)
    assert code_file(tmp_path, 1).read_text() == str(code)


@pytest.mark.parametrize("victim", ["rank", "launch"])
def test_no_process_outlives_a_killed_one(tmp_path: Path, victim: str) -> None:
    process = start_savers(tmp_path)
    pid = process.pid if victim == "launch" else int((tmp_path / "ready_1").read_text())
    os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=40)
    assert ("jobs: error: rank 1 was killed by SIGKILL\n" in errors) == (victim == "rank")
    assert process.returncode not in (0, 85)
    wait_for(lambda: not any(is_alive(tmp_path / f"ready_{rank}") for rank in (0, 1)), 20)


def test_allocation_that_has_saved_starts_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "outcome").write_text("85")
    environ = {**os.environ, "JOBS_ALLOCATION": str(tmp_path)}
    assert subprocess.run([*LAUNCH, "--", "touch", "started"], cwd=tmp_path, env=environ, timeout=60).returncode == 85
    assert not (tmp_path / "started").exists()


def test_absent_command(tmp_path: Path) -> None:
    process = launch(tmp_path, "no-such-command", options=("--ranks-per-node", "1"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 127
    assert "jobs: error: no-such-command: No such file or directory" in errors


@pytest.mark.parametrize(
    ("codes", "launcher_code", "combined"),
    [
        ((0, 0), 0, 0),
        ((85, 85), 0, 85),
        ((0, 85), 0, 85),
        ((85, 3), 3, 3),
        ((3, 2), 3, 3),
        ((143, 3), 1, 3),
        ((137,), 1, 137),
        ((85,), 1, 1),
        ((0,), 0, 1),
        ((85,), 85, 1),
    ],
)
def test_combined_code(tmp_path: Path, codes: tuple[int, ...], launcher_code: int, combined: int) -> None:
    for rank, code in enumerate(codes):
        code_file(tmp_path, rank).write_text(str(code))
        os.utime(code_file(tmp_path, rank), (rank, rank))
    assert combine(tmp_path, 2, launcher_code) == combined


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--site", "slurm", "--", "x"], "no slurm allocation here (SLURM_JOB_ID is not set)"),
        (["--site", "local", "--nodes", "2", "--", "x"], "--nodes 2: site local has one node"),
        (["--site", "local", "--ranks-per-node", "0", "--", "x"], "--ranks-per-node 0: must be at least 1"),
    ],
)
def test_user_errors(tmp_path: Path, options: list[str], message: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    argv = [sys.executable, "-m", "jobs", "launch", *options]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=environ, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_environment_and_line(tmp_path: Path) -> None:
    process = launch(tmp_path, "train", "a b", options=("--dry-run", "--ranks-per-node", "4"))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "OMP_NUM_THREADS=3\n" in output and "--nproc-per-node=4" in output and output.endswith("-- train 'a b'\n")
