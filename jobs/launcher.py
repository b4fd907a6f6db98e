"""`jobs launch`: one command as many ranks, with signals passed on and one exit code."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs import examination, runs, segments, staging, warning
from jobs.container import binds, contain
from jobs.errors import UserError
from jobs.hostfile import hostfile, hostfile_text
from jobs.launch import LAUNCHERS
from jobs.launch.contract import Launcher
from jobs.ranks import ENCODED, code_file, free_port, port_of, signal_file, started_file, write_environment
from jobs.scheduler import SCHEDULERS
from jobs.scheduler.contract import Scheduler
from jobs.shell import Process, exit_code, start
from jobs.site import Site
from jobs.spec import Launch

POLL_S = 0.1
SAVE_POLL_S, SLACK_S = 2.0, 15.0
"""How often the time that a save takes is looked up, and what is added to it."""
PEAK_VARIABLE = "NEOX_RANK_TFLOPS"
"""Tells the trainer the peak of its rank by precision, for MFU: `bf16=191.5 fp16=191.5`."""
MTBF_VARIABLE = "NEOX_MTBF_H"
"""Tells the trainer how often the nodes of the launch fail, for when to save: hours, of all of them together."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


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
    launch = replace(launch, python=staging.python(site.stage))
    if site.container is None:
        return launch
    variables = [*launch_environment(site, launch, environ), site.device_choice]
    names = [name for name in variables if name not in ("", "scheduler")]
    return contain(launch, site.launcher, site.container, Path.cwd(), names)


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
    return port_of(job_id) if job_id else None


def launch_environment(site: Site, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """What `jobs launch` adds to the ranks' environment. The user's own OMP_NUM_THREADS wins over ours."""
    threads = environ.get("OMP_NUM_THREADS", str(launch.cpus_per_rank))
    words = {"OMP_NUM_THREADS": threads, "DLTS_HOSTFILE": str(hostfile(launch.folder))}
    peaks = " ".join(f"{precision}={tflops:g}" for precision, tflops in site.rank_tflops.items())
    mtbf = {MTBF_VARIABLE: f"{site.node_mtbf_h / launch.nodes:g}"} if site.node_mtbf_h else {}
    placed = {**staging.variables(site.stage, environ), **binds(site.container, Path.cwd(), environ)}
    return {**words, **mtbf, **({PEAK_VARIABLE: peaks} if peaks else {}), **placed, **site.environment}


def place(site: Site, launch: Launch) -> list[str]:
    """What ranks are told of their place, as far as it is settled before the launcher runs."""
    if LAUNCHERS[site.launcher].sets_ranks and launch.nodes == 1:
        return [f"# {site.launcher} sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"]
    return [
        f"WORLD_SIZE={launch.world_size}",
        f"LOCAL_WORLD_SIZE={launch.ranks_per_node}",
        f"MASTER_ADDR={launch.hosts[0]}",
        f"MASTER_PORT={launch.port}" if launch.port else "# MASTER_PORT: one that is free",
        f"# RANK and LOCAL_RANK: as {site.launcher} places each rank",
    ]


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
    if site.stage:
        staging.require(site.stage)
    folder = Path(tempfile.mkdtemp(prefix=".launch-", dir=_shared_folder(run_dir, os.environ)))
    launch = plan_launch(site, command, nodes, ranks_per_node, folder, os.environ, listed)
    launch = replace(launch, port=launch.port or free_port())
    hostfile(folder).write_text(hostfile_text(launch))
    held = segments.begin(run_dir, SCHEDULERS[site.scheduler], os.environ) if run_dir else None
    log_size = segments.log_size(run_dir)
    try:
        environ = {**os.environ, **launch_environment(site, launch, os.environ)}
        if run_dir:
            warning.follow(os.environ, run_dir)
        if unfit := _unfit(site, launch, environ):
            warning.report_outcome(os.environ, warning.UNHEALTHY)
            if held and run_dir:
                held.finish(run_dir, segments.End(warning.UNHEALTHY, "unfit nodes", f"unfit nodes: {unfit}"))
            return warning.UNHEALTHY
        if not LAUNCHERS[site.launcher].keeps_environment:
            write_environment(launch, environ)
        running = Running(LAUNCHERS[site.launcher], launch, environ, run_dir, site.signal_delay_s)
        with warning.registered(os.environ):  # a job that is ended waits for us until the segment is written
            code = combine(folder, launch.world_size, running.wait())
            warning.report_outcome(os.environ, code)
            victim = killed_first(folder, launch.world_size)
            if victim:
                print(f"jobs: error: {victim}", file=sys.stderr, flush=True)
            if held and run_dir:
                if code in (0, warning.SAVED) or running.was_ended(code):
                    end = segments.warned(code, running.signals, running.left_s, site.signal_delay_s)
                else:
                    end = segments.failed(code, victim, run_dir, log_size)
                held.finish(run_dir, end)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _unfit(site: Site, launch: Launch, environ: Mapping[str, str]) -> str:
    """Names and problems of nodes that are not fit, which the job's next allocation avoids; "" if all are."""
    bad = examination.examine(site.health, site.launcher, launch, environ) if site.health else {}
    if site.stage and not bad:
        bad = staging.stage_nodes(site.stage, site.launcher, launch, environ)
    warning.exclude(environ, bad)
    for node, problem in bad.items():
        print(f"jobs: error: node {node}: {problem}", file=sys.stderr, flush=True)
    return "; ".join(f"{node}: {problem}" for node, problem in bad.items())


def _shared_folder(run_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """Where all nodes can write: the job's folder (cleared when it starts again), the run directory, or this one."""
    folder = (warning.folder_of(environ) or run_dir or Path()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Running:
    """A started launcher, and the signals that wait until its ranks can take them."""

    def __init__(
        self,
        launcher: Launcher,
        launch: Launch,
        environ: Mapping[str, str],
        run_dir: Path | None,
        signal_delay_s: int,
    ) -> None:
        """`run_dir`: of the run that is trained; the time that it takes to save is known from there."""
        self.launcher, self.folder, self.environ = launcher, launch.folder, environ
        self.run_dir, self.signal_delay_s = run_dir, signal_delay_s
        self.end_s = float(environ.get(warning.END_VARIABLE, "inf"))
        self.looked_s = time.monotonic()
        self.signals: list[str] = []
        self.left_s = float("inf")
        """Of the walltime, when the first signal came."""
        self.num_forwarded = 0
        for number in FORWARDED:
            signal.signal(number, self.on_signal)
        # A session of its own: Ctrl-C at a terminal reaches only us, and the ranks get to save.
        self.process: Process = start(launcher.argv(launch), environ, new_session=True)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.signals:
            # The job passes its warning on to launches that begin after it came.
            passed_on_s = warning.warned_s(self.environ) if number == signal.SIGUSR2 else None
            self.left_s = self.end_s - (passed_on_s or time.time())
        self.signals.append(signal.Signals(number).name)

    def was_ended(self, code: int) -> bool:
        """Whether `code` is a death by a signal that was passed on: the ranks had no handler for it yet."""
        return code in [128 + signal.Signals[_passed_on(name)] for name in self.signals[: self.num_forwarded]]

    def warn_in_time(self) -> None:
        """The scheduler warns a fixed time before the walltime ends; a run that needs longer to save, we do."""
        if self.signals or self.run_dir is None or time.monotonic() < self.looked_s + SAVE_POLL_S:
            return
        self.looked_s = time.monotonic()
        needed_s = runs.time_to_save_s(self.run_dir)
        if needed_s is not None and time.time() > self.end_s - needed_s - SLACK_S:
            print(f"jobs: saving takes up to {needed_s:.0f} s, and the walltime ends: ranks save", file=sys.stderr)
            self.left_s = self.signal_delay_s  # it is that warning, come early
            self.signals.append(signal.SIGUSR2.name)

    def forward(self) -> None:
        """srun killed before its step exists would take the warning for its own; so wait for the first rank."""
        if not started_file(self.folder).exists():
            return
        while self.num_forwarded < len(self.signals):
            name = _passed_on(self.signals[self.num_forwarded])
            if self.launcher.forwards_signals:
                self.process.send_signal(signal.Signals[name])
            else:
                with signal_file(self.folder).open("a") as file:
                    file.write(f"{name}\n")
            self.num_forwarded += 1

    def wait(self) -> int:
        while (code := self.process.poll()) is None:
            self.warn_in_time()
            self.forward()
            time.sleep(POLL_S)
        return exit_code(code)


def _passed_on(name: str) -> str:
    """What ranks get for a signal: Ctrl-C asks to save and stop."""
    return name.replace("SIGINT", "SIGTERM")


def ends(folder: Path, world_size: int) -> list[tuple[int, int]]:
    """Rank and exit code of the ranks that left one, first to end first."""
    files = [(rank, file) for rank in range(world_size) if (file := code_file(folder, rank)).exists()]
    files.sort(key=lambda item: item[1].stat().st_mtime_ns)
    return [(rank, int(file.read_text())) for rank, file in files]


def killed_first(folder: Path, world_size: int) -> str:
    """Names the first rank to end if something killed it: whatever the other ranks say then is but the consequence."""
    for rank, code in ends(folder, world_size)[:1]:
        if code > 128 and code - 128 not in FORWARDED:
            return f"rank {rank} was killed by {signal.Signals(code - 128).name}"
    return ""


def combine(folder: Path, world_size: int, launcher_code: int) -> int:
    """One exit code: all 0 → 0; a failure (neither 0 nor 85) → the first one; else 85.

    Deaths by signal count only where nothing else is to blame: they are mostly the other ranks being torn down. Ranks
    that left no code (killed with their wrapper) make the launcher's own code count.
    """
    codes = [code for _, code in ends(folder, world_size)]
    failures = sorted((code for code in codes if code not in (0, warning.SAVED)), key=lambda code: code > 128)
    if failures:
        return failures[0]
    if len(codes) < world_size:
        return launcher_code if launcher_code not in (0, warning.SAVED) else 1
    return max(codes)
