"""What runs in an allocation, without a scheduler: runs again after 85, within bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from submitit.core import core, utils

from jobs import executor, warning
from jobs.allocation import Allocation
from jobs.errors import PayloadError
from jobs.failure import error_line
from jobs.restarts import Restarts
from jobs.warning import SAVED
from tests.jobs.test_launch import wait_for

SAVE_TWICE = 'echo x >> starts; [ $(wc -l < starts) -gt 2 ] && exit 0; echo 85 > "$JOBS_ALLOCATION/outcome"; exit 1'


RUN = """n=$(cat starts 2>/dev/null | wc -l); echo $n >> starts
echo "\\"$PWD/run\\"" > "$JOBS_ALLOCATION.runs"
save() { mkdir -p run/checkpoints/step_$1; touch run/checkpoints/step_$1/manifest.json; }
end() { echo $1 > "$JOBS_ALLOCATION/outcome"; }
"""
"""What a rule's shell line and the launch in it do, as far as the job sees it."""


def allocation(folder: Path, script: str, max_idle: int = 3) -> Allocation:
    return Allocation(["bash", "-c", script], folder, "local", 1, max_idle, folder / "notes", 10)


def test_saved_command_runs_again(tmp_path: Path) -> None:
    assert allocation(tmp_path, SAVE_TWICE)() == 0
    assert (tmp_path / "starts").read_text() == "x\n" * 3


def test_a_job_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="no new checkpoint in 2 allocations"):
        allocation(tmp_path, SAVE_TWICE, max_idle=2)()
    assert (tmp_path / "starts").read_text() == "x\n" * 2


def test_a_job_runs_on_while_it_saves(tmp_path: Path) -> None:
    """Five times saved and warned, then a crash after a new checkpoint, with one allocation without one allowed."""
    script = RUN + "save $n; [ $n = 5 ] && { end 134; exit 1; }; [ $n = 6 ] && exit 0; end 85; exit 1"
    assert allocation(tmp_path, script, max_idle=1)() == 0
    assert (tmp_path / "starts").read_text() == "".join(f"{n}\n" for n in range(7))


@pytest.mark.parametrize("script", ["end 134; exit 1", "save $n; end 2; exit 2", "save $n; exit 3"])
def test_failures_without_a_checkpoint_and_refusals_are_final(tmp_path: Path, script: str) -> None:
    with pytest.raises(PayloadError, match="exit code"):
        allocation(tmp_path, RUN + script)()
    assert (tmp_path / "starts").read_text() == "0\n"


@pytest.mark.parametrize("script", ["end 134; exit 1", "save $n; end 1; exit 1", "end 85; exit 1", "exit 0"])
def test_a_copy_that_was_believed_dead_settles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Another allocation of the job has begun: this one neither fails the job nor has it run again."""

    monkeypatch.setattr("os._exit", sys.exit)
    another = """[ $n = 0 ] && echo '{"job_id": "", "has_begun": true, "marks": {}}' >> "$JOBS_ALLOCATION.restarts"; """
    with pytest.raises(SystemExit):
        allocation(tmp_path, RUN + another + script)()
    assert (tmp_path / "starts").read_text() == "0\n" and warning.read_verdict(tmp_path / "notes") is None


def test_a_crash_of_a_copy_whose_job_runs_elsewhere_is_not_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node was lost to the scheduler, and its launch with it: without a new checkpoint too the job goes on, or one
    that was submitted in its place.

    The scheduler's commands fail first, then say nothing.
    """
    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("JOBS_JOB_ID", "7")
    monkeypatch.setattr("jobs.allocation.REQUEUE_WAIT_S", 0)
    for state, end in (("PENDING", SystemExit), ("NODE_FAIL", SystemExit), ("RUNNING", PayloadError)):
        silent = f"cd {tmp_path}; [ -e silent1 ] || {{ touch silent1; exit 1; }}; mkdir silent2 2>/dev/null && exit 0"
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{silent}\necho '7|{state}|N/A|BeginTime'\n")
        (tmp_path / "squeue").chmod(0o700)
        with pytest.raises(end):
            replace(allocation(tmp_path, RUN + "end 137; exit 137"), scheduler="slurm")()
        assert (warning.read_verdict(tmp_path / "notes") is None) == (state != "RUNNING")


def test_starts_that_the_scheduler_makes_count_too(tmp_path: Path) -> None:
    """After a preemption without warning the next start sees that nothing was saved."""
    restarts = Restarts(tmp_path / "notes", max_idle=2)
    assert [restarts.begin("7"), restarts.refusal(), restarts.begin("7")] == [0, "", 1]
    assert restarts.refusal() == "no new checkpoint in 2 allocations (requeue.max_idle of the site)"
    with pytest.raises(PayloadError, match="no new checkpoint in 2 allocations"):
        allocation(tmp_path, "touch started", max_idle=2)()
    assert not (tmp_path / "started").exists()


def test_the_controller_counts_beside_allocations_that_run(tmp_path: Path) -> None:
    """Of a chain one may never begin while its successor already runs, which is not overtaken by that."""
    restarts = Restarts(tmp_path / "notes", max_idle=3)
    assert [restarts.begin("7"), restarts.begin("9")] == [0, 1]
    restarts.miss("8")
    assert not restarts.is_overtaken(1) and restarts.num_idle() == 3 and restarts.begun() == ["7", "9"]
    with (tmp_path / "notes.restarts").open("a") as file:
        file.write('\n{"job_id": "1')  # the disk was full
    assert restarts.begin("10") == 2


@pytest.mark.parametrize(("script", "verdict"), [("exit 0", ""), ("end 2; exit 2", "exit code 2")])
def test_what_is_settled_is_not_started_again(tmp_path: Path, script: str, verdict: str) -> None:
    for _ in range(2):
        if verdict:
            with pytest.raises(PayloadError, match=verdict):
                allocation(tmp_path, RUN + script)()
        else:
            assert allocation(tmp_path, RUN + script)() == 0
    assert (tmp_path / "starts").read_text() == "0\n"


def test_an_element_of_an_array_is_requeued_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last element's SLURM_JOB_ID is the id of the whole array."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked; exit 1\n")
    (tmp_path / "scontrol").chmod(0o700)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "120", "JOBS_JOB_ID": "120_7"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jobs.allocation.REQUEUE_ATTEMPTS", 1)
    monkeypatch.setattr("jobs.allocation.REQUEUE_WAIT_S", 0)
    assert replace(allocation(tmp_path, SAVE_TWICE), scheduler="slurm")() == SAVED
    assert (tmp_path / "asked").read_text() == "requeue 120_7\n"


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_ended_job_waits_for_its_launch(tmp_path: Path, is_abandoned: bool) -> None:
    """The shell around the launch dies of TERM before it, as when a scheduler signals all processes of a job.

    Flux whose broker is killed sends nothing; but nobody reads any more what the job says.
    """
    launch = (
        'touch "$JOBS_ALLOCATION/launch_$BASHPID"; trap "kill $$; sleep 2; touch saved; exit 85" TERM; sleep 60 & wait'
    )
    code = f"""
from pathlib import Path
from jobs.allocation import Allocation
script = '( {launch} ) & sleep 1; touch ready; wait'
Allocation(["bash", "-c", script], Path("."), "local", 10, 1, Path("notes").resolve(), 10)()
"""
    job = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True, stderr=-1)
    wait_for(lambda: (tmp_path / "ready").exists())
    assert job.stderr
    if is_abandoned:
        job.stderr.close()
    else:
        job.terminate()
    assert job.wait(timeout=30) == 143
    assert list((tmp_path).glob("notes/launch_*")) and (tmp_path / "saved").exists()


def test_a_job_starts_with_few_imports_and_leaves_submitits_result(tmp_path: Path) -> None:
    heavy = "sorted({'numpy', 'asyncio', 'yaml', 'submitit', 'torch'} & set(__import__('sys').modules))"
    utils.DelayedSubmission(eval, heavy).dump(tmp_path / "7_submitted.pkl")
    utils.DelayedSubmission(allocation(tmp_path, "exit 3")).dump(tmp_path / "8_submitted.pkl")
    code = "import jobs.allocation, sys; from jobs.entry import Path, main; sys.exit(main(Path('.')))"
    for job_id, exit_code in (("7", 0), ("8", 1)):
        environ = {**os.environ, "JOBS_JOB_ID": job_id, "PYTHONPATH": str(Path(__file__).parents[2])}
        assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ).returncode == exit_code
    assert core.Job[list[str]](tmp_path, "7").result() == []
    assert (tmp_path / "7_0_result.pkl").stat().st_mode & 0o777 == 0o600
    failed = core.Job[int](tmp_path, "8")
    assert "PayloadError: exit code 3" in str(failed.exception())
    assert executor.read_result(failed) == "jobs.errors.PayloadError: exit code 3"


def test_error_line_prefers_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback\nKeyError: 'x'\nneox: error: model.size: no\nsrun: error: node1: task 0: Exited\njunk\n")
    assert error_line([tmp_path / "absent", log]) == "neox: error: model.size: no"
    log.write_text("jobs.errors.PayloadError: exit code 1\nsrun: error: node1\n")
    assert error_line([log]) == "srun: error: node1"
    assert error_line([]) == ""
