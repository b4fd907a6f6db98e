"""What runs in an allocation, without a scheduler: runs again after 85, within bounds; and the controller's lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.allocation import Allocation
from jobs.controller import ActiveJob, ActiveJobs, Lock
from jobs.errors import PayloadError, UserError
from jobs.failure import error_line
from jobs.queue import Queue
from jobs.site import load_site
from tests.jobs.test_launch import wait_for

SAVE_TWICE = 'echo x >> starts; [ $(wc -l < starts) -gt 2 ] && exit 0; echo 85 > "$JOBS_ALLOCATION/outcome"; exit 1'


def allocation(folder: Path, script: str, max_restarts: int = 5) -> Allocation:
    return Allocation(["bash", "-c", script], folder, "local", 1, max_restarts, folder / "notes")


def test_saved_command_runs_again(tmp_path: Path) -> None:
    assert allocation(tmp_path, SAVE_TWICE)() == 0
    assert (tmp_path / "starts").read_text() == "x\n" * 3


def test_restarts_are_bounded_and_failures_final(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="already restarted 1 times"):
        allocation(tmp_path, SAVE_TWICE, max_restarts=1)()
    with pytest.raises(PayloadError, match="exit code 3"):
        allocation(tmp_path, "exit 3")()


def test_ended_job_waits_for_its_launch(tmp_path: Path) -> None:
    """The shell around the launch dies of TERM before it, as when a scheduler signals all processes of a job."""
    launch = (
        'touch "$JOBS_ALLOCATION/launch_$BASHPID"; trap "kill $$; sleep 2; touch saved; exit 85" TERM; sleep 60 & wait'
    )
    code = f"""
from pathlib import Path
from jobs.allocation import Allocation
script = '( {launch} ) & sleep 1; touch ready; wait'
Allocation(["bash", "-c", script], Path("."), "local", 10, 0, Path("notes").resolve())()
"""
    job = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True, stderr=-1)
    wait_for(lambda: (tmp_path / "ready").exists())
    job.terminate()
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert list((tmp_path).glob("notes/launch_*")) and (tmp_path / "saved").exists()


def test_job_is_not_forgotten_while_the_scheduler_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue here
    queue = Queue(load_site("slurm"), tmp_path, 1)
    key = queue.active.key("train", ["a"])
    known = ActiveJob("7", "slurm", tmp_path / "%j", "train", ("a",))
    queue.active.add(key, known)
    with pytest.raises(UserError, match="slurm does not say whether job 7 still runs"):
        queue.adopt("train", ["a"])
    assert queue.active.find(key) == known
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
    active = ActiveJobs(tmp_path)
    job = ActiveJob("7", "slurm", Path("logs/%j"), "train", ("b", "a"))
    active.add(active.key("train", ["b", "a"]), job)
    assert active.find(active.key("train", ["a", "b"])) == job
    assert active.all() == [job]
    assert active.find(active.key("train", ["a"])) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_error_line_prefers_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback\nKeyError: 'x'\nneox: error: model.size: no\nsrun: error: node1: task 0: Exited\njunk\n")
    assert error_line([tmp_path / "absent", log]) == "neox: error: model.size: no"
    log.write_text("jobs.errors.PayloadError: exit code 1\nsrun: error: node1\n")
    assert error_line([log]) == "srun: error: node1"
    assert error_line([]) == ""
