"""Slurm: options, states and environment as tables. Source: the man pages of version 22.05."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.errors import UserError
from jobs.scheduler.contract import Array, Batch, Query, Scheduler, Status, rows
from jobs.scheduler.script import render_script
from jobs.spec import JobSpec
from jobs.state import State

# Every state and flag that squeue %T or sacct State can show. With a flag (COMPLETING, REQUEUED ...) the job lives on.
STATES = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "EXPEDITING", "POWER_UP_NODE", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
        State.PENDING,
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "SPECIAL_EXIT"),
        State.RUNNING,
    ),
    "RESV_DEL_HOLD": State.PENDING,
    "COMPLETED": State.COMPLETED,
    "CANCELLED": State.CANCELLED,
    "REVOKED": State.CANCELLED,
    **dict.fromkeys(("FAILED", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"), State.FAILED),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), State.TIMEOUT),
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
    "NODE_FAIL": State.NODE_FAIL,
    "PREEMPTED": State.PREEMPTED,
}

ENVIRONMENT = {
    "job_id": "SLURM_JOB_ID",
    "cluster": "SLURM_CLUSTER_NAME",
    "num_nodes": "SLURM_JOB_NUM_NODES",
    "nodes": "SLURM_JOB_NODELIST",
    "cpus_per_rank": "SLURM_CPUS_PER_TASK",
    "rank": "SLURM_PROCID",
    "world_size": "SLURM_NTASKS",
    "local_rank": "SLURM_LOCALID",
    "step_nodes": "SLURM_STEP_NODELIST",
    "tasks_per_node": "SLURM_STEP_TASKS_PER_NODE",
}


def submit_argv(spec: JobSpec, script: Path) -> list[str]:
    """sbatch with every option of the job."""
    options = {
        "job-name": spec.name,
        "nodes": spec.nodes,
        "ntasks-per-node": spec.ranks_per_node,
        "cpus-per-task": spec.cpus_per_rank,
        "gpus-per-node": spec.gpus_per_node or None,
        "mem": None if spec.mem_gb is None else f"{math.ceil(spec.mem_gb * 1024)}M",
        "time": spec.runtime_min,
        "account": spec.account,
        "partition": spec.partition,
        "qos": spec.qos,
        "dependency": spec.after and f"afterany:{spec.after}",
        "exclude": ",".join(spec.exclude) or None,
        # B: only the batch process is warned; it knows whom to tell. Without it the job steps get the signal at once.
        "signal": f"B:USR2@{spec.signal_delay_s}",
        "output": _pattern(spec.stdout),
        "error": _pattern(spec.stderr),
        "open-mode": "append",  # a requeued job keeps the log of its earlier runs
    }
    given = ["--export=ALL", *(f"--{key}={value}" for key, value in options.items() if value is not None)]
    requeue = "--requeue" if spec.requeue else "--no-requeue"
    return ["sbatch", "--parsable", *given, requeue, *spec.extra, str(script)]


def _pattern(path: Path | None) -> str | None:
    """Slurm fills in %j and the like, which in a folder's name mean nothing."""
    return None if path is None else f"{str(path.parent).replace('%', '%%')}/{path.name}"


def array_argv(spec: JobSpec, script: Path, num_jobs: int) -> list[str]:
    """The same for an array, whose elements have logs of their own."""
    apart = replace(spec, stdout=_of_element(spec.stdout), stderr=_of_element(spec.stderr))
    sbatch, *options = submit_argv(apart, script)
    return [sbatch, f"--array=0-{num_jobs - 1}", *options]


def _of_element(path: Path | None) -> Path | None:
    """submitit's %j is an element's own number elsewhere in Slurm; here it is BASE_NUMBER."""
    return None if path is None else path.with_name(path.name.replace("%j", "%A_%a"))


def array_job_id(base_id: str, number: str) -> str:
    return f"{base_id}_{number}"


def parse_id(output: str) -> str:
    """`sbatch --parsable` prints ID or ID;CLUSTER. Raises UserError for anything else."""
    job_id = output.strip().splitlines()[-1].split(";")[0] if output.strip() else ""
    if not job_id.isdigit():
        raise UserError(f"sbatch: no job id in its answer: {output.strip()!r}")
    return job_id


_ID = re.compile(r"\d+(?:_\d+)?")
LISTING = ("squeue", "--me", "--noheader", "--states=all", "--format=%F|%o")
# What sbatch says, after its own name, when slurmctld was not reached or could not take a job just now (slurm_errno.c).
_NOT_NOW = re.compile(
    r"[Uu]nable to contact|[Ss]ocket timed out|[Cc]onnection (?:refused|reset|timed out)"
    r"|temporarily u(?:nable|navailable)"
    r"|Zero Bytes|[Tt]ransport|Slurm backup controller in standby|in the process of|Unexpected message received"
    r"|Protocol authentication error|Munge"
)


def is_refusal(said: str) -> bool:
    """Whether sbatch was told no: it says so under its name, as in `sbatch: error: ... failed: Invalid partition`."""
    own = [line for line in said.splitlines() if line.startswith("sbatch: ") and "warning" not in line]
    return bool(own) and not _NOT_NOW.search(said)


def state_of(word: str) -> State:
    """State of one of Slurm's words, which may read `CANCELLED by 1000` or end in `+` where sacct cut it."""
    first = word.split()[0].rstrip("+") if word.split() else ""
    return STATES.get(first, State.UNKNOWN)


def parse(output: str) -> dict[str, Status]:
    """Lines of `ID|STATE`, where ID may be `12_3`, and of `ID|STATE|START|REASON`.

    Lines about job steps (`12.batch`) and rubbish are passed over. Raises ValueError where there is nothing else.
    """
    rows = [line.split("|", 3) for line in output.splitlines()]
    known = {row[0]: _status(*row[1:]) for row in rows if len(row) >= 2 and _ID.fullmatch(row[0])}
    if output.strip() and not any(len(row) >= 2 for row in rows):
        raise ValueError(f"not a list of jobs: {output[:80]!r}")
    return known


def _status(word: str, start: str = "N/A", reason: str = "None") -> Status:
    """squeue says why jobs wait, and why they ended; when they start, only of waiting ones."""
    state = state_of(word)
    is_known = start != "N/A" and state is State.PENDING
    return Status(state, "" if reason == "None" else reason, start if is_known else "")


def squeue_argv(job_ids: Sequence[str]) -> list[str]:
    """All of the user's jobs, a line for each element of an array: naming ids would make squeue fail once one of them
    has left its memory.

    `--states=all` includes ended jobs for MinJobAge, so accounting is rarely asked and its lag rarely seen.
    """
    return ["squeue", "--me", "--noheader", "--states=all", "--array", "--format=%i|%T|%S|%r"]


# As squeue(1) has it for "the same order considered for scheduling".
WAITING = ("squeue", "--priority", "--sort=-p,i", "--states=PENDING", "--noheader", "--array", "--format=%i|%P")


SETTINGS = ("scontrol", "show", "config")


def hides_jobs(output: str) -> bool:
    """`PrivateData = jobs,usage`: squeue then lists one's own alone, as if nobody else waited."""
    return bool(re.search(r"^PrivateData\s*=.*\bjobs\b", output, re.MULTILINE))


def sacct_argv(job_ids: Sequence[str]) -> list[str]:
    """Jobs that slurmctld has forgotten; exits with an error where accounting is off."""
    return ["sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(job_ids)}"]


def ends_argv(job_id: str) -> list[str]:
    """One record for each time that the job was queued, where accounting is on."""
    return ["sacct", "--duplicates", *sacct_argv([job_id])[1:]]


def parse_ends(output: str) -> list[State]:
    rows = (line.split("|") for line in output.splitlines())
    return [state_of(row[1]) for row in rows if len(row) >= 2]


def show_argv(job_id: str) -> list[str]:
    return ["scontrol", "show", "job", job_id]


def ending(output: str) -> State:
    """`PreemptTime` is None until a job of higher priority has asked for the nodes; then come TERM and the grace."""
    return State.PREEMPTED if re.search(r"\bPreemptTime=\d", output) else State.UNKNOWN


def recorded_end(output: str) -> State:
    """Of lost nodes, and without a grace, the job is at once in the queue again: only accounting tells why."""
    states = [state for state in parse_ends(output) if state is not State.PENDING]
    return states[-1] if states else State.UNKNOWN


def cancel_argv(job_ids: Sequence[str]) -> list[str]:
    return ["scancel", *job_ids]


def requeue_argv(job_id: str) -> list[str]:
    return ["scontrol", "requeue", job_id]


# After a prolog that failed, or a node that still held the job: Slurm drains the node, yet holds the job at priority 0.
LAUNCH_FAILED = "launch failed requeued held"


def release_argv(job_id: str) -> list[str]:
    return ["scontrol", "release", job_id]


SCHEDULER = Scheduler(
    name="slurm",
    environment=ENVIRONMENT,
    batch=Batch(
        script=render_script,
        submit=submit_argv,
        parse_id=parse_id,
        queries=(Query((squeue_argv,), parse), Query((sacct_argv,), parse)),
        listing=Query((lambda _: [*LISTING],), rows),
        is_refusal=is_refusal,
        cancel=cancel_argv,
        requeue=requeue_argv,
        ends=(ends_argv, parse_ends),
        waiting=WAITING,
        hides=(SETTINGS, hides_jobs),
        ending=((show_argv, ending), (ends_argv, recorded_end)),
        held=(LAUNCH_FAILED, release_argv),
        array=Array(array_argv, 0, array_job_id, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID"),
    ),
)
