"""A profile that `jobs site new` writes for a real Slurm, checked against it and run on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import HERE, Slurm

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
