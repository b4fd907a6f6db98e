"""Schedulers whose commands fail in every way for a while: no job is lost, submitted twice or repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import adoption, shell, submission
from jobs.queue import Queue
from jobs.site import load_site
from jobs.state import State
from tests.jobs.test_queue import submission as submission_of

# A command of a scheduler that has one job already. The next calls, as many as `left` says, have the fault in `fault`;
# where an answer is lost or mute the job is taken all the same.
FAULTS = """#!/bin/bash
cd {folder}
take() {{ n=$(($(wc -l < taken) + 6)); echo "$n|${{@: -1}}" >> taken; }}
left=$(cat left); [ $left -gt 0 ] && echo $((left - 1)) > left
case $([ $left -gt 0 ] && cat fault) in
  fail) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1;;
  lost) {is_submit} && take "$@"; exit 1;;
  mute) {is_submit} && take "$@"; exit 0;;
  hang) exec sleep 20;;
  empty) exit 0;;
  garbage) printf '\\377<html>{{"jobs": [{{"id": 7'; exit 0;;
esac
"""
SBATCH = 'take "$@"; echo $n'
SQUEUE = "[[ $* = *%o* ]] && cat taken || sed 's/|.*/|RUNNING|N\\/A|None/' taken"
BSUB = 'take "$@"; echo "Job <$n> is submitted to queue <normal>."'
BJOBS = """[[ $* = *job_name* ]] && { cat taken; exit; }
[[ $* = *-json* ]] && { echo 'bjobs: illegal option -- json' >&2; exit 255; }
[[ $* = *-w* ]] && { sed 's/|/ me RUN normal login node /' taken; exit; }
sed 's/|.*/|-|RUN|-|-/' taken"""
FLUX = """case $1 in
  batch) take "$@"; echo f8;;
  *) [[ $* = *--format* ]] && { cat taken; exit; }
     grep -q ^7 taken && echo '{"id": 7, "status": "RUN"}' || { echo "JobID 7 unknown" >&2; exit 1; };;
esac"""
COMMANDS = {
    "slurm": {"sbatch": ("true", SBATCH), "squeue": ("false", SQUEUE), "sacct": ("false", "exit 1")},
    "lsf": {"bsub": ("true", BSUB), "bjobs": ("false", BJOBS)},
    "flux": {"flux": ("[ $1 = batch ]", FLUX)},
}
SITES = {"slurm": "slurm", "lsf": "summit", "flux": "flux"}


@pytest.fixture(params=COMMANDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a scheduler's commands, of which `taken` lists its jobs."""
    (tmp_path / "taken").write_text("6|/another.sh\n")
    (tmp_path / "left").write_text("0\n")
    for name, (is_submit, does) in COMMANDS[request.param].items():
        (tmp_path / name).write_text(FAULTS.format(folder=tmp_path, is_submit=is_submit) + does + "\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(shell.run, "__defaults__", (0.5, None))
    short = {"FIRST_WAIT_S": 0.05, "LONGEST_WAIT_S": 0.2, "EMPTY_S": 25.0, "LATE_S": 0.5, "PATIENCE_S": 30.0}
    for name, seconds in short.items():
        monkeypatch.setattr(submission, name, seconds)
    for name, seconds in {"WAIT_S": 0.1, "UNKNOWN_S": 25.0, "PATIENCE_S": 30.0}.items():
        monkeypatch.setattr(adoption, name, seconds)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scheduler").write_text(request.param)
    return tmp_path


def fail(folder: Path, num_calls: int) -> None:
    """Commands that hang are given up soon; those that are to answer have the time of a busy machine."""
    shell.run.__defaults__ = (0.5 if num_calls else 60, None)
    draft = folder / "left.tmp"
    draft.write_text(f"{num_calls}\n")
    draft.replace(folder / "left")


@pytest.mark.parametrize("fault", ["fail", "lost", "mute", "hang", "empty", "garbage"])
def test_a_fault_loses_no_job_and_doubles_none(folder: Path, fault: str) -> None:
    """While it is submitted, while it is watched, and while the next controller looks for it."""
    site = load_site(SITES[(folder / "scheduler").read_text()])
    queue = Queue(site, folder / "state", 1)
    (folder / "fault").write_text(fault)
    fail(folder, 2)
    (job,) = queue.submit([submission_of(folder, "out")])
    assert job.job_id == "7" and len((folder / "taken").read_text().splitlines()) == 2
    fail(folder, 99)
    for _ in range(2):
        queue.asked_s = float("-inf")
        queue.refresh([job])
        assert queue.end(job, []) is None and job.job_id == "7"
    fail(folder, 0)
    queue.asked_s = float("-inf")
    queue.refresh([job])
    assert job.status.state is State.RUNNING and queue.end(job, []) is None
    queue.close()
    queue = Queue(site, folder / "state", 1)
    fail(folder, 2)
    adopted = queue.adopt(job.submission)
    assert adopted is not None and adopted.job_id == "7"
    assert len((folder / "taken").read_text().splitlines()) == 2
    queue.close()
