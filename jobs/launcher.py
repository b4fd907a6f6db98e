"""`jobs launch`: one command as many ranks, with signals passed on and one exit code."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs import examination, inquiry, segments, staging, warning
from jobs.container import binds, contain
from jobs.errors import LauncherError, UserError
from jobs.hostfile import hostfile, hostfile_text
from jobs.launch import LAUNCHERS
from jobs.ranks import ENCODED, free_port, port_of
from jobs.running import Running, attempts, combine, killed_first
from jobs.scheduler import SCHEDULERS
from jobs.scheduler.contract import Scheduler
from jobs.site import Site
from jobs.spec import Launch

PATIENCE_S, ASK_WAIT_S = 600.0, 5.0
"""How long a scheduler may be away when ranks are to start: a restart of its controller takes minutes."""
PEAK_VARIABLE = "NEOX_RANK_TFLOPS"
"""Tells the trainer the peak of its rank by precision, for MFU: `bf16=191.5 fp16=191.5`."""
MTBF_VARIABLE = "NEOX_MTBF_H"
"""Tells the trainer how often the nodes of the launch fail, for when to save: hours, of all of them together."""


def plan_launch(
    site: Site,
    command: list[str],
    nodes: int,
    ranks_per_node: int | None,
    folder: Path,
    environ: Mapping[str, str],
    listed: Sequence[str] = (),
) -> Launch:
    """A launch with the site's numbers filled in; `listed`: the hosts, where no scheduler gives any.

    Raises UserError where site or allocation cannot hold it.
    """
    ranks = ranks_per_node or site.ranks
    words = SCHEDULERS[site.scheduler].environment
    held = len(listed) or _num_nodes(SCHEDULERS[site.scheduler], environ)
    if SCHEDULERS[site.scheduler].batch and held is None:
        raise UserError(f"jobs launch: no {site.scheduler} allocation here ({words['job_id']} is not set)")
    if held is not None and nodes > held:
        raise UserError(f"--nodes {nodes}: the allocation has {held}")
    if held is None and nodes > 1:
        raise UserError(f"--nodes {nodes}: site {site.name} has one node")
    cpus = int(environ.get(words.get("cpus_per_rank", "")) or max(1, site.cores // ranks))
    hosts = (tuple(listed) or _hosts(SCHEDULERS[site.scheduler], environ))[:nodes]
    choice, port = site.device_choice, _port(SCHEDULERS[site.scheduler], environ)
    words_of_site = (site.gpus, choice, site.launch_args)
    launch = Launch(tuple(command), nodes, ranks, cpus, folder, *words_of_site, hosts=hosts, port=port)
    cores = site.rank_cores if ranks == site.ranks else ()
    launch = replace(launch, python=staging.python(site.stage), rank_cores=cores)
    if site.container is None:
        return launch
    variables = [*launch_environment(site, launch, environ), site.device_choice]
    names = [name for name in variables if name not in ("", "scheduler")]
    return contain(launch, site.launcher, site.container, Path.cwd(), names)


def with_logs(launch: Launch, run_dir: Path | None) -> Launch:
    """Each rank of a run has a log of its own beside the run's."""
    return replace(launch, logs=(run_dir / segments.LOG).resolve().parent if run_dir else None)


def _hosts(scheduler: Scheduler, environ: Mapping[str, str]) -> tuple[str, ...]:
    listed = environ.get(scheduler.environment.get("nodes", ""))
    return tuple(scheduler.hosts(listed)) if listed else (os.uname().nodename,)


def _num_nodes(scheduler: Scheduler, environ: Mapping[str, str]) -> int | None:
    """Nodes of the allocation around us, None where there is none. LSF names them but does not count them."""
    words = scheduler.environment
    if "num_nodes" in words:
        return int(environ[words["num_nodes"]]) if words["num_nodes"] in environ else None
    return len(scheduler.hosts(environ[words["nodes"]])) if words["nodes"] in environ else None


def _port(scheduler: Scheduler, environ: Mapping[str, str]) -> int | None:
    job_id = environ.get(scheduler.environment.get("job_id", ""))
    return port_of(job_id, environ) if job_id else None


def launch_environment(site: Site, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """What `jobs launch` adds to the ranks' environment. The user's own OMP_NUM_THREADS wins over ours."""
    threads = environ.get("OMP_NUM_THREADS", str(launch.cpus_per_rank))
    words = {"OMP_NUM_THREADS": threads, "DLTS_HOSTFILE": str(hostfile(launch.folder))}
    peaks = " ".join(f"{precision}={tflops:g}" for precision, tflops in site.rank_tflops.items())
    mtbf = {MTBF_VARIABLE: f"{site.node_mtbf_h / launch.nodes:g}"} if site.node_mtbf_h else {}
    placed = {**staging.variables(site.stage, environ), **binds(site.container, Path.cwd(), environ)}
    words |= LAUNCHERS[site.launcher].environment
    return {**words, **mtbf, **({PEAK_VARIABLE: peaks} if peaks else {}), **placed, **site.environment}


def stand_ins(site: Site, nodes: int, environ: Mapping[str, str]) -> list[str]:
    """Names for the hosts of a launch that is only shown, outside of an allocation; none where they are known."""
    scheduler = SCHEDULERS[site.scheduler]
    is_known = scheduler.batch is None or _num_nodes(scheduler, environ) is not None
    return [] if is_known else [f"NODE{node}" for node in range(nodes)]


def place(site: Site, launch: Launch) -> list[str]:
    """What ranks are told of their place, as far as it is settled before the launcher runs."""
    said = f"cores of local ranks: {' '.join(launch.rank_cores)}" if launch.rank_cores else _unbound(site, launch)
    cores = [f"# {said}"] if said else []
    if LAUNCHERS[site.launcher].sets_ranks and launch.nodes == 1:
        return [*cores, f"# {site.launcher} sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"]
    port = "by the job's id, or another that is free" if SCHEDULERS[site.scheduler].batch else "one that is free"
    return [
        *cores,
        f"WORLD_SIZE={launch.world_size}",
        f"LOCAL_WORLD_SIZE={launch.ranks_per_node}",
        f"MASTER_ADDR={launch.hosts[0]}",
        f"MASTER_PORT={launch.port}" if launch.port else f"# MASTER_PORT: {port}",
        f"# RANK and LOCAL_RANK: as {site.launcher} places each rank",
    ]


def _unbound(site: Site, launch: Launch) -> str:
    """Why ranks are not bound to the cores that the site has for them; empty where they are, or where it has none."""
    if launch.rank_cores or not site.rank_cores:
        return ""
    return f"ranks are not bound: node.rank_cores of site {site.name} is for {site.ranks} of them on a node"


def _tell_unbound(site: Site, launch: Launch) -> None:
    if unbound := _unbound(site, launch):
        print(f"jobs: {unbound}, not {launch.ranks_per_node}", file=sys.stderr, flush=True)


def describe(site: Site, launch: Launch, environ: Mapping[str, str]) -> str:
    """What --dry-run prints: the environment, then the exact line."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in launch_environment(site, launch, environ).items()]
    line = shlex.join(LAUNCHERS[site.launcher].argv(launch))
    meant = [f"# where each rank is {shlex.join(launch.command)}"] if ENCODED in line else []
    return "\n".join([*lines, *place(site, launch), line, *meant])


def run(
    site: Site,
    command: list[str],
    nodes: int,
    ranks_per_node: int | None,
    run_dir: Path | None,
    listed: Sequence[str] = (),
) -> int:
    """Launches and waits; returns the ranks' combined exit code and tells it to the job around us, if any."""
    launch = plan_launch(site, command, nodes, ranks_per_node, Path(), os.environ, listed)
    if warning.has_saved(os.environ):
        return warning.SAVED  # a rule with `retries` tries again inside the allocation that is about to end
    _require(site, launch)
    _tell_unbound(site, launch)
    folder = Path(tempfile.mkdtemp(prefix=".launch-", dir=_shared_folder(run_dir, os.environ)))
    launch = replace(launch, folder=folder, port=launch.port or free_port())
    hostfile(folder).write_text(hostfile_text(launch))
    held = segments.begin(run_dir, SCHEDULERS[site.scheduler], os.environ) if run_dir else None
    try:
        environ = {**os.environ, **launch_environment(site, launch, os.environ)}
        if run_dir:
            warning.follow(os.environ, run_dir)
        is_back = partial(_is_back, SCHEDULERS[site.scheduler], os.environ)
        launch, prevented = _prepare(site, launch, environ, is_back)
        if prevented:
            warning.report_outcome(os.environ, prevented[0])
            if held and run_dir:
                held.finish(run_dir, segments.End(*prevented))
            return prevented[0]
        launch = with_logs(launch, run_dir)
        running = Running(LAUNCHERS[site.launcher], launch, environ, run_dir, site.signal_delay_s, is_back)
        with warning.registered(os.environ):  # a job that is ended waits for us until the segment is written
            code = combine(folder, launch.world_size, running.run())
            warning.report_outcome(os.environ, code)
            if victim := killed_first(folder, launch.world_size):
                print(f"jobs: error: {victim}", file=sys.stderr, flush=True)
            if held and run_dir:
                ask = partial(segments.ending, SCHEDULERS[site.scheduler], held.job_id)
                held.finish(run_dir, running.end(code, victim, ask))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _require(site: Site, launch: Launch) -> None:
    """Raises UserError where what starts the ranks, or what they run in, is not there."""
    if site.stage:
        staging.require(site.stage)
    program = LAUNCHERS[site.launcher].argv(launch)[0]
    if not shutil.which(program, path=launch_environment(site, launch, os.environ).get("PATH")):
        raise UserError(f"{program}: command not found: site {site.name} starts its ranks with it")


def _is_back(scheduler: Scheduler, environ: Mapping[str, str], is_over: Callable[[], object] = bool) -> bool:
    """Waits until the scheduler of the allocation answers; no where there is none, and once `is_over`."""
    job_id = environ.get(warning.ID_VARIABLE) or environ.get(scheduler.environment.get("job_id", ""))
    if scheduler.batch is None or not job_id:
        return False
    deadline_s = time.monotonic() + PATIENCE_S
    while inquiry.ask(scheduler.batch, [job_id]) is None:
        if is_over() or time.monotonic() > deadline_s:
            return False
        time.sleep(ASK_WAIT_S)
    return not is_over()


def _prepare(
    site: Site, launch: Launch, environ: Mapping[str, str], is_back: Callable[[], bool]
) -> tuple[Launch, tuple[int, str, str] | None]:
    """The launch with a port that is free; and code, kind and cause of an end before any rank has begun: the launcher
    fails, also once the scheduler is back, or nodes are not fit, which the job's next allocation avoids.
    """
    for _ in attempts(is_back):
        bad: dict[str, str] = {}
        failure = None
        try:
            if site.health:
                launch, bad = examination.examine(site.health, site.launcher, launch, environ)
            if site.stage and not bad:
                bad = staging.stage_nodes(site.stage, site.launcher, launch, environ)
        except LauncherError as error:
            print(f"jobs: error: {error}", file=sys.stderr, flush=True)
            failure = error.code, "crash", str(error)
            continue
        # That none of several nodes is fit is hardly theirs: slurmctld back from a restart starts no step at first.
        if len(bad) < max(2, launch.nodes):
            break
    if not bad:
        return launch, failure
    problems = [f"{node}: {problem}" for node, problem in bad.items()]
    for problem in problems:
        print(f"jobs: error: node {problem}", file=sys.stderr, flush=True)
    warning.exclude(environ, bad)
    return launch, (warning.UNHEALTHY, "unfit nodes", f"unfit nodes: {'; '.join(problems)}")


def _shared_folder(run_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """Where all nodes can write: the job's folder (cleared when it starts again), the run directory, or this one."""
    folder = (warning.folder_of(environ) or run_dir or Path()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
