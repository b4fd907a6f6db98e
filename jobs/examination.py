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
from jobs.launch import LAUNCHERS
from jobs.ranks import write_environment
from jobs.shell import start
from jobs.site import Site
from jobs.spec import Launch

SLOW_FACTOR, SLOW_S = 5.0, 0.5
"""A link is slow if it took this many times what the fastest quarter took, and this long: shared nodes are noisy."""
PER_RANK = ("--gpus-per-task", "--gpu-bind", "--cpu-bind", "--container-", "--no-container-")
"""Options that deal a node out to its ranks, or hide it from them; who examines it must see all of it."""
POLL_S = 0.05


def examine(site: Site, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """Problems by node name; none if all nodes are fit. Takes at most the site's health.timeout_s."""
    assert site.health is not None
    folder = Path(tempfile.mkdtemp(prefix="health-", dir=launch.folder))
    health = replace(site.health, folders=(str(launch.folder), *site.health.folders))
    (folder / "health.json").write_text(json.dumps({"health": asdict(health), "gpus": launch.gpus_per_node}))
    extra = tuple(option for option in launch.extra if not option.startswith(PER_RANK))
    probe = replace(
        launch,
        command=(sys.executable, "-m", "jobs.health", str(folder)),
        python="",
        ranks_per_node=1,
        folder=folder,
        device_choice="",
        extra=extra,
    )
    try:
        reports = _collect(site, probe, {**environ}, health)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return judge(reports, launch.hosts, health)


def _collect(site: Site, probe: Launch, environ: dict[str, str], health: Health) -> list[Report]:
    """Starts one process per node and waits for what each writes down."""
    launcher = LAUNCHERS[site.launcher]
    argv = launcher.argv(probe)
    if launcher.sets_ranks and probe.nodes == 1:  # torch need not be loaded for this
        argv = list(probe.command)
        environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    elif not launcher.keeps_environment:
        write_environment(probe, environ)
    process = start(argv, environ, new_session=True)
    deadline_s = time.monotonic() + health.timeout_s
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
