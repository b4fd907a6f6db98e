"""One line per allocation in a run's `segments.jsonl`: what held it, when, and why it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from jobs import warning
from jobs.scheduler.contract import Scheduler


def now() -> str:
    """UTC time to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cause(code: int, signals: list[str]) -> str:
    """Why an allocation ended, for people."""
    if code == 0:
        return "finished"
    if code == warning.SAVED:
        return f"saved after {signals[0]}" if signals else "saved"
    return f"killed by signal {code - 128}" if code > 128 else f"failed with exit code {code}"


def record(run_dir: Path, scheduler: Scheduler, environ: Mapping[str, str], start: str, code: int, why: str) -> None:
    """Appends one line; a run directory that is not there yet is made."""
    words = {ours: environ.get(theirs) for ours, theirs in scheduler.environment.items()}
    line = {
        "job_id": words.get("job_id"),
        "restart": int(words.get("restart_count") or 0),
        "nodes": words.get("nodes") or os.uname().nodename,
        "start": start,
        "end": now(),
        "exit_code": code,
        "cause": why,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "segments.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
