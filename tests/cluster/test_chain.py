"""Where jobs may not be requeued: a successor waits behind each, goes on where it ends, and never runs beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.conftest import SITE, Slurm, wait_for

pytestmark = pytest.mark.cluster


def test_a_waiting_successor_goes_on_and_a_needless_one_is_cancelled(cluster: Slurm, tmp_path: Path) -> None:
    """The controller is dead when the first job ends: the successor needs none; the next controller adopts it."""
    site = tmp_path / "site.yaml"
    site.write_text(SITE.read_text().replace("  max_idle: 3", "  max_idle: 3\n  chain: 1"))
    before = {job_id for job_id, _ in cluster.history("counted")}
    target = "counted_batch_9_again.txt"
    hold, trace = tmp_path / f"{target}.hold", tmp_path / f"{target}.trace_0"
    hold.touch()
    controller = cluster.start(tmp_path, target, site=site)
    wait_for(trace.exists, 60)
    controller.kill()
    controller.wait()
    wait_for(lambda: len(trace.read_text().split()) > 4, 60)
    controller = cluster.start(tmp_path, target, site=site)
    wait_for(lambda: "adopted slurm job" in (tmp_path / "out.log").read_text(), 60)
    hold.unlink()
    code, log = controller.wait(timeout=150), (tmp_path / "out.log").read_text()
    assert code == 0, log
    first, second = map(json.loads, (tmp_path / "run_batch_again" / "segments.jsonl").read_text().splitlines())
    assert (first["cause"], second["cause"]) == ("saved", "finished")
    assert int(second["job_id"]) == int(first["job_id"]) + 1 and second["start"] >= first["end"], "never two at once"
    assert f"adopted slurm job {second['job_id']}" in log and log.count("submitted as") == 1
    for rank in range(4):
        steps = (tmp_path / f"{target}.trace_{rank}").read_text().split()
        assert steps == [str(step) for step in range(1, 10)]
    wait_for(lambda: not cluster.ask("squeue", "-h"), 20)
    ends = sorted(state.split()[0] for job_id, state in cluster.history("counted") if job_id not in before)
    assert ends in (["COMPLETED", "COMPLETED"], ["CANCELLED", "COMPLETED", "COMPLETED"])
