"""The jobs of one controller, without a scheduler: what follows an end, what the next controller finds, its lock."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from submitit.core import utils

from jobs import executor
from jobs.controller import ActiveJob, ActiveJobs, Lock
from jobs.errors import RefusalError, UserError
from jobs.queue import Queue, QueuedJob, Submission
from jobs.scheduler.contract import Status
from jobs.site import Site, load_site
from jobs.spec import JobSpec
from jobs.state import State
from jobs.warning import VARIABLE, exclude, follow


class FakeHandle:
    """A job of submitit without a scheduler behind it: it left no result."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self.job_id = job_id
        self.paths = utils.JobPaths(folder, job_id)


def submission(folder: Path, output: str) -> Submission:
    return Submission(JobSpec(name="train"), (output,), ["true"], folder)


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
    monkeypatch.setattr(executor, "submit_all", lambda *arguments: [handles.pop(0)])
    queue = Queue(load_site("slurm"), tmp_path / "state", 1)
    (job,) = queue.submit([submission(tmp_path, "train_summary.json")])
    job.restarts.begin("7")
    if "run" in extras:
        follow({VARIABLE: str(job.notes)}, tmp_path / "run")
    if "save" in extras:
        (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "step_00000001" / "manifest.json").touch()
    job.status, job.num_ended = Status(state), 2
    said = queue.end(job, [])
    assert (said is None) == expected and job.job_id == ("8" if expected else "7")
    known = queue.active.all().get(job.submission.key)
    assert (known.job_id if known else None) == ("8" if expected else None)
    queue.close()


def chained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Queue, QueuedJob, list[str]]:
    """A queue of fake jobs 7, 8, 9 ..., a job with one successor, and the ids that were cancelled."""
    numbers, cancelled = itertools.count(7), list[str]()
    monkeypatch.setattr(executor, "submit_all", lambda *arguments: [FakeHandle(folder, str(next(numbers)))])
    monkeypatch.setattr(executor, "cancel", lambda scheduler, jobs: cancelled.extend(job.job_id for job in jobs))
    queue = Queue(load_site("slurm"), folder / "state", 1)
    (job,) = queue.submit([replace(submission(folder, "train_summary.json"), num_successors=1)])
    job.restarts.begin("7")
    return queue, job, cancelled


@pytest.mark.parametrize(("is_taken", "tried_at"), [(True, [0, 0, 80, 700]), (False, [0, 0, 60, 660])])
def test_jobs_that_are_refused_or_never_begin_are_tried_again_later_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_taken: bool, tried_at: list[float]
) -> None:
    """After a save, which none of them counts as seen: as where too few nodes are left."""
    clock, why, submitted = SimpleNamespace(now_s=0.0), "alloc: unsatisfiable request", []

    def submit_all(*arguments: Any) -> list[FakeHandle]:
        submitted.append(clock.now_s)
        if submitted[1:] and not is_taken:
            raise RefusalError(why)
        return [FakeHandle(tmp_path, str(6 + len(submitted)))]

    monkeypatch.setattr("jobs.queue.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr(executor, "submit_all", submit_all)
    queue = Queue(load_site("slurm"), tmp_path / "state", 1)
    (job,) = queue.submit([submission(tmp_path, "train_summary.json")])
    job.restarts.begin("7")
    follow({VARIABLE: str(job.notes)}, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_00000001" / "manifest.json").touch()
    said = None
    while said is None and clock.now_s < 9999:
        job.status, job.num_ended = Status(State.FAILED, why), 2
        said = queue.end(job, [])
        clock.now_s += 20
    idle = f"no new checkpoint in 3 allocations (requeue.max_idle of the site): {why}"
    assert said == f"job {10 if is_taken else 7} failed (failed, no result): {idle}" and queue.site.max_idle == 3
    assert submitted == tried_at
    queue.close()


def test_unfit_nodes_are_avoided_until_too_few_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flux takes such a job, and fails it before it begins."""
    avoided: list[tuple[str, ...]] = []

    def submit_all(site: Site, folder: Path, spec: JobSpec, allocations: Any) -> list[FakeHandle]:
        avoided.append(spec.exclude)
        return [FakeHandle(tmp_path, str(6 + len(avoided)))]

    monkeypatch.setattr(executor, "submit_all", submit_all)
    monkeypatch.setattr("jobs.queue.FIRST_WAIT_S", 0)
    queue = Queue(load_site("flux"), tmp_path / "state", 1)
    (job,) = queue.submit([submission(tmp_path, "train_summary.json")])
    job.restarts.begin("7")
    exclude({VARIABLE: str(job.notes)}, ["n1"])
    for state in (State.NODE_FAIL, State.FAILED, State.FAILED):
        job.status, job.num_ended = Status(state, "alloc: unsatisfiable request"), 2
        assert queue.end(job, []) is None
    assert job.job_id == "9" and avoided == [(), ("n1",), ()]
    queue.close()


def test_a_first_job_that_never_begins_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user is still there, and it may be his mistake."""
    monkeypatch.setattr(executor, "submit_all", lambda *arguments: [FakeHandle(tmp_path, "7")])
    queue = Queue(load_site("slurm"), tmp_path / "state", 1)
    (job,) = queue.submit([submission(tmp_path, "train_summary.json")])
    job.status, job.num_ended = Status(State.FAILED, "too many nodes"), 2
    assert queue.end(job, []) == "job 7 failed (failed, no result): too many nodes"
    queue.close()


def test_a_successor_takes_over_and_another_waits_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, job, cancelled = chained(tmp_path, monkeypatch)
    assert [one.job_id for one in job.handles] == ["7", "8"]
    job.status, job.num_ended = Status(State.NODE_FAIL), 2
    assert queue.end(job, []) is None
    assert [one.job_id for one in job.handles] == ["8", "9"]
    known = queue.active.all().get(job.submission.key)
    assert known is not None and [job_id for job_id, _ in known.chain] == ["8", "9"]
    job.result = 0
    assert queue.end(job, []) == "" and cancelled == ["9"] and queue.active.all().get(job.submission.key) is None
    queue.close()


def test_the_successor_of_a_dead_controllers_job_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, job, cancelled = chained(tmp_path, monkeypatch)
    monkeypatch.setattr(executor, "ask", lambda *_: {"7": Status(State.COMPLETED), "8": Status(State.RUNNING)})
    adopted = queue.adopt(job.submission)
    assert adopted is not None and [one.job_id for one in adopted.handles] == ["8"]
    queue.cancel([job])
    assert cancelled == ["8", "7"], "the successor first, or it would start"
    queue.close()


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
