"""Before ranks start, every node of the launch examines itself, in bounded time; those that are not fit are named."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jobs.health import Health, Report, report_file
from jobs.hostfile import hostfile, hostfile_text
from jobs.launch import LAUNCHERS
from jobs.launch.contract import Launcher
from jobs.ranks import write_environment
from jobs.shell import start
from jobs.spec import Launch

SLOW_FACTOR, SLOW_S = 5.0, 0.5
"""A link is slow if it took this many times what the fastest quarter took, and this long: shared nodes are noisy."""
PER_RANK = ("--gpus-per-task", "--gpu-bind", "--cpu-bind", "--container-", "--no-container-")
"""Options that deal a node out to its ranks, or hide it from them; who examines it must see all of it."""
POLL_S = 0.05


def examine(health: Health, launcher: str, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """Problems by node name; none if all nodes are fit. Takes at most `health.timeout_s`."""
    folder = Path(tempfile.mkdtemp(prefix="health-", dir=launch.folder))
    health = replace(health, folders=(str(launch.folder), *health.folders))
    (folder / "health.json").write_text(json.dumps({"health": asdict(health), "gpus": launch.gpus_per_node}))
    reports = ask_nodes(launcher, launch, "jobs.health", [], folder, environ, health.timeout_s)
    return judge(reports, launch.hosts, health)


def ask_nodes(
    launcher: str,
    launch: Launch,
    module: str,
    words: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    timeout_s: float,
) -> list[Report]:
    """Runs a module once on each node of a launch, with all of the node; what each wrote down in time in `folder`.

    It gets `words` and the folder, which is removed, as arguments.
    """
    probe = replace(
        launch,
        command=(sys.executable, "-m", module, *words, str(folder)),
        python="",
        ranks_per_node=1,
        folder=folder,
        device_choice="",
        extra=tuple(option for option in launch.extra if not option.startswith(PER_RANK)),
    )
    try:
        return _collect(LAUNCHERS[launcher], probe, {**environ}, timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _collect(launcher: Launcher, probe: Launch, environ: dict[str, str], timeout_s: float) -> list[Report]:
    """Starts one process per node and waits for what each writes down."""
    hostfile(probe.folder).write_text(hostfile_text(probe))
    argv = launcher.argv(probe)
    if launcher.sets_ranks and probe.nodes == 1:  # torch need not be loaded for this
        argv = list(probe.command)
        environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    elif not launcher.keeps_environment:
        write_environment(probe, environ)
    process = start(argv, environ, new_session=True)
    deadline_s = time.monotonic() + timeout_s
    files = [report_file(probe.folder, rank) for rank in range(probe.nodes)]
    while process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    return [Report(**json.loads(file.read_text())) for file in files if file.exists()]


def judge(reports: Sequence[Report], hosts: Sequence[str], health: Health) -> dict[str, str]:
    """Problems by node: what each says of itself, that it said nothing, or that the links to and from it are slow."""
    bad = {report.node: "; ".join(report.problems) for report in reports if report.problems}
    said = {report.rank for report in reports}
    for rank, host in enumerate(hosts):
        if rank not in said:
            bad[host] = f"no answer within {health.timeout_s} s"
    links = {(r.rank, r.next_rank): r.link_s for r in reports if r.link_s is not None}
    if len(links) < 3:
        return bad  # with two nodes either may be the slow one
    usual_s = sorted(links.values())[len(links) // 4]
    slow = {ends for ends, seconds in links.items() if seconds > max(SLOW_FACTOR * usual_s, SLOW_S)}
    for report in reports:
        touching = [ends for ends in links if report.rank in ends]
        if touching and slow.issuperset(touching):
            bad.setdefault(report.node, f"its links are slow: {max(links[ends] for ends in touching):.2f} s for 8 MB")
    return bad
