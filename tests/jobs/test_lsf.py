"""LSF without an LSF: documented outputs, and a fake of its commands on PATH (fake_lsf.py) below the real rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import executor
from jobs.allocation import Allocation
from jobs.controller import ActiveJob
from jobs.errors import UserError
from jobs.queue import Queue, Submission
from jobs.ranks import rank_environment
from jobs.resources import job_spec, placed
from jobs.scheduler import lsf, lsf_output
from jobs.scheduler.contract import Status
from jobs.scheduler.script import render_script
from jobs.site import Site, load_site
from jobs.spec import JobSpec
from jobs.state import State
from jobs.watch import log_text
from tests.jobs.test_launch import wait_for
from tests.jobs.test_scheduler import assert_golden, full_spec
from tests.jobs.workflow import run_snakemake

FAKE = Path(__file__).with_name("fake_lsf.py")
SUMMIT = Path(__file__).parents[2] / "site_configs" / "summit" / "site.yaml"
# As Summit's LSF prints it (from a public log), with records of jobs that ended in other ways.
BJOBS_JSON = """\
{
  "COMMAND":"bjobs",
  "JOBS":10,
  "RECORDS":[
    {"JOBID":"26238","JOBINDEX":"0","STAT":"RUN","EXIT_CODE":"","EXIT_REASON":""},
    {"JOBID":"26239","STAT":"PEND","EXIT_REASON":""},
    {"JOBID":"26240","STAT":"DONE","EXIT_REASON":""},
    {"JOBID":"26241","STAT":"EXIT","EXIT_REASON":""},
    {"JOBID":"26242","STAT":"EXIT","EXIT_REASON":"TERM_OWNER: job killed by owner"},
    {"JOBID":"26243","STAT":"EXIT","EXIT_REASON":"TERM_RUNLIMIT: job killed after reaching LSF run time limit"},
    {"JOBID":"26244","STAT":"UNKWN","EXIT_REASON":""},
    {"JOBID":"26245","ERROR":"Job <26245> is not found"},
    {"JOBID":"26246","JOBINDEX":"7","STAT":"DONE","EXIT_CODE":"","EXIT_REASON":""},
    {"JOBID":"26247","JOBINDEX":"0","STAT":"EXIT","EXIT_CODE":"140","EXIT_REASON":""}
  ]
}
"""
BJOBS_TEXT = """\
26238|0|RUN|-|-
26239|0|PEND|-|-
26240|0|DONE|-|-
26241|0|EXIT|1|-
26242|0|EXIT|130|TERM_OWNER: job killed by owner
26243|0|EXIT|130|TERM_RUNLIMIT: job killed after reaching LSF run time limit
26244|0|UNKWN|-|-
26246[7]|7|DONE|-|-
26247|0|EXIT|140|-
"""
BJOBS_STATES = {
    "26238": State.RUNNING,
    "26239": State.PENDING,
    "26240": State.COMPLETED,
    "26241": State.FAILED,
    "26242": State.CANCELLED,
    "26243": State.TIMEOUT,
    "26244": State.RUNNING,
    "26246[7]": State.COMPLETED,
    "26247": State.TIMEOUT,
}
BJOBS_WIDE = """\
JOBID   USER    STAT  QUEUE      FROM_HOST   EXEC_HOST   JOB_NAME   SUBMIT_TIME
26238   user    RUN   batch      login1      batch5:h49n16:42*h49n18 train Nov 21 10:00
26239   user    PEND  batch      login1         -        train a b Nov 21 10:00
26240   user    DONE  batch      login1      batch5      x          Nov 21 10:00
26241   user    EXIT  batch      login1      batch5      x          Nov 21 10:00
26246   user    DONE  batch      login1      batch5      x.1f2e[7]  Nov 21 10:00
"""
# Of OpenLava 4.0 (paths shortened), then of IBM's reference.
BHIST = """
Job Id <103[1]>, Job Name <arr[1]>, User <root>, Project <default>, Command <ec
                     ho $LSB_JOBINDEX; sleep 3>
Sat Nov 21 20:41:43: Submitted from host <vm> to Queue <normal>, CWD </work>;
Sat Nov 21 20:41:44: Starting (Pid 21783);
Sat Nov 21 20:41:46: Signal <REQUEUE_PEND> requested by user or administrator <
                     root>;
Sat Nov 21 20:41:47: Exited with exit code 130. The CPU time used is 0.0 second
                     s;
Sat Nov 21 20:41:48: Pending: Job has been requeued;
Sat Nov 21 20:41:48: Starting (Pid 21784);
Sat Nov 21 20:41:49: Done successfully. The CPU time used is 0.0 seconds;
Sat Nov 21 20:41:49: Post job process done successfully;

Summary of time in seconds spent in various states by  Sat Nov 21 20:41:48
  PEND     PSUSP    RUN      USUSP    SSUSP    UNKWN    TOTAL
  1        0        3        0        0        0        4
------------------------------------------------------------------------------

Job Id <104>, Job Name <lim>, User <root>, Project <default>, Command <sleep>
Sat Nov 21 20:42:46: Exited with exit code 1
                     40. The CPU time used is 0.0 seconds;
------------------------------------------------------------------------------

Job <105>, User <root>, Project <default>, Command <sleep 1000>
Sat Nov 21 20:42:46: Exited with exit code 130. The CPU time used is 0.0 seconds;
Sat Nov 21 20:42:46: Completed <exit>; TERM_OWNER: job killed by owner;
------------------------------------------------------------------------------

Job <106>, User <root>, Project <default>, Command <sleep 1000>
Sat Nov 21 20:42:46: Starting (Pid 1);
------------------------------------------------------------------------------

Job Id <107>, User <root>, Project <default>, Command <sleep 1000>
Sat Nov 21 20:42:46: Signal <KILL> requested by user or administrator <root>;
Sat Nov 21 20:42:46: Exited with exit code 143. The CPU time used is 0.0 seconds;
------------------------------------------------------------------------------

Job Id <108>, User <root>, Project <default>, Command <sleep 1000>
Sun Nov 22 00:01:26: Unknown; unable to reach the execution host;
Sun Nov 22 00:01:31: Execution host unavailable; job is killed;
Sun Nov 22 00:01:34: Pending: Job has been requeued;
Sun Nov 22 00:01:34: Starting (Pid 567);
"""


def test_script_and_submit_lines() -> None:
    spec = replace(full_spec(), setup=("module load python",), extra=())
    assert_golden("lsf_script.sh", render_script(spec))
    for name, each in (("full", spec), ("least", JobSpec(name="x", requeue=False))):
        assert_golden(f"bsub_{name}.txt", "\n".join(map(repr, lsf.submit_argv(each, Path("a b/job.sh")))) + "\n")


def test_ids() -> None:
    assert lsf_output.parse_id("Job <26238> is submitted to default queue <batch>.\n") == "26238"
    assert lsf_output.parse_id("Notice\nJob <208> is submitted to queue <killable>.\n") == "208"
    with pytest.raises(UserError, match="no job id in its answer: 'nosuch: No such queue"):
        lsf_output.parse_id("nosuch: No such queue. Job not submitted.")


def states(text: str) -> dict[str, State]:
    return {job_id: status.state for job_id, status in lsf_output.parse(text).items()}


@pytest.mark.parametrize("text", [BJOBS_JSON, f"a banner\n{BJOBS_JSON}", BJOBS_TEXT])
def test_states_of_many_jobs(text: str) -> None:
    assert states(text) == BJOBS_STATES


def test_states_from_an_older_bjobs_and_reasons_from_a_newer() -> None:
    told = {job_id: BJOBS_STATES[job_id] for job_id in ("26238", "26239", "26240", "26246[7]")}
    assert states(BJOBS_WIDE) == {**told, "26241": State.UNKNOWN}, "why it ended, bhist tells"
    why = BJOBS_JSON.replace('"PEND","EXIT_REASON":""', '"PEND","EXIT_REASON":"-","PEND_REASON":"New job is waiting;"')
    assert lsf_output.parse(why)["26239"].reason == "New job is waiting" and lsf_output.parse(why)["26238"].reason == ""
    for rubbish in (BJOBS_JSON[:300], "{}", '{"RECORDS": 1}', "please log in"):
        with pytest.raises(ValueError):
            lsf_output.parse(rubbish)
    assert lsf_output.parse("No job found\n") == lsf_output.parse("") == {}


def test_history_tells_what_bjobs_has_forgotten() -> None:
    assert {job_id: status.state for job_id, status in lsf_output.parse_history(BHIST).items()} == {
        "103[1]": State.COMPLETED,
        "104": State.TIMEOUT,
        "105": State.CANCELLED,
        "107": State.CANCELLED,
        "108": State.NODE_FAIL,
    }
    assert lsf_output.parse_ends(BHIST)[:2] == [State.PREEMPTED, State.COMPLETED]
    running = "Job <1>,\nd: Signal <REQUEUE_PEND> requested;\nd: Exited with exit code 1.\nd: Starting (Pid 1);\n"
    assert lsf_output.ending(f"{running}d: Signal <REQUEUE_PEND> requested;") is State.PREEMPTED
    assert lsf_output.ending(running) is State.UNKNOWN
    assert lsf_output.parse_history("No matching job found\n") == {}


def test_a_lost_submission_is_known_by_its_name() -> None:
    """Of which an element of an array has its own."""
    for said in (BJOBS_WIDE, "26246|x.1f2e[7]\n", "26246[7]|x.1f2e[7]\n"):
        assert "x.1f2e[7]" in lsf_output.parse_names(said)["26246"]
    assert lsf_output.parse_names("No job found\n") == {}


@pytest.mark.parametrize(
    ("code", "text", "is_answer"),
    [
        (0, BJOBS_TEXT, True),
        (255, BJOBS_JSON, True),  # one of the jobs is forgotten
        (255, "Job <123> is not found\n", True),
        (255, "No job found\n", True),
        (255, "No unfinished job found\n", True),
        (0, "", True),
        (255, "Failed in an LSF library call: LIM is down; try later\n", False),
        (255, "bjobs: illegal option -- json\n", False),
        (127, "bjobs: command not found", False),
        (124, "", False),
    ],
)
def test_forgotten_jobs_are_an_answer_and_a_dead_lsf_is_none(code: int, text: str, is_answer: bool) -> None:
    assert lsf_output.is_answer(code, text) == is_answer


def test_names_mean_nothing_to_lsf() -> None:
    argv = lsf.submit_argv(JobSpec(name="train[1-3]"), Path("job.sh"))
    assert argv[argv.index("-J") + 1] == "train_1-3_.job"
    spec = JobSpec(name="a/b", stdout=Path("logs/%j_0_log.out"), stderr=Path("logs/%j_0_log.err"))
    argv = lsf.array_argv(spec, Path("job.sh"), 3)
    assert argv[:7] == ["bsub", "-J", "a_b.job[1-3]", "-o", "logs/%J[%I]_0_log.out", "-e", "logs/%J[%I]_0_log.err"]
    assert argv.count("-J") == argv.count("-o") == 1 and argv[7:] == lsf.submit_argv(JobSpec("a/b"), Path("job.sh"))[3:]
    with pytest.raises(UserError, match="a%Jb/%j: %J in a name is filled in by LSF; work in another folder"):
        lsf.submit_argv(JobSpec(name="x", stdout=Path("a%Jb/%j")), Path("job.sh"))


def test_rank_environment_uses_a_compute_host() -> None:
    environ = {
        "LSB_JOBID": "26238",
        "LSB_MCPU_HOSTS": "batch5 1 h49n16 42 h49n18 42",
        "OMPI_COMM_WORLD_RANK": "7",
        "OMPI_COMM_WORLD_SIZE": "12",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "6",
    }
    assert rank_environment("lsf", environ) == {
        "RANK": "7",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "6",
        "MASTER_ADDR": "h49n16",
    }


def test_a_job_that_is_not_requeued_asks_to_be_submitted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSB_JOBID", "1")
    monkeypatch.setattr("jobs.allocation.REQUEUE_ATTEMPTS", 1)
    monkeypatch.setattr("jobs.allocation.REQUEUE_WAIT_S", 0)  # and no brequeue on this machine
    save = 'echo "$JOBS_RESTART_COUNT" >> starts; echo 85 > "$JOBS_ALLOCATION/outcome"; exit 1'
    for _ in range(2):
        assert Allocation(["bash", "-c", save], tmp_path, "lsf", 1, 5, tmp_path / "notes", 10)() == 85
    assert (tmp_path / "starts").read_text() == "0\n1\n"


def test_single_processes_go_to_a_compute_node() -> None:
    summit = load_site("summit")
    line = ["bash", "-c", "neox data tokenize"]
    assert placed(line, {"launches": 1}, summit) == line
    assert placed(line, {}, load_site("frontier")) == line
    argv = placed(line, {}, summit)
    assert argv[0] == "jsrun" and argv[-3:] == line
    assert {"--nrs=1", "--tasks_per_rs=1", "--cpu_per_rs=42", "--gpu_per_rs=6", "--bind=packed:42"} < set(argv)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a fake LSF that is on PATH."""
    commands, state = tmp_path / "bin", tmp_path / "lsf"
    commands.mkdir()
    state.mkdir()
    for name in ("bsub", "bjobs", "bkill", "brequeue", "jsrun"):
        (commands / name).write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        (commands / name).chmod(0o700)
    monkeypatch.setenv("FAKE_LSF", str(state))
    monkeypatch.setenv("FAKE_LSF_INTERVAL_S", "8")
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    monkeypatch.chdir(tmp_path)
    yield state


# What `jobs launch` does towards its job, without ranks.
SAVER = """
import os, signal, sys, time
from pathlib import Path
notes, restart = Path(os.environ["JOBS_ALLOCATION"]), os.environ["JOBS_RESTART_COUNT"]
with open("starts", "a") as file: file.write(restart + " ")
if restart == "1": sys.exit(0)
registered = notes / f"launch_{os.getpid()}"
def save(number, _):
    time.sleep(1)  # longer than a job that may not save is left
    Path("saved").write_text(signal.Signals(number).name)
    (notes / "outcome").write_text("85")
    registered.unlink()
    sys.exit(85)
for number in (signal.SIGUSR2, signal.SIGTERM): signal.signal(number, save)
registered.touch()
while True: time.sleep(0.1)
"""


def start(site: Site, tmp_path: Path) -> executor.core.Job[int]:
    allocation = Allocation([sys.executable, "-c", SAVER], tmp_path, "lsf", 4, 3, tmp_path / "notes", 15)
    return executor.submit(site, tmp_path / "a $b", job_spec("x", {"runtime": 15}, 1, site), allocation)


def test_warned_job_comes_back_under_its_own_id(fake: Path, tmp_path: Path) -> None:
    """Five minutes before its walltime ends LSF sends USR2; the job saves and asks for itself again."""
    site = load_site("summit")
    job = start(site, tmp_path)
    assert job.job_id == "26238" and executor.ask(site.scheduler, [job])["26238"].state.is_active  # type: ignore[index]
    wait_for(lambda: list(tmp_path.glob("notes/launch_*")))
    (fake / "clock").write_text("10")
    wait_for(lambda: executor.read_result(job) is not None)
    assert executor.read_result(job) == 0 and (tmp_path / "starts").read_text() == "0 1 "
    wait_for(lambda: executor.ask(site.scheduler, [job]) == {"26238": Status(State.COMPLETED)})
    assert "state saved, runs again" in (tmp_path / "a $b/26238_0_log.err").read_text()


def test_killed_job_saves_at_the_first_signal_and_counts_as_cancelled(fake: Path, tmp_path: Path) -> None:
    """INT, which all processes of the job get."""
    site = load_site("summit")
    job = start(site, tmp_path)
    wait_for(lambda: list(tmp_path.glob("notes/launch_*")))
    executor.cancel(site.scheduler, [job])
    wait_for(lambda: executor.ask(site.scheduler, [job]) == {"26238": Status(State.CANCELLED)})
    assert (tmp_path / "saved").read_text() == "SIGTERM" and executor.read_result(job) is None


def test_queue_tells_forgotten_jobs_from_a_silent_lsf(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.adoption.PATIENCE_S", 0)
    monkeypatch.setattr("jobs.adoption.UNKNOWN_S", 0)
    site = load_site("summit")
    queue = Queue(site, tmp_path / "queue", 1)
    wanted = Submission(JobSpec(name="train"), ("a",), ["true"], tmp_path)
    key = queue.active.key("train", ["a"])
    queue.active.add({key: ActiveJob("7", "lsf", tmp_path / "%j", "train", ("a",), tmp_path)})
    (fake / "down").touch()
    with pytest.raises(UserError, match="lsf does not say whether job 7 still runs"):
        queue.adopt(wanted)
    (fake / "down").unlink()
    assert queue.adopt(wanted) is None, "gone: to be submitted again"
    queue.close()


SNAKEFILE = """
rule all:
    input: "trained", "plain_a"

rule plain:
    output: "plain_{which}"
    resources: runtime=900
    shell: "echo rank=$OMPI_COMM_WORLD_RANK > {output}"

rule train:
    input: "plain_b"
    output: "trained"
    resources: nodes=1, tasks_per_node=2, runtime=15, launches=1
    shell:
        "env jobs launch --site {config[site]:q} --ranks-per-node 2 --run-dir run --"
        " python payload.py && touch {output}"
"""
PAYLOAD = """
import os, signal, sys, time
rank, again = os.environ["RANK"], os.path.exists("saved_1")
print("rank", rank, "of", os.environ["WORLD_SIZE"], "again" if again else "first", flush=True)
if again: sys.exit(0)
def save(*_):
    time.sleep(float(rank) / 2); open("saved_" + rank, "w"); sys.exit(85)
signal.signal(signal.SIGUSR2, save)
open("ready_" + rank, "w")
while not os.path.exists("ready_0") or not os.path.exists("ready_1"): time.sleep(0.1)
open(os.environ["FAKE_LSF"] + "/clock", "w").write("10")
while True: time.sleep(0.1)
"""


def summit_of_any_size(folder: Path) -> Path:
    """Summit's profile, but for what its nodes must have free."""
    profile = folder / "site.yaml"
    profile.write_text(re.sub(r"(memory_free_gb|disk_free_gb): \d+", r"\1: 0", SUMMIT.read_text()))
    return profile


def test_snakemake_goes_through_lsf_and_jsrun(fake: Path, tmp_path: Path) -> None:
    """Two plain jobs as one array, on compute nodes, and a training that is warned, saves, is requeued and finishes."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "payload.py").write_text(PAYLOAD)
    site = summit_of_any_size(tmp_path)
    done = run_snakemake(site)
    assert done.returncode == 0, done.stderr
    assert {(tmp_path / f"plain_{which}").read_text() for which in "ab"} == {"rank=0\n"}, "not on the launch node"
    segments = [json.loads(line) for line in (tmp_path / "run" / "segments.jsonl").read_text().splitlines()]
    assert [(s["job_id"], s["restart"], s["exit_code"]) for s in segments] == [("26239", 0, 85), ("26239", 1, 0)]
    submitted = [json.loads(line)["options"] for line in (fake / "submitted").read_text().splitlines()]
    names = [o["-J"].partition(".")[::2] for o in submitted]
    assert [(name, again[32:]) for name, again in names] == [("plain", "[1-2]"), ("train", "")]
    assert submitted[1]["-nnodes"] == "1"
    assert "".join(log_text(tmp_path / "run", False, 1)) == "rank 1 of 2 first\nrank 1 of 2 again\n"
    with pytest.raises(UserError, match=r"rank_00002.log: no such file; ranks 0 to 1 have logs"):
        next(log_text(tmp_path / "run", False, 2))


def test_failed_rank_ends_the_others_without_help_of_jsrun(fake: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "LSB_JOBID": "1", "LSB_MCPU_HOSTS": "batch1 1 h1 42"}
    site = summit_of_any_size(tmp_path)
    launch = [sys.executable, "-m", "jobs", "launch", "--site", str(site), "--ranks-per-node", "2", "--run-dir", "run"]
    script = "echo $MASTER_ADDR $LOCAL_RANK/$LOCAL_WORLD_SIZE; [ $RANK = 0 ] && exec sleep 300; echo dying >&2; exit 3"
    argv = [*launch, "--", "bash", "-c", script]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and sorted(done.stdout.splitlines()) == ["dying", "h1 0/2", "h1 1/2"]
    logs = [(tmp_path / "run" / "logs" / f"rank_0000{rank}.log").read_text() for rank in (0, 1)]
    assert logs == ["h1 0/2\n", "h1 1/2\ndying\n"], "also of a rank that was killed"
