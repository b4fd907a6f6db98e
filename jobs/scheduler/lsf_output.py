"""What LSF's commands print, as tables and parsers: bsub, bjobs in all its forms, bhist.

Source: IBM Spectrum LSF 10.1's reference, and OpenLava 4.0, which descends from LSF.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from jobs.errors import UserError
from jobs.scheduler.contract import Status, rows
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
    **dict.fromkeys(("TERM_PREEMPT", "TERM_LOAD"), State.PREEMPTED),
    **dict.fromkeys(("TERM_ZOMBIE", "TERM_REMOVE_HUNG_JOB", "TERM_RC", "TERM_CSM_ALLOC"), State.NODE_FAIL),
    **dict.fromkeys(("TERM_REQUEUE_OWNER", "TERM_REQUEUE_ADMIN", "TERM_REQUEUE_RC"), State.PENDING),
}
RUN_LIMIT_CODE = "140"
"""Exit code after USR2, which LSF sends when the run limit is reached (bsub(1), -W); a reason need not be given."""

_ID = re.compile(r"^Job <(\d+)> is submitted to ", re.MULTILINE)
_NO_JOB = re.compile(r"^Job <\S+> is not found|^No (?:\w+ )?job found|^No matching job found", re.MULTILINE)
_REASON = re.compile(r"TERM_\w+")
_NO_HOST = "Execution host unavailable"
"""What bhist says instead of `Exited` where a job's host is lost: of one that may be rerun LSF then waits no longer."""


def parse_id(output: str) -> str:
    """`Job <26238> is submitted to default queue <batch>.` Raises UserError for anything else."""
    match = _ID.search(output)
    if match is None:
        raise UserError(f"bsub: no job id in its answer: {output.strip()!r}")
    return match[1]


_REFUSED = re.compile(r"Job not submitted|Request aborted|[Nn]o such (?:queue|project)|[Uu]nknown option|[Ii]llegal")
# What bsub says before the same `Job not submitted` where LSF's daemons do not answer just now.
_NOT_NOW = re.compile(
    r"LSF library call|LSF is down|[Pp]lease wait|LIM (?:is down|configuration)|not respond|still trying"
    r"|try (?:again )?later"
    r"|[Tt]imed? ?out|[Cc]onnection (?:refused|reset)|[Ss]ocket|[Cc]ommunication|concurrent query|threshold"
)


def is_refusal(said: str) -> bool:
    """Whether bsub was told no: `gpux: No such queue. Job not submitted.`"""
    return _REFUSED.search(said) is not None and not _NOT_NOW.search(said)


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
    records = [line.split("|", 4) if "|" in line else _columns(line) for line in lines]
    known = {_id(*words[:2]): Status(state_of(*words[2:])) for words in records if len(words) == 5}
    if lines and not known:
        raise ValueError(f"not a list of jobs: {output[:80]!r}")
    return known


def array_job_id(base_id: str, number: str) -> str:
    return f"{base_id}[{number}]"


def _id(job_id: str, index: str) -> str:
    """`123[4]` of an array's element; index 0 is no array. With LSB_BJOBS_DISPLAY_ENH the id is whole already."""
    return job_id if index in ("", "-", "0") or "[" in job_id else array_job_id(job_id, index)


def _parse_json(text: str) -> dict[str, Status]:
    try:
        records = [record for record in json.loads(text)["RECORDS"] if record.get("STAT")]
        return {_id(str(record["JOBID"]), str(record.get("JOBINDEX", ""))): _status(record) for record in records}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not records of jobs: {text[:80]!r}") from error


def _status(record: Mapping[str, str]) -> Status:
    state = state_of(record["STAT"], record.get("EXIT_CODE", ""), record.get("EXIT_REASON", ""))
    return Status(state, record.get("PEND_REASON", "").strip(" -;") if state is State.PENDING else "")


# `123 user RUN queue from_host exec_host name time`, where the name of an array's element ends in its index.
_WIDE = re.compile(rf"^(\d+) +\S+ +({'|'.join(STATES)}) .*?(?:\[(\d+)\] .*)?$", re.MULTILINE)


def _columns(line: str) -> list[str]:
    """A job's id, index and state from the wide table; why one is at EXIT it does not say, but bhist does."""
    row = _WIDE.match(line)
    return [row[1], row[3] or "", row[2].replace("EXIT", "?"), "", ""] if row else []


def parse_names(output: str) -> dict[str, str]:
    """What `names_argv` prints, or the wide table; an array's elements are one submission."""
    found = rows(output) or {row[1]: row[0] for row in _WIDE.finditer(output)}
    return {job_id.partition("[")[0]: name for job_id, name in found.items()}


def state_of(stat: str, code: str = "", reason: str = "") -> State:
    """State of a job from its STAT and, where that is EXIT, what follows from `TERM_OWNER: job killed by owner`."""
    state = STATES.get(stat, State.UNKNOWN)
    if stat != "EXIT":
        return state
    match = _REASON.search(reason)
    return EXIT_REASONS.get(match[0], state) if match else State.TIMEOUT if code == RUN_LIMIT_CODE else state


def parse_history(output: str) -> dict[str, Status]:
    """What `bhist -l` tells of jobs that have ended; of others bjobs knows better."""
    return {job_id: Status(_ends(said)[-1]) for job_id, said in _histories(output).items() if _ends(said)}


def parse_ends(output: str) -> list[State]:
    """How each allocation of a job ended."""
    return [state for said in _histories(output).values() for state in _ends(said)]


def _histories(output: str) -> dict[str, str]:
    """Each job's events, by its id; lines are broken after 80 characters, within words too."""
    whole = re.sub(r"\n {20,}", "", output)
    _, *parts = re.split(r"^Job (?:Id )?<(\d+(?:\[\d+\])?)>", whole, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _ends(said: str) -> list[State]:
    parts = re.split(rf": (Done successfully|Exited|{_NO_HOST})", said)
    return [_end(*parts[i - 1 : i + 2]) for i in range(1, len(parts), 2)]


def _end(before: str, word: str, after: str) -> State:
    """How an allocation ended, from the events before and behind; who is killed without a reason was sent a signal."""
    if word == _NO_HOST:
        return State.NODE_FAIL
    if word != "Exited":
        return State.COMPLETED
    code = re.match(r" with exit code (\d+)", after)
    state = state_of("EXIT", code[1] if code else "", after.partition(": Starting")[0])
    if state is State.PENDING or "Signal <REQUEUE" in before:
        return State.PREEMPTED
    killed = state is State.FAILED and re.search(r"Signal <(?:KILL|TERM|INT)> requested", before)
    return State.CANCELLED if killed else state


def ending(output: str) -> State:
    """Whether bhist knows that a running job is on its way back into the queue: so LSF preempts, if not by stopping."""
    is_requeued = output.rfind("Signal <REQUEUE") > output.rfind(": Starting")
    return State.PREEMPTED if is_requeued else State.UNKNOWN
