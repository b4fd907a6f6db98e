"""Before ranks start, every node of the launch examines itself, in bounded time; those that are not fit are named."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jobs.errors import LauncherError
from jobs.health import Health, Report, report_file
from jobs.hostfile import hostfile, hostfile_text
from jobs.hostlist import expand
from jobs.launch import LAUNCHERS
from jobs.launch.contract import Launcher
from jobs.meeting import MESSAGE
from jobs.ranks import write_environment
from jobs.shell import exit_code, start
from jobs.spec import Launch

SLOW_S = 0.1
"""No link is called slow that took less than this: processes of shared nodes wait for their turn."""
PER_RANK = ("--gpus-per-task", "--gpu-bind", "--cpu-bind", "--container-", "--no-container-", "--auto-resume")
"""Options that deal a node out to its ranks, or hide it from them, of which who examines it must see all; or that wait
for another node in its place (HyperPod)."""
POLL_S = 0.05
_LOST = re.compile(r"^srun: error: ((?:Node failure on|Task launch for .+ failed on node) ([^\s:]+).*)", re.MULTILINE)
"""What srun says of nodes that died under it, or that did not take its tasks."""


def examine(health: Health, launcher: str, launch: Launch, environ: Mapping[str, str]) -> tuple[Launch, dict[str, str]]:
    """The launch with a port that is free on its master, and problems by node name, none if all nodes are fit.

    Takes at most `health.timeout_s` for each port that it finds taken, and once more. Raises LauncherError.
    """
    health = replace(health, folders=(str(launch.folder), *health.folders))
    while True:
        folder = Path(tempfile.mkdtemp(prefix="health-", dir=launch.folder))
        (folder / "health.json").write_text(json.dumps({"health": asdict(health), "gpus": launch.gpus_per_node}))
        reports, bad = ask_nodes(launcher, launch, "jobs.health", [], folder, environ, health.timeout_s)
        ports = [report.free_port for report in reports if report.free_port]
        if not ports:
            return launch, {**judge_links(reports, health.link_factor), **bad}
        place = f"port {launch.port} of {launch.hosts[0]}"
        print(f"jobs: {place} is taken: MASTER_PORT is {ports[0]}", file=sys.stderr, flush=True)
        launch = replace(launch, port=ports[0])


def ask_nodes(
    launcher: str,
    launch: Launch,
    module: str,
    words: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    timeout_s: float,
) -> tuple[list[Report], dict[str, str]]:
    """Runs a module once on each node of a launch, with all of the node.

    It gets `words` and the folder, which is removed, as arguments.

    Returns:
        What the nodes wrote down in time in `folder`, and the problems by node: its own, or that it said nothing.

    Raises:
        LauncherError: the launcher failed without a word about a node, and none has answered: that is no node's fault.
    """
    probe = _probe(launch, (sys.executable, "-m", module, *words, str(folder)), folder)
    try:
        ended, said = _start(LAUNCHERS[launcher], probe, {**environ}, timeout_s)
        files = {rank: report_file(folder, rank) for rank in range(probe.nodes)}
        written = [Report(**json.loads(file.read_text())) for file in files.values() if file.exists()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    reports = [replace(report, node=_name(report.node, launch.hosts)) for report in written]
    lost = {node: match[1] for match in _LOST.finditer(said) for node in expand(match[2]) if node in launch.hosts}
    if ended and not reports and not lost:
        last = "".join(f": {line}" for line in said.strip().splitlines()[-1:])
        raise LauncherError(f"{launcher} started nothing on any node (exit code {ended}){last}", ended)
    why = f"no answer within {timeout_s:g} s" if ended is None else f"no answer; {launcher} ended with code {ended}"
    answered = {report.rank for report in reports}
    silent = {host: why for rank, host in enumerate(launch.hosts) if rank not in answered}
    has_master = any(report.rank == 0 and not report.apart for report in reports)
    bad = {report.node: why for report in reports if (why := _problems(report, has_master))}
    return reports, bad | (lost or silent)  # with a lost node the launcher ends all others, before they can answer


def _probe(launch: Launch, command: tuple[str, ...], folder: Path) -> Launch:
    """The launch of one process per node, which has all of it."""
    return replace(
        launch,
        command=command,
        python="",
        ranks_per_node=1,
        folder=folder,
        device_choice="",
        rank_cores=(),
        extra=tuple(option for option in launch.extra if not option.startswith(PER_RANK)),
    )


def _name(host: str, nodes: Sequence[str]) -> str:
    """The scheduler's name of a node that calls itself `host`: one of the two may have its domain in it."""
    return next((node for node in nodes if node.split(".")[0] == host.split(".")[0]), host)


def _problems(report: Report, has_master: bool) -> str:
    """A node's own; that it did not meet the master is not, where the master is the one who failed."""
    is_apart = report.apart and (has_master or report.rank == 0)
    return "; ".join([*report.problems, *([report.apart] if is_apart else [])])


def _start(launcher: Launcher, probe: Launch, environ: dict[str, str], timeout_s: float) -> tuple[int | None, str]:
    """Runs one process per node. Returns the launcher's exit code, None where it had to be ended, and what it said."""
    hostfile(probe.folder).write_text(hostfile_text(probe))
    argv = launcher.argv(probe)
    if launcher.sets_ranks and probe.nodes == 1:  # torch need not be loaded for this
        argv = list(probe.command)
        environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    elif not launcher.keeps_environment:
        write_environment(probe, environ)
    with (probe.folder / "stderr").open("w+b") as errors:
        process = start(argv, environ, new_session=True, stderr=errors)
        deadline_s = time.monotonic() + timeout_s
        while (code := process.poll()) is None and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        if code is None:
            process.kill()
            process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    print(said, end="", file=sys.stderr, flush=True)
    return None if code is None else exit_code(code), said


def judge_links(reports: Sequence[Report], factor: float) -> dict[str, str]:
    """Nodes to which or from which the way is slow, compared with the median node's, or cut.

    Links to those that did not report say nothing of who did.
    """
    bad: dict[str, str] = {}
    names = {report.rank: report.node for report in reports}
    links = {(one.rank, other): seconds for one in reports for other, seconds in one.links if other in names}
    fastest = {rank: _fastest_s(rank, links) for rank in names}
    usual_s = statistics.median(fastest.values()) if fastest else 0.0
    for rank, seconds in fastest.items():
        if seconds == float("inf"):
            bad[names[rank]] = "no data come to other nodes from it, or to it from them"
        elif seconds > max(factor * usual_s, SLOW_S):
            size = f"{len(MESSAGE) >> 20} MB"
            bad[names[rank]] = f"its links are slow: {seconds:.2f} s for {size}, where {usual_s:.2f} s are usual"
    for (sender, other), seconds in links.items():
        if seconds == float("inf") and not bad.keys() & {names[sender], names[other]}:
            bad[names[sender]] = f"no data come to node {names[other]} from it"
    return bad


def _fastest_s(rank: int, links: Mapping[tuple[int, int], float]) -> float:
    """The slower of a node's two ways, out and in, each by its fastest link: one may be slow by the other end."""
    ways = [[seconds for ends, seconds in links.items() if ends[side] == rank] for side in (0, 1)]
    return max((min(way) for way in ways if way), default=0.0)
