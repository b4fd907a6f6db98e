"""Flux: lines, what it prints, and jobs through it: the real one where it is on PATH, else a fake (fake_flux.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from jobs import executor
from jobs.allocation import Allocation
from jobs.errors import UserError
from jobs.launch import LAUNCHERS
from jobs.queue import Queue, Submission
from jobs.ranks import decode, rank_environment
from jobs.resources import job_spec
from jobs.scheduler import flux
from jobs.scheduler.contract import NOTHING, Status
from jobs.site import load_site
from jobs.spec import Launch
from jobs.state import State
from tests.jobs.test_launch import is_alive, wait_for
from tests.jobs.test_scheduler import NASTY, assert_golden, full_spec
from tests.jobs.workflow import run_snakemake

FAKE = Path(__file__).with_name("fake_flux.py")
SITE = Path(__file__).parents[2] / "site_configs" / "flux" / "site.yaml"
# Of flux-core 0.88, without times.
ALONE = '{"id": 65867350016, "status": "RUN", "state": "RUN", "dependencies": [], "exception": {"occurred": false}}'
MANY = """{"jobs": [
 {"id": 1, "status": "SCHED",
  "annotations": {"sched": {"t_estimate": 1795282899.1, "reason_pending": "insufficient resources"}}},
 {"id": 2, "status": "DEPEND", "dependencies": ["after-finish=65867350016"], "exception": {"occurred": false}},
 {"id": 3, "status": "CANCELED", "returncode": 137, "exception": {"occurred": true, "type": "cancel", "note": ""}},
 {"id": 4, "status": "TIMEOUT", "exception": {"occurred": true, "type": "timeout", "note": "expired"}},
 {"id": 5, "status": "FAILED", "exception": {"occurred": true, "type": "alloc", "note": "unsatisfiable request"}},
 {"id": 6, "status": "FAILED", "exception": {"occurred": true, "type": "node-failure", "note": "lost node5"}},
 {"id": 7, "status": "COMPLETED", "returncode": 0, "exception": {"occurred": false}},
 {"id": 8, "status": "CLEANUP", "exception": {"occurred": false}},
 {"id": 9, "status": "FAILED", "returncode": 1,
  "exception": {"occurred": true, "severity": 0, "type": "exec", "note": "node failure on n1 (rank 1)"}},
 {"id": 10, "status": "FAILED", "returncode": 137,
  "exception": {"occurred": true, "severity": 0, "type": "preempt", "note": "preempted"}},
 {"id": 11, "status": "FAILED", "returncode": 143, "exception": {"occurred": false}}]}"""

EVENTS = """1795316009.330413 memo uri="ssh://vm/tmp/flux-6ygAhn/local-0"
1795316013.327805 exception type="preempt" severity=0 note="" userid=0
"""


def test_script_and_lines() -> None:
    spec = replace(
        full_spec(), qos=None, setup=("module load rocm",), extra=("--exclusive",), exclude=("n1", "n2"), after="7"
    )
    assert_golden("flux_script.sh", flux.script(spec))
    assert_golden("flux_batch.txt", "\n".join(map(repr, flux.submit_argv(spec, Path("a b/1f2e.sh")))) + "\n")
    with pytest.raises(UserError, match="qos=high: Flux has none"):
        flux.submit_argv(full_spec(), Path("job.sh"))
    launch = Launch(
        ("train", NASTY, "{{id}}"), 2, 4, 7, Path("folder"), 4, extra=("--setopt=mpibind=off",), hosts=("n1", "n2")
    )
    *line, encoded = LAUNCHERS["flux"].argv(launch)
    assert_golden("flux_run.txt", "\n".join(map(repr, line)) + "\n")
    assert decode([encoded])[-3:] == ["train", NASTY, "{{id}}"] and "{" not in encoded


def test_ids() -> None:
    for said in ("ƒ2jMUPNo\n", "a note\nf2jMUPNo\n"):
        assert flux.parse_id(said) == "65867350016"
    with pytest.raises(UserError, match="no job id in its answer"):
        flux.parse_id("flux-batch: ERROR: 'nope' is not a valid queue")


def test_states_and_reasons() -> None:
    assert flux.parse(ALONE) == {"65867350016": Status(State.RUNNING)} and flux.parse("") == {}
    ended = [State.CANCELLED, State.TIMEOUT, State.FAILED, State.NODE_FAIL, State.COMPLETED]
    states = [State.PENDING, State.PENDING, *ended, State.RUNNING, State.NODE_FAIL, State.PREEMPTED, State.FAILED]
    said = flux.parse(MANY)
    assert {job_id: status.state for job_id, status in said.items()} == {str(i): s for i, s in enumerate(states, 1)}
    assert said["1"].reason == "insufficient resources" and said["2"].reason == "after-finish=65867350016"
    assert said["1"].start == datetime.fromtimestamp(1795282899.1).isoformat(timespec="seconds")
    assert said["5"].reason == "alloc: unsatisfiable request" and said["7"].reason == ""
    assert flux.parse_ends(ALONE) == [State.RUNNING]
    assert flux.ending(EVENTS) is State.PREEMPTED
    assert flux.ending(EVENTS.replace("preempt", "cancel")) is State.UNKNOWN
    for rubbish in (MANY[:-9], '{"jobs": [{"id": 1}]}', "[1]", "what"):
        with pytest.raises(ValueError):
            flux.parse(rubbish)


def test_answers_and_refusals() -> None:
    gone = "flux-jobs: ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found"
    assert flux.is_answer(1, "JobID 99999999 unknown\n") and not flux.is_answer(1, gone) and not flux.is_answer(127, "")
    assert flux.is_refusal("flux-batch: ERROR: 'nope' is not a valid queue\n")
    assert flux.is_refusal("usage: flux batch ...\nflux batch: error: unrecognized arguments: --bogus\n")
    assert not flux.is_refusal(gone.replace("jobs", "batch"))


def test_rank_environment() -> None:
    task = {"FLUX_TASK_RANK": "5", "FLUX_JOB_SIZE": "8", "FLUX_TASK_LOCAL_ID": "1", "JOBS_FLUX_RANKS_PER_NODE": "4"}
    environ = rank_environment("flux", {**task, "JOBS_FLUX_ID": "65867350016", "JOBS_FLUX_NODES": "tuo[1001-1002]"})
    assert environ["MASTER_ADDR"] == "tuo1001"
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"]) == (
        "5",
        "8",
        "1",
        "4",
    )


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Flux of four brokers, ours to submit to."""
    monkeypatch.chdir(tmp_path)
    if shutil.which("flux"):
        script = "echo $FLUX_URI > uri.new && mv uri.new uri && exec sleep 300"
        instance = subprocess.Popen(["flux", "start", "-s", "4", "bash", "-c", script])
        wait_for((tmp_path / "uri").exists)
        monkeypatch.setenv("FLUX_URI", (tmp_path / "uri").read_text().strip())
        yield
        instance.terminate()
        instance.wait()
        return
    for folder in ("bin", "flux"):
        (tmp_path / folder).mkdir()
    command = tmp_path / "bin" / "flux"
    command.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    command.chmod(0o700)
    monkeypatch.setenv("FAKE_FLUX", str(tmp_path / "flux"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    yield


SNAKEFILE = """
rule train:
    output: "trained"
    resources: nodes=2, tasks_per_node=2, runtime=1, launches=1
    params: word=WORD
    shell:
        "env jobs launch --site {config[site]:q} --nodes 2 --ranks-per-node 2 --run-dir run --"
        " python payload.py {params.word:q} && touch {output}"
"""
PAYLOAD = """
import os, signal, sys, time
rank, again = os.environ["RANK"], os.path.exists("saved_3")
place = [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")]
open("args_" + rank, "w").write("\\n".join([*sys.argv[1:], *place]))
if again: sys.exit(0)
def save(*_):
    time.sleep(float(rank) / 2); open("saved_" + rank, "w"); sys.exit(85)
signal.signal(signal.SIGUSR2, save)
while True: time.sleep(0.1)
"""


def test_training_runs_on_as_a_new_job(broker: None, tmp_path: Path) -> None:
    """4 ranks are warned before the walltime ends, save, and their job is submitted anew."""
    word = "a {id} 'b' \"$(touch x)\" `c` {{id}}"
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("WORD", f"lambda _: {word!r}"))
    (tmp_path / "payload.py").write_text(PAYLOAD)
    site = tmp_path / "here" / "site.yaml"
    site.parent.mkdir()
    site.write_text(SITE.read_text().replace("signal_delay_s: 60", "signal_delay_s: 44"))
    done = run_snakemake(site)
    assert done.returncode == 0, done.stderr
    segments = [json.loads(line) for line in (tmp_path / "run" / "segments.jsonl").read_text().splitlines()]
    assert [(one["restart"], one["exit_code"]) for one in segments] == [(0, 85), (1, 0)]
    assert segments[0]["job_id"] != segments[1]["job_id"] and "runs on as job" in done.stderr
    assert (tmp_path / "args_3").read_text() == f"{word}\n4\n1\n{os.uname().nodename}" and not (tmp_path / "x").exists()


SAVER = """
import os, signal, sys, time
from pathlib import Path
registered = Path(os.environ["JOBS_ALLOCATION"]) / f"launch_{os.getpid()}"
def save(number, _):
    time.sleep(1)
    Path("saved").write_text(signal.Signals(number).name)
    registered.unlink()
    sys.exit(85)
signal.signal(signal.SIGTERM, save)
Path("pid").write_text(str(os.getpid()))
registered.touch()
while True: time.sleep(0.1)
"""


def test_cancelled_job_saves_first_and_one_that_fails_has_its_own_code(broker: None, tmp_path: Path) -> None:
    site = load_site(str(SITE))
    spec = job_spec("x", {"runtime": 5, "nodes": 2}, 1, site)
    allocation = Allocation([sys.executable, "-c", SAVER], tmp_path, "flux", 4, 3, tmp_path / "notes", 15)
    job = executor.submit(site, tmp_path / "a $b", spec, allocation)
    failing = Allocation(["bash", "-c", "exit 7"], tmp_path, "flux", 4, 3, tmp_path / "failing", 15)
    other = executor.submit(site, tmp_path / "c", spec, failing)
    wait_for(lambda: list(tmp_path.glob("notes/launch_*")) and executor.read_result(other))
    assert str(executor.read_result(other)).endswith("exit code 7")
    assert executor.cancel("flux", [job]) == ""
    ids = {job.job_id, other.job_id}
    wait_for(
        lambda: (
            {one.state.name for one in (executor.ask("flux", [job, other]) or {}).values()} == {"CANCELLED", "FAILED"}
        )
    )
    assert (tmp_path / "saved").read_text() == "SIGTERM" and not is_alive(tmp_path / "pid") and len(ids) == 2
    assert executor.cancel("flux", [job]) == "", "it is over already"
    assert executor.ask("flux", [executor.attach("flux", tmp_path, "1234")]) == {"1234": NOTHING}


FIRST_SAVES = """
echo run >> starts; [ $(wc -l < starts) = 2 ] && exit 0
while ! [ -e go ]; do sleep 0.1; done
mkdir -p run/checkpoints/step_00000001; touch run/checkpoints/step_00000001/manifest.json
echo "\\"$PWD/run\\"" > "$JOBS_ALLOCATION.runs"; echo 85 > "$JOBS_ALLOCATION/outcome"; exit 1
"""


def test_the_next_controller_adopts_a_chain_and_goes_on_along_it(broker: None, tmp_path: Path) -> None:
    site = load_site(str(SITE))
    spec, command = job_spec("train", {"runtime": 5}, 1, site), ["bash", "-c", FIRST_SAVES]
    submission = Submission(spec, ("train_summary.json",), command, tmp_path, num_successors=1)
    queue = Queue(site, tmp_path / "state", 1)
    (job,) = queue.submit([submission])
    ids = [one.job_id for one in job.handles]
    queue.close()
    queue = Queue(site, tmp_path / "state", 1)
    adopted = queue.adopt(submission)
    assert adopted and [one.job_id for one in adopted.handles] == ids

    def said() -> str | None:
        queue.refresh([adopted])
        return queue.end(adopted, [])

    (tmp_path / "go").touch()
    wait_for(lambda: said() == "")
    assert adopted.job_id == ids[1] and (tmp_path / "starts").read_text() == "run\n" * 2
    queue.close()


def test_failed_rank_ends_the_others(broker: None, tmp_path: Path) -> None:
    environ = {**os.environ, "JOBS_FLUX_ID": "7", "JOBS_FLUX_NODES": ",".join([os.uname().nodename] * 2)}
    launch = [sys.executable, "-m", "jobs", "launch", "--site", str(SITE), "--nodes", "2", "--ranks-per-node", "1"]
    script = "echo $$ > pid_$RANK; [ $RANK = 1 ] && exit 3; exec sleep 300"
    done = subprocess.run(
        [*launch, "--", "bash", "-c", script], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3, done.stderr
    assert not is_alive(tmp_path / "pid_0")
