"""Scheduler and launcher contracts: golden lines, parsers, states. UPDATE_GOLDEN=1 rewrites the golden files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit import shell_line
from snakemake_interface_executor_plugins.utils import format_cli_arg

from jobs.errors import UserError
from jobs.hostlist import expand
from jobs.launch import LAUNCHERS
from jobs.ranks import port_of, rank_environment
from jobs.scheduler import slurm
from jobs.scheduler.contract import Status
from jobs.scheduler.script import render_script
from jobs.spec import JobSpec, Launch
from jobs.state import State

GOLDEN = Path(__file__).parents[1] / "golden" / "jobs"
NASTY = "a 'quoted' \"name\"; $(touch x)\nand `more`"


def assert_golden(name: str, text: str) -> None:
    file = GOLDEN / name
    text = text.replace(sys.executable, "PYTHON")
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def full_spec() -> JobSpec:
    return JobSpec(
        name=NASTY,
        nodes=2,
        ranks_per_node=4,
        cpus_per_rank=7,
        gpus_per_node=4,
        mem_gb=1.5,
        runtime_min=90,
        account="ml",
        partition="batch",
        qos="high",
        extra=("--constraint=nvme", "--comment=" + NASTY),
        signal_delay_s=60,
        command=("python", "-c", NASTY),
        stdout=Path("/logs/%j out"),
        stderr=Path("/logs/%j err"),
        env={"B": NASTY, "A": "1"},
    )


def test_slurm_script() -> None:
    assert_golden("slurm_script.sh", render_script(full_spec()))


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VARIABLES = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*_x", fullmatch=True), WORDS)
AWKWARD = ["$(touch x)", "`id`", "-rf", "--", "a\nb", "'", '"', "\\", "*", "~", "é 漢", "#", "!!", "&;|<>"]
SAY = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS), env=VARIABLES, option=WORDS)
@example(words=AWKWARD, env={}, option="-x")
def test_nothing_in_a_job_is_interpreted(words: list[str], env: dict[str, str], option: str) -> None:
    """Through a real bash: command and environment arrive as they are, options of sbatch as one argument each."""
    spec = JobSpec(name=option, account=option, extra=(option,), env=env, command=(sys.executable, "-c", SAY, *words))
    done = subprocess.run(["bash"], input=render_script(spec), capture_output=True, encoding="utf-8", check=True)
    said, environ = json.loads(done.stdout)
    assert said == words and {name: environ[name] for name in env} == env
    argv = slurm.submit_argv(spec, Path("/s.sh"))
    assert f"--job-name={option}" in argv and f"--account={option}" in argv
    assert argv[-2:] == [option, "/s.sh"]


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS.filter(lambda word: word and word[0] not in "'\""), min_size=1))
@example(words=["it's $(touch pwned)", AWKWARD[7] + "`id`'\"", "/a b/\n"])
def test_the_line_that_snakemake_makes_of_words_is_one_for_a_shell(words: list[str]) -> None:
    line = shell_line(" ".join(format_cli_arg("--wait-for-files", word) for word in words))
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[1:-1:2] == words


@pytest.mark.parametrize(("name", "spec"), [("full", full_spec()), ("least", JobSpec(name="x", requeue=False))])
def test_slurm_submit_line(name: str, spec: JobSpec) -> None:
    assert_golden(f"sbatch_{name}.txt", "\n".join(map(repr, slurm.submit_argv(spec, Path("job.sh")))) + "\n")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launch_line(name: str) -> None:
    launch = Launch(("train", NASTY), nodes=1, ranks_per_node=4, cpus_per_rank=7, folder=Path("folder"), hosts=("n1",))
    assert_golden(f"{name}.txt", "\n".join(map(repr, LAUNCHERS[name].argv(launch))) + "\n")


def test_slurm_ids() -> None:
    assert slurm.parse_id("123\n") == "123"
    assert slurm.parse_id("sbatch: warning\n123;cluster\n") == "123"
    with pytest.raises(UserError, match="no job id"):
        slurm.parse_id("denied")


def test_slurm_says_states_of_many_jobs_and_why_they_wait() -> None:
    text = "1|RUNNING\n2|CANCELLED by 1000\n3|OUT_OF_ME+\n3.batch|FAILED\n\nrubbish\n4|NEW\n5|COMPLETING\n"
    assert {job_id: status.state for job_id, status in slurm.parse(text).items()} == {
        "1": State.RUNNING,
        "2": State.CANCELLED,
        "3": State.UNKNOWN,
        "4": State.UNKNOWN,
        "5": State.RUNNING,
    }
    text = "7|PENDING|2026-11-21T10:00:00|Priority\n8_2|PENDING|N/A|Nodes|down\n9|RUNNING|2026-11-21T08:00:00|None\n"
    text += "10|FAILED|2026-11-21T08:00:00|JobLaunchFailure\n"
    assert slurm.parse(text) == {
        "7": Status(State.PENDING, "Priority", "2026-11-21T10:00:00"),
        "8_2": Status(State.PENDING, "Nodes|down"),
        "9": Status(State.RUNNING),
        "10": Status(State.FAILED, "JobLaunchFailure"),
    }
    with pytest.raises(ValueError, match="not a list of jobs"):
        slurm.parse("<html>please log in</html>")
    assert slurm.state_of("REQUEUED").is_active and slurm.state_of("").is_active
    assert not slurm.state_of("NODE_FAIL").is_active


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3,07],login", ["n1", "n2", "n3", "n07", "login"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("r[1-2]n[3,5]x,a", ["r1n3x", "r1n5x", "r2n3x", "r2n5x", "a"]),
        ("", []),
    ],
)
def test_host_lists(text: str, hosts: list[str]) -> None:
    assert expand(text) == hosts


def test_bad_host_list_is_refused() -> None:
    with pytest.raises(ValueError, match="not a host range"):
        expand("n[1-x]")


def test_rank_environment_from_slurm() -> None:
    environ = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "frontier[00012,00030]",
        "SLURM_JOB_NODELIST": "frontier[00001-00040]",
        "SLURM_JOB_ID": "12003",
    }
    assert rank_environment("slurm", environ) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "frontier00012",
    }
    assert rank_environment("torchrun", environ) == {}


def test_each_allocation_has_a_port_of_its_own() -> None:
    """A copy that is believed dead may still hold the first."""
    assert [port_of("12003", {"JOBS_RESTART_COUNT": str(count)}) for count in range(2)] == [20003, 21000]
