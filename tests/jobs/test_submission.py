"""Commands that fail for a while, by a fake sbatch and squeue: nothing is lost, and nothing submitted twice."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_submitit import Executor
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from jobs import executor, shell, submission
from jobs.controller import ActiveJob
from jobs.errors import UserError
from jobs.queue import Queue
from jobs.scheduler import SCHEDULERS, lsf_output, slurm
from jobs.scheduler.contract import rows
from jobs.site import load_site
from jobs.state import State
from tests.jobs.test_launch import wait_for
from tests.jobs.test_queue import submission as submission_of

BATCH = SCHEDULERS["slurm"].batch
assert BATCH is not None
SCRIPT = Path("/state/train/.submission_file_abc.sh")
TIMED_OUT = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fakes that note each call in a file; what they do is the n-th line of `plan`."""
    for tool in ("sbatch", "squeue", "scancel", "scontrol"):
        count = f"echo {tool} >> {tmp_path}/calls; n=$(grep -c {tool} {tmp_path}/calls)"
        (tmp_path / tool).write_text(f'#!/bin/bash\n{count}; eval "$(sed -n ${{n}}p {tmp_path}/{tool}.plan)"\n')
        (tmp_path / tool).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    waits = {"FIRST_WAIT_S": 0.01, "LONGEST_WAIT_S": 0.05, "LATE_S": 0.2, "PATIENCE_S": 2.0, "CANCEL_WAIT_S": 0.01}
    for name, value in waits.items():
        monkeypatch.setattr(submission, name, value)
    return tmp_path


def plan(folder: Path, **lines: str) -> None:
    for tool, text in lines.items():
        (folder / f"{tool}.plan").write_text(text)


def calls(folder: Path, tool: str) -> int:
    return (folder / "calls").read_text().split().count(tool)


def place() -> str:
    assert BATCH is not None
    return submission.place(BATCH, ["sbatch", str(SCRIPT)], SCRIPT)


def test_an_interactive_session_around_us_does_not_reach_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SLURM_CPU_BIND", "mask_cpu:0x1")
    monkeypatch.setenv("SLURM_CONF", "/etc/x")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "SLURM_CPU_BIND=" in shell.run(["env"]).stdout
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    seen = shell.run(["env"]).stdout
    assert "SLURM_CONF=" in seen and "SLURM_CPU_BIND" not in seen and "SQUEUE_" not in seen
    monkeypatch.setenv("FLUX_URI", "local:///inside")
    monkeypatch.setenv("JOBS_FLUX_URI", "local:///outside")
    assert "FLUX_URI=local:///outside\n" in shell.run(["env"]).stdout.splitlines(keepends=True)


def test_ctrl_c_loses_no_answer(tmp_path: Path) -> None:
    """A terminal sends it to every process of ours; the job that is being submitted would be nobody's."""
    code = """from jobs.shell import interrupted_late, run
with interrupted_late():
    print(run(["sh", "-c", "touch begun; sleep 1; echo 7"]), flush=True)
print("more")"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    wait_for((tmp_path / "begun").exists)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "stdout='7\\n'" in out and "more" not in out and "KeyboardInterrupt" in err
    assert process.returncode == -signal.SIGINT


def test_a_lost_answer_is_looked_up(slurm_commands: Path) -> None:
    plan(slurm_commands, sbatch=f"{TIMED_OUT}\n", squeue=f"exit 1\necho '6|/x.sh'; echo '7|{SCRIPT}'\n")
    assert place() == "7"
    assert (calls(slurm_commands, "sbatch"), calls(slurm_commands, "squeue")) == (1, 2)


def test_a_job_that_appears_after_its_command_was_given_up_is_found(
    slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell.run, "__defaults__", (0.5, None))
    monkeypatch.setattr(submission, "LATE_S", 10.0)
    monkeypatch.setattr(submission, "PATIENCE_S", 30.0)
    hangs = f"(sleep 1.5; echo '7|{SCRIPT}' >> listed) > /dev/null 2>&1 & exec sleep 20\n"
    plan(slurm_commands, sbatch=f"{hangs}echo 8\n", squeue="echo '6|/x.sh'; cat listed 2> /dev/null; true\n" * 999)
    assert place() == "7" and calls(slurm_commands, "sbatch") == 1


def test_a_job_that_did_not_arrive_is_submitted_again(slurm_commands: Path) -> None:
    plan(slurm_commands, sbatch=f"{TIMED_OUT}\nexit 1\necho 8\n", squeue="echo '6|/x.sh'\n" * 999)
    assert place() == "8"
    assert calls(slurm_commands, "sbatch") == 3


def test_refusals_and_lasting_silence_end_it(slurm_commands: Path) -> None:
    refused = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    plan(slurm_commands, sbatch=f"echo '{refused}' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"^sbatch: error: .*Invalid account"):
        place()
    plan(slurm_commands, sbatch="exit 1\n" * 9, squeue="exit 1\n" * 999)
    with pytest.raises(UserError, match="given up after 2 s: sbatch: exit code 1"):
        place()
    assert calls(slurm_commands, "sbatch") == 2, "while nobody knows about the first, there is no second"


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", False),
        ("sbatch: warning: can't honor --ntasks-per-node", False),
        ("", False),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", True),
        ("sbatch: unrecognized option '--foo'", True),
    ],
)
def test_no_is_told_from_not_now(said: str, refused: bool) -> None:
    assert slurm.is_refusal(said) == refused


def test_lsf_says_no_too() -> None:
    assert lsf_output.is_refusal("gpux: No such queue. Job not submitted.")
    assert not lsf_output.is_refusal("LSF is down. Please wait ...")
    assert not lsf_output.is_refusal("LSF is processing your request. Please wait...\n. Job not submitted.")


def test_rows_of_a_listing() -> None:
    assert rows("12|/bin/bash '/s/abc.sh'\n") == {"12": "/bin/bash '/s/abc.sh'\n"}
    assert rows("11|/x.sh\n12|/s\n| /abc.sh\n13|/y.sh\n")["12"] == "/s\n| /abc.sh\n"


def test_cancelling_is_tried_again_and_owned_up_to(slurm_commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BATCH is not None
    plan(slurm_commands, scancel="exit 1\nexit 0\n")
    assert submission.cancel(BATCH, ["7"]) == ""
    plan(slurm_commands, scancel="\n\n" + "echo down >&2; exit 1\n" * 9)
    assert submission.cancel(BATCH, ["7"]) == "down" and calls(slurm_commands, "scancel") == 6
    over = "scancel: error: Kill job error on job id 7: Job/step already completing or completed"
    plan(slurm_commands, scancel="\n" * 6 + f"echo '{over}' >&2; exit 1\n")
    assert submission.cancel(BATCH, ["7"]) == ""
    monkeypatch.setattr(shell.run, "__defaults__", (0.5, None))
    plan(slurm_commands, scancel="\n" * 7 + "exec sleep 20\n" * 9)
    assert submission.cancel(BATCH, ["7"]) == "scancel: no answer within 0 s" and calls(slurm_commands, "scancel") == 8


def test_all_jobs_of_a_dead_controller_are_asked_about_at_once(slurm_commands: Path) -> None:
    plan(slurm_commands, squeue="printf '7|RUNNING|N/A|None\\n8|PENDING|N/A|Priority\\n9|COMPLETED|N/A|None\\n'\n")
    queue = Queue(load_site("slurm"), slurm_commands / "state", 1)
    for job_id in ("7", "8", "9"):
        key = queue.active.key("train", [job_id])
        queue.active.add({key: ActiveJob(job_id, "slurm", slurm_commands / "%j", "train", (job_id,), slurm_commands)})
    adopted = [queue.adopt(submission_of(slurm_commands, job_id)) for job_id in ("7", "8", "9", "10")]
    assert [job and job.job_id for job in adopted] == ["7", "8", None, None]
    assert calls(slurm_commands, "squeue") == 1
    queue.close()


@pytest.mark.parametrize(
    ("said", "refusals", "submissions"),
    [
        ("echo what", 2, 1),  # no id: the scheduler may have taken the array
        ("echo 'sbatch: error: Batch job submission failed: Invalid job array specification' >&2; exit 1", 0, 3),
    ],
)
def test_only_a_refused_array_is_submitted_one_by_one(
    slurm_commands: Path, monkeypatch: pytest.MonkeyPatch, said: str, refusals: int, submissions: int
) -> None:
    plan(slurm_commands, sbatch=f"{said}\necho 8\necho 9\n")
    refused, registered, plugin = [], [], Executor.__new__(Executor)
    plugin.queue = Queue(load_site("slurm"), slurm_commands / "state", 1)
    plugin.site, plugin.logger = plugin.queue.site, logging.getLogger()
    monkeypatch.setattr(plugin, "_refuse", lambda job, error: refused.append(job))
    monkeypatch.setattr(plugin, "_register", lambda job, queued: registered.append(queued.job_id))
    jobs = [SimpleNamespace(jobid=name, resources={}) for name in "ab"]
    monkeypatch.setattr(plugin, "run_job_pre", lambda job: None)
    monkeypatch.setattr(plugin, "_adopted_or_new", lambda job: submission_of(slurm_commands, job.jobid))
    plugin.run_jobs(jobs)
    assert (len(refused), calls(slurm_commands, "sbatch")) == (refusals, submissions)
    assert registered == ["8", "9"][: submissions - 1]
    groups = []
    monkeypatch.setattr(plugin, "_submit", groups.append)
    monkeypatch.setattr(plugin.queue, "has_arrays", False)
    plugin.run_jobs(jobs)
    assert [len(group) for group in groups] == [1, 1], "where there are no arrays, jobs are on their own from the start"
    plugin.queue.close()


def test_where_there_are_no_arrays_nothing_of_a_list_is_submitted(slurm_commands: Path) -> None:
    (slurm_commands / "flux").symlink_to(slurm_commands / "sbatch")
    several = executor.SchedulerExecutor(slurm_commands / "state", scheduler="flux")
    with pytest.raises(UserError, match="flux: takes one job at a time"):
        several.submit_array([str, str])
    assert not (slurm_commands / "calls").exists()


def test_the_plugin_may_be_asked_before_it_is_ready() -> None:
    """Snakemake's thread asks one second after it began, while a slow filesystem still gives us the site."""

    async def answers() -> list[SubmittedJobInfo]:
        return [info async for info in Executor.__new__(Executor).check_active_jobs([])]

    assert asyncio.run(answers()) == []


def test_ctrl_c_cancels_also_what_is_just_asked_about(slurm_commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake takes jobs off its list while it waits for an answer about them; one that has ended is left alone."""
    plan(slurm_commands, sbatch="echo 7\necho 8\n", squeue="exit 1\n", scancel="echo $* > cancelled\n")
    plugin = Executor.__new__(Executor)
    plugin.queue, plugin.queued = Queue(load_site("slurm"), slurm_commands / "state", 1), {}
    for method in ("report_job_submission", "report_job_success"):
        monkeypatch.setattr(plugin, method, lambda info: None)
    infos = []
    for name in "ab":
        (queued,) = plugin.queue.submit([submission_of(slurm_commands, name)])
        infos.append(SubmittedJobInfo(SimpleNamespace(jobid=name, log=[]), aux={"queued": queued}))
        plugin._register(infos[-1].job, queued)
    monkeypatch.setattr(plugin.queue, "end", lambda job, logs: "" if job.job_id == "7" else None)

    async def ask() -> None:
        async for _ in plugin.check_active_jobs(infos):
            plugin.cancel_jobs([])

    asyncio.run(ask())
    assert (slurm_commands / "cancelled").read_text() == "8\n"
    plugin.queue.close()


@pytest.mark.parametrize("is_left", [True, False])
def test_what_jobs_wait_for_outlives_a_controller_that_could_not_cancel_them(tmp_path: Path, is_left: bool) -> None:
    """They begin later, or again."""
    plugin = Executor.__new__(Executor)
    plugin.queue = Queue(load_site("slurm"), tmp_path / "state", 1)
    plugin.workflow = SimpleNamespace(remote_execution_settings=SimpleNamespace(immediate_submit=False))
    plugin.lock, plugin.wait_thread = threading.Lock(), SimpleNamespace(join=lambda: None)
    plugin._tmpdir = str(tmp_path / "tmp.x")
    Path(plugin._tmpdir).mkdir()
    if is_left:
        plugin.queue.active.add({"key": ActiveJob("7", "slurm", tmp_path, "train", ("out",), tmp_path)})
    plugin.shutdown()
    assert (tmp_path / "tmp.x").exists() == is_left
    assert {file.name for file in plugin.queue.folder.iterdir()} == {"controller.lock", "active.jsonl"}


def test_questions_without_news_become_rare(slurm_commands: Path) -> None:
    answers = (
        "echo '7|PENDING|N/A|None'\n" * 4 + "echo '7|RUNNING|N/A|None'\n" * 5 + "exit 1\necho '7|COMPLETED|N/A|None'\n"
    )
    plan(slurm_commands, sbatch="echo 7\n", squeue=answers)
    queue = Queue(load_site("slurm"), slurm_commands / "state", 10)
    (job,) = queue.submit([submission_of(slurm_commands, "out")])
    waits = []
    for _ in range(11):
        queue.asked_s = float("-inf")
        queue.refresh([job])
        waits.append(queue.wait_s)
    assert waits == [15, 22.5, 33.75, 50.625, 60, 60, 60, 60, 60, 60, 10]
    queue.refresh([job])
    assert calls(slurm_commands, "squeue") == 11, "not due yet"
    queue.close()


def test_a_job_that_no_node_could_start_is_let_go(slurm_commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As squeue of 22.05 shows one after a prolog that failed; one that somebody holds on purpose stays held."""
    reasons = ("launch failed requeued held", "JobHeldUser", "launch failed requeued held", "Priority")
    answers = "".join(f"echo '7|PENDING|N/A|{reason}'\n" for reason in reasons)
    scontrol = "echo $* > asked\necho Access denied >&2; exit 1\n"
    plan(slurm_commands, sbatch="echo 7\n", squeue=answers, scontrol=scontrol)
    queue = Queue(load_site("slurm"), slurm_commands / "state", 10)
    (job,) = queue.submit([submission_of(slurm_commands, "out")])
    asked = []
    for _ in reasons:
        queue.asked_s = float("-inf")
        queue.refresh([job])
        asked.append(calls(slurm_commands, "scontrol"))
    assert asked == [1, 1, 2, 2] and Path("asked").read_text() == "release 7\n"
    said = capsys.readouterr().err
    assert [line.rpartition("held: ")[2] for line in said.splitlines()] == ["released", "not released: Access denied"]
    queue.close()


def test_a_folder_that_submitit_would_rename_is_refused(tmp_path: Path) -> None:
    """Or Slurm, to which a backslash in the path of a log means that nothing in it is filled in."""
    for name in ("100%A", "back\\slash"):
        with pytest.raises(UserError, match=r"to submitit or Slurm (%A|\\) in a name is no part of it"):
            Queue(load_site("slurm"), tmp_path / name, 1)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Of a user who lets everybody write."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_submission_files_are_private(slurm_commands: Path) -> None:
    plan(slurm_commands, sbatch="echo 7\n")
    queue = Queue(load_site("slurm"), slurm_commands / "state", 1)
    (job,) = queue.submit([submission_of(slurm_commands, "out")])
    folder = job.handle.paths.folder
    assert folder.parent == queue.folder / "train" and {file.suffix for file in folder.iterdir()} == {".sh", ".pkl"}
    script = next(folder.glob("*.sh")).read_text()
    assert 'export JOBS_JOB_ID="$SLURM_JOB_ID"\n' in script
    assert f'"$JOBS_JOB_ID"_submitted.pkl\nexec {sys.executable} -u -m jobs.entry {folder}\n' in script
    assert queue.folder.stat().st_mode & folder.stat().st_mode & 0o777 == 0o700, "nobody else gets below them"
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert (queue.folder / "controller.lock").stat().st_mode & 0o777 == 0o600
    assert executor.read_result(job.handle) is None
    queue.close()


def test_jobs_that_are_alike_are_one_array(slurm_commands: Path) -> None:
    """Each reads its own file by its number, and every command knows it as BASE_NUMBER."""
    queried = "printf '7_0|COMPLETED|N/A|None\\n7_1|RUNNING|N/A|None\\n7_2|PENDING|N/A|Priority\\n'"
    plan(slurm_commands, sbatch="echo $* > line; echo 7\n", squeue=f"{queried}\n" * 2, scancel="echo $* > cancelled\n")
    queue = Queue(load_site("slurm"), slurm_commands / "state", 1)
    jobs = queue.submit([submission_of(slurm_commands, name) for name in "abc"])
    assert [job.job_id for job in jobs] == ["7_0", "7_1", "7_2"] and calls(slurm_commands, "sbatch") == 1
    folder = jobs[0].handle.paths.folder
    line = Path("line").read_text()
    assert "--array=0-2 " in line and f"--output={folder}/%A_%a_0_log.out" in line
    (script,) = folder.glob("*.sh")
    words = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9"}
    text = script.read_text().replace("exec ", "true ")
    subprocess.run(["/bin/bash", "-c", f"{text}env | grep JOBS_JOB_ID > id"], env={**os.environ, **words}, check=True)
    assert Path("id").read_text() == "JOBS_JOB_ID=7_1\n"
    link = folder / "7_1_submitted.pkl"
    assert link.readlink().name == f"{script.stem}_1.pkl" and link.exists()
    said = executor.ask("slurm", [job.handle for job in jobs]) or {}
    states = {job_id: status.state for job_id, status in said.items()}
    assert states == {"7_0": State.COMPLETED, "7_1": State.RUNNING, "7_2": State.PENDING}
    adopted = [queue.adopt(job.submission) for job in jobs]
    assert [job and job.job_id for job in adopted] == [None, "7_1", "7_2"]
    queue.cancel(jobs[1:])
    assert Path("cancelled").read_text() == "7_1 7_2\n"
    queue.close()
