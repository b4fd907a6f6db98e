"""LSF: options and environment as tables.

Source: IBM Spectrum LSF 10.1's reference; run with OpenLava 4.0, which descends from LSF and knows less.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.errors import UserError
from jobs.scheduler.contract import Array, Batch, Query, Scheduler
from jobs.scheduler.lsf_output import (
    array_job_id,
    ending,
    is_answer,
    is_refusal,
    parse,
    parse_ends,
    parse_history,
    parse_id,
    parse_names,
)
from jobs.scheduler.script import render_script
from jobs.spec import JobSpec

ENVIRONMENT = {
    "job_id": "LSB_JOBID",
    "nodes": "LSB_MCPU_HOSTS",
    # Spectrum MPI's, which jsrun sets too.
    "rank": "OMPI_COMM_WORLD_RANK",
    "world_size": "OMPI_COMM_WORLD_SIZE",
    "local_rank": "OMPI_COMM_WORLD_LOCAL_RANK",
    "tasks_per_node": "OMPI_COMM_WORLD_LOCAL_SIZE",
}


def submit_argv(spec: JobSpec, script: Path) -> list[str]:
    """bsub with every option of the job, whose name ends in the script's, by which a lost submission is found.

    The command is one word, which a shell gets as it is; of several bsub quotes some characters itself. Nodes are whole
    hosts by `-nnodes` where the site's submit_args say so (Summit), else slots, one per core, and GPUs per host. Memory
    is not asked for: the unit of -M differs between clusters. The job warns itself before its walltime ends, and not
    every LSF has -wa and -wt: a site's submit_args may ask for them. Raises UserError for a folder that LSF would
    rename.
    """
    options = {
        "-J": _name(spec, script),
        "-W": spec.runtime_min,
        "-P": spec.account,
        "-q": spec.partition,
        "-o": _path(spec.stdout, "%J"),
        "-e": _path(spec.stderr, "%J"),
        "-w": spec.after and f"ended({spec.after})",
    }
    if "-nnodes" not in spec.extra:
        slots = spec.ranks_per_node * spec.cpus_per_rank
        gpus = f"num={spec.gpus_per_node}" if spec.gpus_per_node else None
        options |= {"-n": spec.nodes * slots, "-R": f"{_select(spec.exclude)}span[ptile={slots}]", "-gpu": gpus}
    given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    rerun = ["-r"] if spec.requeue else []
    return ["bsub", *given, *rerun, *spec.extra, shlex.join(["/bin/bash", str(script)])]


def array_argv(spec: JobSpec, script: Path, num_jobs: int) -> list[str]:
    """The same for an array, whose elements have logs of their own."""
    argv = submit_argv(replace(spec, stdout=None, stderr=None), script)
    name = ["-J", f"{_name(spec, script)}[1-{num_jobs}]"]
    logs = ["-o", _path(spec.stdout, "%J[%I]"), "-e", _path(spec.stderr, "%J[%I]")]
    return ["bsub", *name, *filter(None, logs), *argv[3:]]


def _name(spec: JobSpec, script: Path) -> str:
    """In characters that mean nothing to LSF (brackets make an array); the name of one may not be longer than 255."""
    return f"{re.sub(r'[^a-zA-Z0-9._-]', '_', spec.name)[:200]}.{script.stem}"


def _select(exclude: Sequence[str]) -> str:
    """Nodes to stay away from, as a requirement; there is none beside -nnodes, which takes no -R."""
    terms = " && ".join(f"hname!='{node}'" for node in exclude)
    return f"select[{terms}] " if terms else ""


def _path(path: Path | None, job_id: str) -> str | None:
    """submitit writes %j for the job's id, LSF %J and for an array's element %J[%I]."""
    if path is None:
        return None
    if filled := re.search("%[JI]", str(path)):
        raise UserError(f"{path}: {filled[0]} in a name is filled in by LSF; work in another folder")
    return str(path).replace("%j", job_id)


def bjobs_json_argv(job_ids: Sequence[str]) -> list[str]:
    """All of the user's jobs, and for CLEAN_PERIOD those that ended: one short line for any number of them."""
    return ["bjobs", "-a", "-json", "-o", "jobid jobindex stat exit_code exit_reason pend_reason"]


def bjobs_text_argv(job_ids: Sequence[str]) -> list[str]:
    """The same of an LSF before 10.1.0.2, which knows no -json."""
    return ["bjobs", "-a", "-noheader", "-o", "jobid jobindex stat exit_code exit_reason delimiter='|'"]


def bjobs_wide_argv(job_ids: Sequence[str]) -> list[str]:
    """The same of an LSF before 9.1, which knows no -o: the table that every version prints, with no word cut off."""
    return ["bjobs", "-a", "-w"]


def bhist_argv(job_ids: Sequence[str]) -> list[str]:
    """Jobs of which bjobs does not tell how they ended, from the last ten files of events."""
    return ["bhist", "-n", "10", "-l", *job_ids]


def ends_argv(job_id: str) -> list[str]:
    return bhist_argv([job_id])


def names_argv(job_ids: Sequence[str]) -> list[str]:
    return ["bjobs", "-a", "-noheader", "-o", "jobid job_name delimiter='|'"]


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
        queries=(
            Query((bjobs_json_argv, bjobs_text_argv, bjobs_wide_argv), parse, is_answer),
            Query((bhist_argv,), parse_history),
        ),
        listing=Query((names_argv, bjobs_wide_argv), parse_names, is_answer),
        is_refusal=is_refusal,
        cancel=cancel_argv,
        requeue=requeue_argv,
        ends=(ends_argv, parse_ends),
        waiting=WAITING,
        ending=((ends_argv, ending),),
        array=Array(array_argv, 1, array_job_id, "LSB_JOBINDEX", "LSB_JOBID"),
        warns=False,
    ),
    hosts=compute_hosts,
)
