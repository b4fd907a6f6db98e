"""What runs in an allocation, without a scheduler: runs again after 85, within bounds; and the controller's lock."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from submitit.core import core, utils

from jobs import executor, warning
from jobs.allocation import Allocation
from jobs.controller import ActiveJob, ActiveJobs, Lock
from jobs.errors import PayloadError, UserError
from jobs.failure import error_line
from jobs.queue import Queue, QueuedJob, Submission
from jobs.restarts import Restarts
from jobs.scheduler.contract import Status
from jobs.site import load_site
from jobs.spec import JobSpec
from jobs.state import State
from jobs.warning import SAVED, VARIABLE, follow
from tests.jobs.test_launch import wait_for

SAVE_TWICE = 'echo x >> starts; [ $(wc -l < starts) -gt 2 ] && exit 0; echo 85 > "$JOBS_ALLOCATION/outcome"; exit 1'


RUN = """n=$(cat starts 2>/dev/null | wc -l); echo $n >> starts
echo "\\"$PWD/run\\"" > "$JOBS_ALLOCATION.runs"
save() { mkdir -p run/checkpoints/step_$1; touch run/checkpoints/step_$1/manifest.json; }
end() { echo $1 > "$JOBS_ALLOCATION/outcome"; }
"""
"""What a rule's shell line and the launch in it do, as far as the job sees it."""


class FakeHandle:
    """A job of submitit without a scheduler behind it: it left no result."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self.job_id = job_id
        self.paths = utils.JobPaths(folder, job_id)


def submission(folder: Path, output: str) -> Submission:
    return Submission(JobSpec(name="train"), (output,), ["true"], folder)


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
    another = """[ $n = 0 ] && echo '{"count": 1, "idle": 0, "marks": {}}' > "$JOBS_ALLOCATION.restarts"; """
    with pytest.raises(SystemExit):
        allocation(tmp_path, RUN + another + script)()
    assert (tmp_path / "starts").read_text() == "0\n" and warning.read_verdict(tmp_path / "notes") is None


def test_a_crash_of_a_copy_whose_job_waits_again_is_not_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node was lost to the scheduler, and its launch with it: without a new checkpoint too the job goes on.

    The scheduler's commands fail first, then say nothing.
    """
    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("JOBS_JOB_ID", "7")
    monkeypatch.setattr("jobs.allocation.REQUEUE_WAIT_S", 0)
    for state, end in (("PENDING", SystemExit), ("RUNNING", PayloadError)):
        silent = f"cd {tmp_path}; [ -e silent1 ] || {{ touch silent1; exit 1; }}; mkdir silent2 2>/dev/null && exit 0"
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{silent}\necho '7|{state}|N/A|BeginTime'\n")
        (tmp_path / "squeue").chmod(0o700)
        with pytest.raises(end):
            replace(allocation(tmp_path, RUN + "end 137; exit 137"), scheduler="slurm")()
        assert (warning.read_verdict(tmp_path / "notes") is None) == (state == "PENDING")


def test_starts_that_the_scheduler_makes_count_too(tmp_path: Path) -> None:
    """After a preemption without warning the next start sees that nothing was saved."""
    restarts = Restarts(tmp_path / "notes", max_idle=2)
    assert [restarts.begin(), restarts.refusal(), restarts.begin()] == [0, "", 1]
    assert restarts.refusal() == "no new checkpoint in 2 allocations (requeue.max_idle of the site)"
    with pytest.raises(PayloadError, match="no new checkpoint in 2 allocations"):
        allocation(tmp_path, "touch started", max_idle=2)()
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("state", "extras", "expected"),
    [
        (State.NODE_FAIL, "", True),
        (State.PREEMPTED, "", True),
        (State.TIMEOUT, "run", True),
        (State.TIMEOUT, "", False),
        (State.FAILED, "run", False),
        (State.FAILED, "run save", True),
        (State.CANCELLED, "run save", False),
    ],
)
def test_lost_jobs_are_submitted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, extras: str, expected: bool
) -> None:
    handles = [FakeHandle(tmp_path, str(number)) for number in (7, 8)]
    monkeypatch.setattr(executor, "submit", lambda *arguments: handles.pop(0))
    queue = Queue(load_site("slurm"), tmp_path / "state", 1)
    job = queue.submit(submission(tmp_path, "train_summary.json"))
    Restarts(job.notes, 3).begin()
    if "run" in extras:
        follow({VARIABLE: str(job.notes)}, tmp_path / "run")
    if "save" in extras:
        (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "step_00000001" / "manifest.json").touch()
    job.status, job.num_ended = Status(state), 2
    said = queue.end(job, [])
    assert (said is None) == expected and job.job_id == ("8" if expected else "7")
    known = queue.active.all().get(job.key)
    assert (known.job_id if known else None) == ("8" if expected else None)
    queue.close()


def chained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Queue, QueuedJob, list[str]]:
    """A queue of fake jobs 7, 8, 9 ..., a job with one successor, and the ids that were cancelled."""
    numbers, cancelled = itertools.count(7), list[str]()
    monkeypatch.setattr(executor, "submit", lambda *arguments: FakeHandle(folder, str(next(numbers))))
    monkeypatch.setattr(executor, "cancel", lambda scheduler, jobs: cancelled.extend(job.job_id for job in jobs))
    queue = Queue(load_site("slurm"), folder / "state", 1)
    job = queue.submit(replace(submission(folder, "train_summary.json"), num_successors=1))
    Restarts(job.notes, 3).begin()
    return queue, job, cancelled


def test_jobs_that_end_before_they_begin_are_not_submitted_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a save, which none of them counts as seen: as where Flux has too few nodes left."""
    queue, job, _ = chained(tmp_path, monkeypatch)
    follow({VARIABLE: str(job.notes)}, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_00000001" / "manifest.json").touch()
    said: list[str | None] = []
    while said[-1:] in ([], [None]) and len(said) < 9:
        job.status, job.num_ended = Status(State.FAILED, "alloc: unsatisfiable request"), 2
        said.append(queue.end(job, []))
    why = "no new checkpoint in 3 jobs (requeue.max_idle of the site): alloc: unsatisfiable request"
    assert said == [None, None, None, f"job 10 failed (failed, no result): {why}"] and queue.site.max_idle == 3
    queue.close()


def test_a_successor_takes_over_and_another_waits_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, job, cancelled = chained(tmp_path, monkeypatch)
    assert (job.job_id, [one.job_id for one in job.successors]) == ("7", ["8"])
    job.status, job.num_ended = Status(State.NODE_FAIL), 2
    assert queue.end(job, []) is None
    assert (job.job_id, [one.job_id for one in job.successors]) == ("8", ["9"])
    known = queue.active.all().get(job.key)
    assert known is not None and [job_id for job_id, _ in known.chain] == ["8", "9"]
    job.result = 0
    assert queue.end(job, []) == "" and cancelled == ["9"] and queue.active.all().get(job.key) is None
    queue.close()


def test_the_successor_of_a_dead_controllers_job_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, job, cancelled = chained(tmp_path, monkeypatch)
    monkeypatch.setattr(executor, "ask", lambda *_: {"7": Status(State.COMPLETED), "8": Status(State.RUNNING)})
    adopted = queue.adopt(job.submission)
    assert adopted is not None and (adopted.job_id, adopted.successors) == ("8", [])
    queue.cancel([job])
    assert cancelled == ["8", "7"], "the successor first, or it would start"
    queue.close()


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


def test_ended_job_waits_for_its_launch(tmp_path: Path) -> None:
    """The shell around the launch dies of TERM before it, as when a scheduler signals all processes of a job."""
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
    job.terminate()
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert list((tmp_path).glob("notes/launch_*")) and (tmp_path / "saved").exists()


def test_job_is_not_forgotten_while_the_scheduler_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue here
    monkeypatch.setattr("jobs.adoption.PATIENCE_S", 0)
    queue = Queue(load_site("slurm"), tmp_path, 1)
    key = queue.active.key("train", ["a"])
    known = ActiveJob("7", "slurm", tmp_path / "%j", "train", ("a",), tmp_path / "notes")
    queue.active.add({key: known})
    with pytest.raises(UserError, match="slurm does not say whether job 7 still runs"):
        queue.adopt(submission(tmp_path, "a"))
    assert queue.active.all() == {key: known}
    queue.close()


def test_job_of_another_scheduler_is_neither_taken_over_nor_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user goes on with another site in the same folder: each scheduler is asked of its own jobs only."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bjobs").write_text("#!/bin/sh\necho '7|0|RUN|-|-'; echo '8|0|DONE|-|-'\n")
    (tmp_path / "bin" / "bjobs").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")  # no squeue here
    queue = Queue(load_site("slurm"), tmp_path, 1)
    for job_id, scheduler, output in (("7", "lsf", "a"), ("8", "lsf", "b"), ("9", "flux", "c")):
        known = ActiveJob(job_id, scheduler, tmp_path / "%j", "train", (output,), tmp_path / "notes")
        queue.active.add({queue.active.key("train", [output]): known})
    for _ in range(2):
        with pytest.raises(UserError, match=r"^lsf job 7 is at it: go on with its site, or end that job first$"):
            queue.adopt(submission(tmp_path, "a"))
    assert queue.adopt(submission(tmp_path, "b")) is None, "it has ended"
    with pytest.raises(UserError, match=r"^flux does not say whether job 9 still runs; go on where flux is$"):
        queue.adopt(submission(tmp_path, "c"))
    assert len(queue.active.all()) == 2
    queue.close()


def test_one_controller_per_folder_and_none_after_its_death(tmp_path: Path) -> None:
    code = f"from jobs.controller import Lock; from pathlib import Path\nlock = Lock(Path({str(tmp_path)!r}))\n"
    holder = subprocess.Popen([sys.executable, "-c", code + "print(1, flush=True); input()"], stdin=-1, stdout=-1)
    assert holder.stdout is not None and holder.stdout.readline()
    with pytest.raises(UserError, match=f"another controller works here .process {holder.pid}"):
        Lock(tmp_path)
    holder.kill()
    holder.wait()
    Lock(tmp_path).release()
    holder.stdout.close()


def test_active_jobs_are_found_by_name_and_outputs(tmp_path: Path) -> None:
    active = ActiveJobs(tmp_path / "state" / "active")
    assert active.all() == {}
    rest = ("slurm", Path("logs"), "train", ("b\nb", "a"), Path("notes"), (("8", Path("next")),))
    jobs = [ActiveJob(job_id, *rest) for job_id in "567"]
    keys = [active.key("train", [name, "b\nb"]) for name in "567"]
    active.add(dict(zip(keys, jobs, strict=True)))
    assert keys[0] == active.key("train", ["b\nb", "5"]) != keys[1]
    active.remove(keys[0])
    active.add({keys[1]: jobs[0]})
    known = {keys[1]: jobs[0], keys[2]: jobs[2]}
    assert active.all() == known
    with active.file.open("a") as file:
        file.write('{"key": "ab')  # the disk was full
    active.add({keys[0]: jobs[1]})
    assert active.all() == {**known, keys[0]: jobs[1]}
    active.compact()
    assert active.all() == {**known, keys[0]: jobs[1]} and active.file.read_text().count('"key"') == 3
    assert list(active.file.parent.iterdir()) == [active.file] and active.file.stat().st_mode & 0o777 == 0o600


def test_a_job_starts_with_few_imports_and_leaves_submitits_result(tmp_path: Path) -> None:
    heavy = "sorted({'numpy', 'asyncio', 'yaml', 'submitit', 'torch'} & set(__import__('sys').modules))"
    utils.DelayedSubmission(eval, heavy).dump(tmp_path / "7_submitted.pkl")
    utils.DelayedSubmission(allocation(tmp_path, "exit 3")).dump(tmp_path / "8_submitted.pkl")
    code = "import jobs.allocation, sys; from jobs.entry import Path, main; sys.exit(main(Path('.')))"
    for job_id, exit_code in (("7", 0), ("8", 1)):
        environ = {**os.environ, "JOBS_JOB_ID": job_id, "PYTHONPATH": str(Path(__file__).parents[2])}
        assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ).returncode == exit_code
    assert core.Job[list[str]](tmp_path, "7").result() == []
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
