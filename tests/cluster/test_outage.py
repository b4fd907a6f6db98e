"""Slurm's commands fail for a while, and one answer is lost: no job is lost, and none is submitted twice."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import Slurm, wait_for

pytestmark = pytest.mark.cluster
OUTAGE_S = float(os.environ.get("OUTAGE_S", "5"))
TOOLS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
SHIM = """#!/bin/bash
[ -e {folder}/outage ] && {{ echo "{tool}: error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }}
if [ {tool} = sbatch ] && mkdir {folder}/lost 2>/dev/null; then
  {real} "$@" >{folder}/answer; touch {folder}/outage
  echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1
fi
exec {real} "$@"
"""


def test_an_outage_loses_no_job_and_doubles_none(
    cluster: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first sbatch is lost, and from then on every command fails until the outage is over."""
    shims = tmp_path / "shims"
    shims.mkdir()
    for tool in TOOLS:
        (shims / tool).write_text(SHIM.format(folder=tmp_path, tool=tool, real=shutil.which(tool)))
        (shims / tool).chmod(0o700)
    monkeypatch.setitem(cluster.environ, "PATH", f"{shims}:{cluster.environ['PATH']}")
    before = {job_id for job_id, _ in cluster.history("plain,counted")}
    snakemake = cluster.start(tmp_path, *[f"plain_{i}.txt" for i in range(3)], "counted_batch_9_again.txt")
    wait_for(lambda: (tmp_path / "outage").exists(), 60)
    time.sleep(OUTAGE_S)
    (tmp_path / "outage").unlink()
    assert snakemake.wait(timeout=150) == 0, (tmp_path / "out.log").read_text()
    log = (tmp_path / "out.log").read_text()
    assert re.search(r"jobs: not submitted yet: .*Socket timed out", log) and "jobs: it was: as job" in log
    wait_for(lambda: len({job for job, _ in cluster.history("plain,counted")} - before) >= 4, 20)
    assert len({job for job, _ in cluster.history("plain,counted")} - before) == 4
    assert log.count("submitted as") == 2, "the plain ones as one"
