"""A profile that `jobs site new` writes for a real Slurm, checked against it and run on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.hostlist import expand
from tests.cluster.conftest import HERE, SITE, Slurm

pytestmark = pytest.mark.cluster


def test_a_written_profile_agrees_with_the_cluster_and_runs(cluster: Slurm, tmp_path: Path) -> None:
    def call(*argv: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", *argv],
            cwd=tmp_path,
            env=cluster.environ,
            capture_output=True,
            text=True,
            timeout=150,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = call("jobs", "site", "new", "here")
    assert code == 0, said
    assert call("jobs", "site", "new", "here")[0] == 2, "nothing is overwritten"
    code, said = call("jobs", "site", "check", "here")
    assert code == 0 and "differs" not in said, said
    assert "agrees   partition batch: 1 to 4 nodes" in said and "agrees   nodes of batch: 8 cores" in said
    code, said = call(
        "snakemake", "--profile", "site_configs/here", "--snakefile", str(HERE / "Snakefile"), "ranks.txt"
    )
    assert code == 0, said
    assert len((tmp_path / "ranks.txt").read_text().splitlines()) == 4
    wrong = tmp_path / "site_configs" / "here" / "site.yaml"
    wrong.write_text(re.sub(r"cores: \d+", "cores: 64", wrong.read_text()))
    code, said = call("jobs", "site", "check", "here")
    assert code == 1 and "differs  nodes of batch: 64 cores; they have 8" in said, said


def test_a_job_lands_elsewhere_than_on_an_unfit_node(cluster: Slurm, tmp_path: Path) -> None:
    """node2 lacks its scratch folder; node1 and node2 are what the first allocation gets."""
    for node in (1, 3, 4):
        (tmp_path / "scratch" / f"node{node}").mkdir(parents=True)
    site = tmp_path / "site.yaml"
    health = {"timeout_s": 20, "clock_offset_s": 60, "folders": [f"{tmp_path}/scratch/$SLURMD_NODENAME"]}
    site.write_text(re.sub(r"health:\n(  .*\n)+", "", SITE.read_text()) + f"health: {json.dumps(health)}\n")
    code, log = cluster.run(tmp_path, "counted_batch_3_no.txt", site=site)
    assert code == 0, log
    first, second = map(json.loads, (tmp_path / "run_batch_no" / "segments.jsonl").read_text().splitlines())
    cause = f"unfit nodes: node2: {tmp_path}/scratch/node2: No such file or directory"
    assert (first["exit_code"], first["cause"], first["nodes"]) == (84, cause, "node[1-2]")
    assert second["cause"] == "finished" and "node2" not in expand(second["nodes"])
    assert log.count("submitted as") == 1 and "runs on as job" in log
