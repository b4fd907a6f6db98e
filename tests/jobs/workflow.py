"""Snakemake with our executor, run by tests in the folder where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_snakemake(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The workflow of this folder on a site, to its end; rules find the site's file as `config[site]`."""
    argv = ["--executor", "submitit", "--submitit-site", str(site), "--jobs", "2", "--latency-wait", "5"]
    argv += ["--config", f"site={site}", "--seconds-between-status-checks", "2", "--show-failed-logs", *options]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", *argv]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180)
