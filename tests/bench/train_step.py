"""A training step of ours beside transformers' GPTNeoX, in turns, each in a process of its own: run by `make bench`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from neox.config.flops import flops_per_token
from tests.bench.subject import SHAPES, configured

RUNS = {
    "engine": ("engine", "kept"),
    "plain step": ("plain", "kept"),
    "transformers": ("transformers", "default"),
    "transformers, our allocator": ("transformers", "kept"),
}
"""Row → subject, and whether freed memory is kept, as the engine always has it, or given back, as is the default."""
ROUNDS = 9


class Subject:
    """A started process that makes a step when told to."""

    def __init__(self, name: str, shape: str, threads: int, allocator: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        command = [sys.executable, "-m", "tests.bench.subject", name, shape, str(threads), allocator]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.start = self._answer()
        self.seconds: list[float] = []
        self.peak_mib = 0.0

    def step(self) -> None:
        """One step, timed."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.peak_mib = answer["peak_mib"]

    def step_mib(self) -> float:
        """Peak memory above the imports, the parameters and Adam's two moments, all fp32."""
        return float(self.peak_mib - self.start["begin_mib"] - 3 * 4 * self.start["parameters"] / 2**20)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError("a subject of the benchmark died")


def matmul_flops() -> float:
    """FLOP/s of one 2048 × 2048 × 2048 product in fp32."""
    a = torch.randn(2048, 2048)
    begin = time.perf_counter()
    torch.mm(a, a)
    return 2 * 2048**3 / (time.perf_counter() - begin)


def compare(shape: str, threads: int) -> None:
    """Prints one row per run."""
    subjects = {row: Subject(name, shape, threads, memory) for row, (name, memory) in RUNS.items()}
    peaks = []
    for _ in range(ROUNDS):
        peaks.append(matmul_flops())
        for subject in subjects.values():
            subject.step()
    tokens = SHAPES[shape][4] * SHAPES[shape][5]
    flops = tokens * flops_per_token(configured(SHAPES[shape]).model)
    base = statistics.median(subjects["transformers"].seconds)
    best = min(subjects["transformers"].seconds)
    for row, subject in subjects.items():
        seconds = statistics.median(subject.seconds)
        ratios = [a / b for a, b in zip(subjects["transformers"].seconds, subject.seconds, strict=True)]
        share = flops / min(subject.seconds) / max(peaks)
        print(
            f"{shape:<12}{row:<29}{tokens / seconds:>9.0f}{base / seconds:>8.2f}{statistics.median(ratios):>8.2f}"
            f"{best / min(subject.seconds):>8.2f}{share:>8.2f}{subject.step_mib():>10.0f}",
            flush=True,
        )
        subject.close()


def main() -> None:
    """One table: tokens per second, medians over rounds in turns."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(threads)
    print(f"training step, fp32, {threads} threads, {ROUNDS} rounds in turns; ratios to transformers: of the medians,")
    print("the median of the rounds' own, of the best; share of the matmul rate: best step against best product")
    print(f"{'shape':<12}{'run':<29}{'tokens/s':>9}{'ratio':>8}{'paired':>8}{'best':>8}{'share':>8}{'step MiB':>10}")
    for shape in sys.argv[2:] or SHAPES:
        compare(shape, threads)


if __name__ == "__main__":
    main()
