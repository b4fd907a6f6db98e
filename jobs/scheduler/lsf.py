"""LSF: options, states and environment as tables. Source: IBM Spectrum LSF 10.1's reference. Never run on one."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.errors import UserError
from jobs.scheduler.contract import Batch, Query, Scheduler, Status
from jobs.scheduler.script import render_script
from jobs.spec import JobSpec
from jobs.state import State

STATES = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT", "PROV"), State.PENDING),
    # UNKWN, ZOMBI: its host does not answer; LSF knows it still, and it may come back, or be run again.
    **dict.fromkeys(("RUN", "USUSP", "SSUSP", "UNKWN", "ZOMBI"), State.RUNNING),
    "DONE": State.COMPLETED,
    "EXIT": State.FAILED,
}

# What EXIT means by its reason ("Termination reasons displayed by bacct, bhist, and bjobs"); FAILED for any other.
EXIT_REASONS = {
    **dict.fromkeys(("TERM_OWNER", "TERM_FORCE_OWNER", "TERM_ADMIN", "TERM_FORCE_ADMIN"), State.CANCELLED),
    "TERM_BUCKET_KILL": State.CANCELLED,
    **dict.fromkeys(("TERM_RUNLIMIT", "TERM_CPULIMIT", "TERM_DEADLINE", "TERM_WINDOW"), State.TIMEOUT),
    **dict.fromkeys(("TERM_MEMLIMIT", "TERM_SWAP"), State.OUT_OF_MEMORY),
    "TERM_PREEMPT": State.PREEMPTED,
    "TERM_ZOMBIE": State.NODE_FAIL,
    **dict.fromkeys(("TERM_REQUEUE_OWNER", "TERM_REQUEUE_ADMIN"), State.PENDING),
}

ENVIRONMENT = {
    "job_id": "LSB_JOBID",
    "nodes": "LSB_MCPU_HOSTS",
    # Spectrum MPI's, which jsrun sets too.
    "rank": "OMPI_COMM_WORLD_RANK",
    "world_size": "OMPI_COMM_WORLD_SIZE",
    "local_rank": "OMPI_COMM_WORLD_LOCAL_RANK",
    "tasks_per_node": "OMPI_COMM_WORLD_LOCAL_SIZE",
}

_ID = re.compile(r"^Job <(\d+)> is submitted to ", re.MULTILINE)
_NO_JOB = re.compile(r"^Job <\S+> is not found|^No (?:unfinished )?job found", re.MULTILINE)
_REASON = re.compile(r"TERM_\w+")


def submit_argv(spec: JobSpec, script: Path) -> list[str]:
    """bsub with every option of the job. bsub gives the words after them to a shell, hence the quotes.

    The warning comes by -wa and -wt before the end of the walltime. Nodes are whole hosts by `-nnodes` where the site's
    submit_args say so (Summit), else slots, one per core, and GPUs per host. Memory is not asked for: the unit of -M
    differs between clusters.
    """
    options = {
        "-J": spec.name.translate(str.maketrans("[]", "()")),  # brackets would make it a job array
        "-W": spec.runtime_min,
        "-P": spec.account,
        "-q": spec.partition,
        "-o": _path(spec.stdout),
        "-e": _path(spec.stderr),
        "-w": spec.after and f"ended({spec.after})",
        "-wa": "USR2",
        "-wt": math.ceil(spec.signal_delay_s / 60),
    }
    if "-nnodes" not in spec.extra:
        slots = spec.ranks_per_node * spec.cpus_per_rank
        gpus = f"num={spec.gpus_per_node}" if spec.gpus_per_node else None
        options |= {"-n": spec.nodes * slots, "-R": f"{_select(spec.exclude)}span[ptile={slots}]", "-gpu": gpus}
    given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    rerun = "-r" if spec.requeue else "-rn"
    return ["bsub", *given, rerun, *spec.extra, "/bin/bash", shlex.quote(str(script))]


def _select(exclude: Sequence[str]) -> str:
    """Nodes to stay away from, as a requirement; there is none beside -nnodes, which takes no -R."""
    terms = " && ".join(f"hname!='{node}'" for node in exclude)
    return f"select[{terms}] " if terms else ""


def _path(path: Path | None) -> str | None:
    """submitit writes %j for the job id, LSF %J."""
    return None if path is None else str(path).replace("%j", "%J")


def parse_id(output: str) -> str:
    """`Job <26238> is submitted to default queue <batch>.` Raises UserError for anything else."""
    match = _ID.search(output)
    if match is None:
        raise UserError(f"bsub: no job id in its answer: {output.strip()!r}")
    return match[1]


LISTING = ["bjobs", "-a", "-noheader", "-o", "jobid command delimiter='|'"]
_REFUSED = re.compile(r"Job not submitted|Request aborted|[Nn]o such (?:queue|project)|[Uu]nknown option|[Ii]llegal")
# What bsub says before the same `Job not submitted` where LSF's daemons do not answer just now.
_NOT_NOW = re.compile(
    r"LSF library call|LSF is down|LIM (?:is down|configuration)|not respond|still trying|try (?:again )?later"
    r"|[Tt]imed? ?out|[Cc]onnection (?:refused|reset)|[Ss]ocket|[Cc]ommunication|concurrent query|threshold"
)


def is_refusal(said: str) -> bool:
    """Whether bsub was told no: `gpux: No such queue. Job not submitted.`"""
    return _REFUSED.search(said) is not None and not _NOT_NOW.search(said)


def bjobs_json_argv(job_ids: Sequence[str]) -> list[str]:
    """All of the user's jobs, and for CLEAN_PERIOD those that ended: one short line for any number of them."""
    return ["bjobs", "-a", "-json", "-o", "jobid stat exit_reason pend_reason"]


def bjobs_text_argv(job_ids: Sequence[str]) -> list[str]:
    """The same of an LSF before 10.1.0.2, which knows no -json."""
    return ["bjobs", "-a", "-noheader", "-o", "jobid stat exit_reason delimiter='|'"]


def bjobs_wide_argv(job_ids: Sequence[str]) -> list[str]:
    """The same of an LSF before 9.1, which knows no -o: the table that every version prints, with no word cut off."""
    return ["bjobs", "-a", "-w"]


def is_answer(code: int, text: str) -> bool:
    """Whether bjobs answered: it may exit with 255 where a job is not found (LSB_BJOBS_CONSISTENT_EXIT_CODE)."""
    return code == 0 or (code == 255 and (_NO_JOB.search(text) is not None or '"RECORDS"' in text))


def parse(output: str) -> dict[str, Status]:
    """Every form of bjobs. Jobs that LSF has forgotten are absent, or have an ERROR instead of a state.

    Raises ValueError for anything that is none of the forms.
    """
    if "{" in output:
        return _parse_json(output[output.index("{") : output.rindex("}") + 1])
    lines = [line for line in output.splitlines() if line.strip() and not _NO_JOB.match(line)]
    rows = [line.split("|", 2) if "|" in line else _columns(line) for line in lines]
    known = {row[0]: Status(state_of(row[1], row[2])) for row in rows if len(row) == 3 and row[0].isdigit()}
    if lines and not known:
        raise ValueError(f"not a list of jobs: {output[:80]!r}")
    return known


def _parse_json(text: str) -> dict[str, Status]:
    try:
        records = [record for record in json.loads(text)["RECORDS"] if record.get("STAT")]
        return {str(record["JOBID"]): _status(record) for record in records}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not records of jobs: {text[:80]!r}") from error


def _status(record: Mapping[str, str]) -> Status:
    state = state_of(record["STAT"], record.get("EXIT_REASON", ""))
    return Status(state, record.get("PEND_REASON", "").strip(" -;") if state is State.PENDING else "")


def _columns(line: str) -> list[str]:
    """`123 user RUN queue from_host exec_host name time`: id, state and no reason."""
    words = line.split()
    return [words[0], words[2], ""] if len(words) > 3 and words[2] in STATES else []


def state_of(stat: str, reason: str) -> State:
    """State of a job from its STAT and, where that is EXIT, what follows from `TERM_OWNER: job killed by owner`."""
    state = STATES.get(stat, State.UNKNOWN)
    match = _REASON.search(reason)
    return EXIT_REASONS.get(match[0], state) if match and stat == "EXIT" else state


# Waiting jobs come in the order in which they are considered for dispatch (bjobs(1), default output).
WAITING = ("bjobs", "-u", "all", "-p", "-noheader", "-o", "jobid queue delimiter='|'")


def cancel_argv(job_ids: Sequence[str]) -> list[str]:
    return ["bkill", *job_ids]


def requeue_argv(job_id: str) -> list[str]:
    """Kills the job and puts it back under its id; its owner may (IBM's reference of brequeue)."""
    return ["brequeue", job_id]


def compute_hosts(value: str) -> list[str]:
    """Hosts of LSB_MCPU_HOSTS, `batch5 1 h49n16 42 h49n18 42`, without Summit's launch node, where no rank may run."""
    hosts = value.split()[::2]
    return [host for host in hosts if not re.match(r"(batch|login)\d", host)]


SCHEDULER = Scheduler(
    name="lsf",
    environment=ENVIRONMENT,
    batch=Batch(
        script=render_script,
        submit=submit_argv,
        parse_id=parse_id,
        queries=(Query((bjobs_json_argv, bjobs_text_argv, bjobs_wide_argv), parse, is_answer),),
        listing=LISTING,
        is_refusal=is_refusal,
        cancel=cancel_argv,
        requeue=requeue_argv,
        waiting=WAITING,
    ),
    hosts=compute_hosts,
)
