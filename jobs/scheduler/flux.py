"""Flux: options, states and environment as tables. Source: flux-core's manual of version 0.88, and run with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.errors import UserError
from jobs.scheduler.contract import Batch, Query, Scheduler, Status, rows
from jobs.scheduler.script import render_script
from jobs.spec import JobSpec
from jobs.state import State

# Every job status of flux-jobs(1).
STATES = {
    **dict.fromkeys(("DEPEND", "PRIORITY", "SCHED"), State.PENDING),
    **dict.fromkeys(("RUN", "CLEANUP"), State.RUNNING),
    "COMPLETED": State.COMPLETED,
    "FAILED": State.FAILED,
    "CANCELED": State.CANCELLED,
    "TIMEOUT": State.TIMEOUT,
}

ENVIRONMENT = {
    # Flux has a batch script ask for these (flux-environment(7)); ours does.
    "job_id": "JOBS_FLUX_ID",
    "nodes": "JOBS_FLUX_NODES",
    "cpus_per_rank": "JOBS_FLUX_CPUS_PER_RANK",
    # flux-environment(7), and what the launcher adds.
    "rank": "FLUX_TASK_RANK",
    "world_size": "FLUX_JOB_SIZE",
    "local_rank": "FLUX_TASK_LOCAL_ID",
    "tasks_per_node": "JOBS_FLUX_RANKS_PER_NODE",
}
_QUESTIONS = (
    'JOBS_FLUX_ID="$(flux job id --to=dec "$(flux getattr jobid)")"',
    'JOBS_FLUX_NODES="$(flux getattr hostlist)"',
    'JOBS_FLUX_URI="$(flux getattr parent-uri)"',  # of the instance that knows the job; ours knows its launches
    "export JOBS_FLUX_ID JOBS_FLUX_NODES JOBS_FLUX_URI",
    "trap '' HUP",  # the broker passes on what ends it, HUP first, then TERM, upon which the job saves
)
_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
"""Of base 58, in which Flux prints ids (RFC 19)."""
_ID = re.compile(rf"^[ƒf]([{_DIGITS}]+)$", re.MULTILINE)


def script(spec: JobSpec) -> str:
    """The batch script; it is the first process of a Flux instance of the job's own, in which `flux run` runs."""
    env = {**spec.env, ENVIRONMENT["cpus_per_rank"]: str(spec.cpus_per_rank)}
    return render_script(replace(spec, env=env, setup=(*_QUESTIONS, *spec.setup)))


def submit_argv(spec: JobSpec, script: Path) -> list[str]:
    """flux batch with every option of the job: one slot per node that holds all of the node's ranks.

    The job's name ends in the script's, by which a submission is found whose answer was lost. Memory is not asked for:
    flux-core does not schedule it. No --signal: every broker of the job gets it, and those of further nodes shut down
    (seen with 0.88), so the job warns itself. Raises UserError for a QOS, which Flux has not.
    """
    if spec.qos:
        raise UserError(f"rule {spec.name}: qos={spec.qos}: Flux has none; name a queue (slurm_partition)")
    options = {
        "job-name": f"{spec.name}.{script.stem}",
        "nodes": spec.nodes,
        "nslots": spec.nodes,
        "cores-per-slot": spec.ranks_per_node * spec.cpus_per_rank,
        "gpus-per-slot": spec.gpus_per_node or None,
        "time-limit": f"{spec.runtime_min}m",
        "bank": spec.account,
        "queue": spec.partition,
        "dependency": spec.after and f"afterany:{spec.after}",
        "requires": spec.exclude and f"-hosts:{','.join(spec.exclude)}",
        "output": _path(spec.stdout),
        "error": _path(spec.stderr),
    }
    given = [f"--{key}={value}" for key, value in options.items() if value]
    return ["flux", "batch", *given, *spec.extra, str(script)]


def _path(path: Path | None) -> str | None:
    """submitit writes %j for the job id, Flux {{id.dec}}."""
    return None if path is None else str(path).replace("%j", "{{id.dec}}")


def parse_id(output: str) -> str:
    """`ƒ2fKELrK` (`f2fKELrK` where the locale is not UTF-8) as a decimal number, which every command of Flux takes too.

    Raises UserError for anything else.
    """
    match = _ID.search(output)
    if match is None:
        raise UserError(f"flux batch: no job id in its answer: {output.strip()!r}")
    number = 0
    for digit in match[1]:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return str(number)


LISTING = ("flux", "jobs", "-a", "--no-header", "--count=0", "--format={id.dec}|{name}")
"""All of the user's jobs, ended ones too; their names end in those of their scripts."""
# What flux batch says where no broker answers just now.
_NOT_NOW = re.compile(
    r"Unable to connect|[Cc]onnection (?:refused|reset|timed out)|Broken pipe|No route to host|Host is unreachable"
    r"|Function not implemented|[Tt]imed out|temporarily unavailable"
)


def is_refusal(said: str) -> bool:
    """Whether flux batch was told no: `flux-batch: ERROR: 'x' is not a valid queue`, `flux batch: error: ...`."""
    return re.search(
        r"^flux[- ]batch: error: ", said, re.MULTILINE | re.IGNORECASE
    ) is not None and not _NOT_NOW.search(said)


def jobs_argv(job_ids: Sequence[str]) -> list[str]:
    """The jobs by their ids, in whatever state: without ids all that the instance remembers would come."""
    return ["flux", "jobs", "--json", *job_ids]


def is_answer(code: int, text: str) -> bool:
    """Whether flux jobs answered: it exits with 1, and `JobID 7 unknown`, where it knows none of the jobs."""
    return code == 0 or (code == 1 and re.search(r"^JobID \S+ unknown$", text, re.MULTILINE) is not None)


def _records(output: str) -> list[dict[str, Any]]:
    """Jobs of `flux jobs --json`, which prints one that is alone without a list around it."""
    data = json.loads(output) if output.strip() else {"jobs": []}
    return list(data["jobs"]) if "jobs" in data else [data]


def parse(output: str) -> dict[str, Status]:
    """Raises ValueError for anything but records of jobs."""
    try:
        return {str(record["id"]): _status(record) for record in _records(output)}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a list of jobs: {output[:80]!r}") from error


def state_of(record: Mapping[str, Any]) -> State:
    """State of a job from its status and, where that is FAILED, from the exception that made it fail.

    Whoever raises one chooses its type; of a lost first node only the note tells (seen with 0.88).
    """
    state = STATES.get(record["status"], State.UNKNOWN)
    said = _reason(record)
    if state is not State.FAILED:
        return state
    if "node-failure: " in said or "node failure on " in said:
        return State.NODE_FAIL
    return State.PREEMPTED if said.startswith("preempt") else state


def parse_ends(output: str) -> list[State]:
    """How a job ended, which has but one allocation."""
    return [status.state for status in parse(output).values()]


def ending(output: str) -> State:
    """Whether an exception of that type ends a job; flux jobs tells of it only once the job is over (0.88)."""
    return State.PREEMPTED if ' exception type="preempt' in output else State.UNKNOWN


def _status(record: Mapping[str, Any]) -> Status:
    estimate = record.get("annotations", {}).get("sched", {}).get("t_estimate")
    start = datetime.fromtimestamp(estimate).isoformat(timespec="seconds") if estimate else ""
    return Status(state_of(record), _reason(record), start)


def _reason(record: Mapping[str, Any]) -> str:
    """Why a job waits, as the scheduler or its dependencies say, and why one failed that Flux gave up."""
    exception = record.get("exception", {})
    if exception.get("occurred"):
        return f"{exception.get('type', '')}: {exception.get('note', '')}"
    waits_for = record.get("dependencies") or []
    return ", ".join(waits_for) or record.get("annotations", {}).get("sched", {}).get("reason_pending", "")


# Sorted by priority, then age (flux-jobs(1)); without those that wait for other jobs.
WAITING = ("flux", "jobs", "-A", "--filter=sched", "--no-header", "--count=0", "--format={id.dec}|{queue}")


def job_argv(job_id: str) -> list[str]:
    return jobs_argv([job_id])


def events_argv(job_id: str) -> list[str]:
    return ["flux", "job", "eventlog", job_id]


def cancel_argv(job_ids: Sequence[str]) -> list[str]:
    return ["flux", "cancel", *job_ids]


SCHEDULER = Scheduler(
    name="flux",
    environment=ENVIRONMENT,
    batch=Batch(
        script=script,
        submit=submit_argv,
        parse_id=parse_id,
        queries=(Query((jobs_argv,), parse, is_answer),),
        listing=Query((lambda _: [*LISTING],), rows),
        is_refusal=is_refusal,
        cancel=cancel_argv,
        waiting=WAITING,
        ends=(job_argv, parse_ends),
        ending=((events_argv, ending),),
        requeue=None,  # Flux has no requeue: whoever submitted a job submits it anew
        warns=False,
    ),
)
