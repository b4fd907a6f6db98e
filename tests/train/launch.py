"""Tiny token files and configurations, and `neox train` on several ranks as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ranks import free_port
from neox.__main__ import main
from neox.data.indexed import IndexedWriter
from tests.distributed import Forked

VOCAB, SEQ_LENGTH, STEPS = 128, 16, 40
CONFIG = f"""
model: {{num_layers: 2, hidden_size: 32, num_heads: 4, seq_length: {SEQ_LENGTH}, vocab_size: {VOCAB}}}
data: {{path: PREFIX, split: [90, 10, 0]}}
optim: {{lr: 3.0e-3, min_lr: 3.0e-4, warmup: 0.1}}
train: {{steps: {STEPS}, global_batch_size: 8, micro_batch_size: 2, valid_interval: 15, valid_batches: 2}}
checkpoint: {{interval: 10, steps: [0, 5]}}
log: {{interval: 5, rank_tflops: 0.001}}
"""


def write_tokens(prefix: Path, num_documents: int = 60) -> Path:
    """A token file of documents that count up with random strides: there is something to learn."""
    generator = np.random.default_rng(3)
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for _ in range(num_documents):
            size, first, stride = generator.integers([20, 0, 1], [90, VOCAB, 4])
            tokens = (first + stride * np.arange(size)) % VOCAB
            writer.add_items(tokens.astype(np.uint16), np.array([size]))
    return prefix


def write_config(folder: Path) -> Path:
    """A configuration file beside its token file."""
    prefix = write_tokens(folder / "tokens")
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("PREFIX", str(prefix)))
    return path


class Launch:
    """`neox train` on `world_size` ranks; output of all ranks in `output`.

    Ranks are forked from a process with everything loaded; `anew` starts each as a user would, `popen` says how.
    """

    def __init__(self, run_dir: Path, *arguments: Any, world_size: int = 1, anew: bool = False, **popen: Any) -> None:
        self.run_dir = run_dir
        common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
        common["MASTER_PORT"] = str(free_port())
        command = ["train", "--run-dir", str(run_dir), *map(str, arguments)]
        self._files = [tempfile.NamedTemporaryFile("r") for _ in range(world_size)]  # noqa: SIM115 (as long as this)
        self.processes: list[Any] = []
        for rank, file in enumerate(self._files):
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            if anew:
                with Path(file.name).open("w") as out:
                    process: Any = subprocess.Popen(
                        [sys.executable, "-m", "neox", *command],
                        env=environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        **popen,
                    )
            else:
                process = Forked(main, command, environment, Path(file.name))
            self.processes.append(process)
        self.output = ""

    def wait_for_step(self, step: int) -> None:
        """Until metrics.jsonl holds `step`, or a process has ended."""
        while all(process.poll() is None for process in self.processes):
            if any(record["step"] >= step for record in steps_of(self.run_dir)):
                return
            time.sleep(0.005)
        raise AssertionError(f"ended before step {step}: {self.wait()} {self.output}")

    def signal(self, number: signal.Signals, rank: int | None = None) -> None:
        """Sends a signal to one rank or all of them."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.send_signal(number)

    def wait(self, limit_s: float = 200) -> list[int]:
        """Exit codes of all ranks; collects their output."""
        try:
            codes = [process.wait(timeout=limit_s) for process in self.processes]
            self.output = "".join(file.read() for file in self._files)
        finally:
            for process in self.processes:
                process.kill()
        return codes


def run(run_dir: Path, *arguments: Any, world_size: int = 1, expect: int = 0, **popen: Any) -> str:
    """Runs to the end and returns the output; every rank must exit with `expect`."""
    launch = Launch(run_dir, *arguments, world_size=world_size, **popen)
    codes = launch.wait()
    assert codes == [expect] * world_size, f"{codes}\n{launch.output}"
    return launch.output


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """The records of optimizer steps."""
    return [record for record in records(run_dir) if "loss" in record]
