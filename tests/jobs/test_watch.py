"""`jobs status`, `logs` and `cancel`: what is read of run directories, and what the scheduler's answer adds."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.controller import ACTIVE, ActiveJob, ActiveJobs
from jobs.errors import UserError
from jobs.inquiry import Place, places
from jobs.scheduler import SCHEDULERS
from jobs.warning import read_verdict
from jobs.watch import cancel

SQUEUE = """7|PENDING|2026-11-21T10:00:00|Priority
8|PENDING|N/A|AssocGrpCPULimit
9|RUNNING|2026-11-21T08:00:00|None
"""
WAITING = """3|batch
9|batch
12_1|batch
8|large
7|batch
8|batch
"""


def write_run(folder: Path, steps_done: int, steps: int = 40) -> Path:
    """A run directory as the trainer leaves it after some steps."""
    for name in ("sources", "checkpoints/step_00000010", "checkpoints/.tmp-step_00000020", "logs"):
        (folder / name).mkdir(parents=True)
    (folder / "config.yaml").write_text(f"train:\n  steps: {steps}\n")
    (folder / "checkpoints" / "step_00000010" / "manifest.json").write_text("{}")
    (folder / "logs" / "train.log").write_text("step 1/40\n")
    record = {"loss": 2.5, "step_time_s": 2.0, "tokens_per_s": 1000.0, "mfu": 0.41}
    lines = [json.dumps({"step": step, **record}) for step in range(1, steps_done + 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1, "valid_loss": 3.0}', '{"step": 99, "los']))
    ends = [{"cause": "saved after SIGUSR2"}, {"cause": "rank 1 was killed by SIGKILL"}]
    (folder / "segments.jsonl").write_text("".join(json.dumps(end) + "\n" for end in ends))
    return folder


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    """A folder where Snakemake ran, beside a squeue that counts how often it is asked and a scancel that notes whom."""
    write_run(tmp_path / "results" / "exp" / "runs" / "half", 20)
    done = write_run(tmp_path / "results" / "exp" / "runs" / "done", 40)
    (done / "train_summary.json").write_text("{}")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    answer = f"case $* in *--sort*) cat {tmp_path}/waiting;; *) cat {tmp_path}/answer; esac"
    for name, does in (("squeue", answer), ("scancel", ""), ("scontrol", f"cat {tmp_path}/settings")):
        (binaries / name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\n{does}\n')
        (binaries / name).chmod(0o755)
    (tmp_path / "answer").write_text(SQUEUE)
    (tmp_path / "waiting").write_text(WAITING)
    (tmp_path / "settings").write_text("PluginDir = /usr/lib/slurm\nPrivateData             = none\n")
    return tmp_path


def jobs(folder: Path, *arguments: str, expect: int = 0) -> str:
    environ = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "jobs", *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


def submitted(folder: Path, job_id: str, name: str, output: str, *successors: str) -> None:
    active = ActiveJobs(folder / ".snakemake" / "submitit" / ACTIVE)
    waiting = tuple((each, folder / "logs" / "%j") for each in successors)
    job = ActiveJob(job_id, "slurm", folder / "logs" / "%j", name, (output,), folder / "notes", waiting)
    active.add({active.key(name, [output]): job})


def statuses(folder: Path) -> dict[str, dict]:
    return {Path(row["name"]).name: row for row in json.loads(jobs(folder, "status", "--json"))}


def test_a_run_tells_where_it_stands(workflow: Path) -> None:
    rows = statuses(workflow)
    half = rows["half"]
    assert half["state"] == "stopped: rank 1 was killed by SIGKILL" and half["segments"] == 2
    assert (half["step"], half["steps"], half["loss"], half["mfu"], half["saved_step"]) == (20, 40, 2.5, 0.41, 10)
    assert half["eta_s"] == 20 * 2.0
    assert rows["done"]["state"] == "finished" and rows["done"]["eta_s"] is None
    assert not (workflow / "squeue.calls").exists(), "without a job there is nothing to ask"


def test_the_table_shows_the_same(workflow: Path) -> None:
    heading, *rows = jobs(workflow, "status").splitlines()
    assert heading.split()[:3] == ["run", "or", "job"]
    assert any("20/40" in row and "41.0%" in row and "0:00:40" in row and "10 (0:00:0" in row for row in rows), rows


def test_two_calls_tell_why_and_where_any_number_of_jobs_wait(workflow: Path) -> None:
    for number, run in ((7, "half"), (8, "new"), (9, "running")):
        submitted(workflow, str(number), "train", f"results/exp/runs/{run}/train_summary.json")
    for number in range(10, 40):
        submitted(workflow, str(number), "tokenize", f"results/exp/tokens/{number}.bin")
    (workflow / "answer").write_text(SQUEUE + "".join(f"{n}|RUNNING|N/A|None\n" for n in range(10, 40)))
    rows = statuses(workflow)
    waits = {key: rows["half"][key] for key in ("state", "reason", "estimated_start", "queue_position", "queue_length")}
    assert list(waits.values()) == ["pending", "Priority", "2026-11-21T10:00:00", 4, 5]
    assert rows["new"]["reason"] == "AssocGrpCPULimit" and rows["new"]["step"] is None
    assert (rows["new"]["queue_name"], rows["new"]["queue_position"], rows["new"]["queue_length"]) == ("large", 1, 1)
    assert rows["running"]["state"] == rows["tokenize"]["state"] == "running"
    assert "queue_position" not in rows["running"], "it began between the two answers"
    assert len((workflow / "squeue.calls").read_text().splitlines()) == 2
    table = jobs(workflow, "status")
    assert "pending, 4 of 5 in batch: Priority, starts 2026-11-21T10:00:00" in table
    assert max(map(len, table.splitlines())) < 240 and len(table.splitlines()) == 35, "a line each"
    (workflow / "settings").write_text("PrivateData             = accounts,jobs,usage\n")
    assert "pending: Priority, starts" in jobs(workflow, "status"), "how many others wait is not known"


def test_a_scheduler_that_does_not_answer_is_no_end(workflow: Path) -> None:
    submitted(workflow, "7", "train", "results/exp/runs/half/train_summary.json")
    (workflow / "answer").unlink()
    assert statuses(workflow)["half"]["state"] == "slurm does not answer"


def test_a_training_on_this_machine_is_known_by_its_lock(workflow: Path) -> None:
    with (workflow / "results" / "exp" / "runs" / "half" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert statuses(workflow)["half"]["state"] == "running"
    assert statuses(workflow)["half"]["state"].startswith("stopped")


def test_logs_by_name_and_by_folder(workflow: Path) -> None:
    assert jobs(workflow, "logs", "half") == jobs(workflow, "logs", "results/exp/runs/half") == "step 1/40\n"
    said = jobs(workflow, "logs", "hal", expect=2)
    assert said == "jobs: error: hal: no such run below results; name its folder, or one of done, half\n"
    (workflow / "empty").mkdir()
    assert jobs(workflow / "empty", "logs", "hal", expect=2).endswith("below results; name its folder\n")


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["logs", "half"]])
def test_a_reader_that_has_seen_enough_is_no_error(workflow: Path, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "jobs", *words]
    done = subprocess.run(command, cwd=workflow, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_reader_of_logs_may_leave(workflow: Path) -> None:
    log = workflow / "results" / "exp" / "runs" / "half" / "logs" / "rank_00002.log"
    log.write_text("é\n" * 3_000_000)
    command = [sys.executable, "-m", "jobs", "logs", "half", "--rank", "2"]
    with subprocess.Popen(command, cwd=workflow, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == "é\n".encode()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert jobs(workflow, "logs", "half", "--rank", "2") == log.read_text()


def test_logs_follow(workflow: Path) -> None:
    command = [sys.executable, "-u", "-m", "jobs", "logs", "-f", "half"]
    process = subprocess.Popen(command, cwd=workflow, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "step 1/40\n"
    with (workflow / "results" / "exp" / "runs" / "half" / "logs" / "train.log").open("a") as log:
        log.write("step 2/40\n")
    assert process.stdout.readline() == "step 2/40\n"
    process.terminate()
    process.wait(timeout=20)


def test_cancel_ends_the_job_of_the_run_alone(workflow: Path) -> None:
    submitted(workflow, "7", "train", "results/exp/runs/half/train_summary.json")
    submitted(workflow, "8", "train", "results/exp/runs/done/train_summary.json")
    assert "asked slurm to end job 7" in jobs(workflow, "cancel", "half")
    assert (workflow / "scancel.calls").read_text() == "7\n"
    (workflow / "results" / "exp" / "runs" / "idle").mkdir()
    assert "idle: no job on its way" in jobs(workflow, "cancel", "half", "idle", expect=2)
    assert (workflow / "scancel.calls").read_text() == "7\n", "all or none"


def test_a_chain_is_cancelled_from_its_end_and_a_scheduler_that_does_not_take_it_is_told_of(
    workflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor would start when the job before it ends."""
    submitted(workflow, "7", "train", "results/exp/runs/half/train_summary.json", "8", "9")
    assert "asked slurm to end job 7" in jobs(workflow, "cancel", "half")
    assert (workflow / "scancel.calls").read_text() == "9 8 7\n"
    assert read_verdict(workflow / "notes") == "cancelled", "what its controller submits anew ends at once"
    (workflow / "bin" / "scancel").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    monkeypatch.setattr("jobs.submission.CANCEL_WAIT_S", 0)
    monkeypatch.setenv("PATH", str(workflow / "bin"), prepend=":")
    monkeypatch.chdir(workflow)
    with pytest.raises(UserError, match=r"^slurm: not cancelled: 9, 8, 7: Unable to contact slurm controller$"):
        cancel([Path("results/exp/runs/half")], Path(".snakemake/submitit"))


def test_a_damaged_file_is_told_of_in_one_line_and_hides_no_other_run(workflow: Path) -> None:
    runs = workflow / "results" / "exp" / "runs"
    (runs / "half" / "metrics.jsonl").write_text('{"loss": 1.5, "step_time_s": 1}\n')
    (runs / "half" / "segments.jsonl").write_text('{"cause": "saved"}\n{"job_id": "7", "ca')
    (write_run(runs / "diverged", 3) / "metrics.jsonl").write_text('{"step": 3, "loss": NaN, "step_time_s": 2.0}\n')
    rows = statuses(workflow)
    assert rows["half"]["state"] == "unreadable: KeyError('step')" and rows["done"]["state"] == "finished"
    assert (rows["diverged"]["loss"], rows["diverged"]["step"]) == (None, 3)
    assert "NaN" not in jobs(workflow, "status", "--json"), "which JSON does not have"
    assert "nan" in jobs(workflow, "status")
    submitted(workflow, "7", "train", "results/exp/runs/half/train_summary.json")
    journal = workflow / ".snakemake" / "submitit" / ACTIVE
    journal.write_text(journal.read_text().replace("job_id", "id") + '{"key": "cut o')
    for words in (["status"], ["cancel", "half"]):
        said = jobs(workflow, *words, expect=2)
        assert said.startswith(f"jobs: error: {journal.relative_to(workflow)}: not of this version, or damaged: {{")
        assert len(said.splitlines()) == 1


def test_flux_and_lsf_give_places_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for scheduler, tool, said in (("flux", "flux", "3|\n7|\n"), ("lsf", "bjobs", "a banner\n3|normal\n7|normal\n")):
        (tmp_path / tool).write_text(f"#!/bin/sh\nprintf '{said}'\n")
        (tmp_path / tool).chmod(0o755)
        batch = SCHEDULERS[scheduler].batch
        assert batch is not None and places(batch)["7"] == Place(2, 2, "normal" if scheduler == "lsf" else "")
        (tmp_path / tool).unlink()
        assert places(batch) == {}, "it does not say"
