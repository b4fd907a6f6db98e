"""A training step of ours beside transformers' GPTNeoX, in turns, each in a process of its own: run by `make bench`.

`python -m tests.bench.train_step [--threads N] [--rounds N] [SHAPE ...]`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jobs.site import load_site
from kernels.dispatch import available, find
from neox.config.flops import flops_per_token
from tests.bench.subject import SHAPES, configured

RUNS = {
    "engine": ("engine", "kept"),
    "plain": ("plain", "kept"),
    "transformers": ("transformers", "default"),
    "transformers, kept memory": ("transformers", "kept"),
}
"""Row → subject, and whether freed memory is kept, as the engine always has it, or given back, as is the default."""
ROUNDS = {"demo": 9, "pythia-14m": 9, "pythia-70m": 5}
"""Unless told otherwise; each is a step of every run."""


class Subject:
    """A started process that makes a step when told to."""

    def __init__(self, name: str, shape: str, threads: int, allocator: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
        if allocator == "kept":
            environment["GLIBC_TUNABLES"] = load_site("local").environment["GLIBC_TUNABLES"]
        command = [sys.executable, "-m", "tests.bench.subject", name, shape, str(threads), allocator]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.start = self._answer()
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        """One step, timed."""
        self.steps.append(self._ask("step"))

    def parts(self) -> dict[str, float]:
        """Shares of a step's time."""
        return self._ask("parts")

    def times(self, clock: str = "seconds") -> list[float]:
        """Of every round; `clock`: seconds, or cpu_seconds of all threads."""
        return [step[clock] for step in self.steps]

    def step_mib(self) -> float:
        """Peak memory above the imports, the parameters and Adam's two moments, all fp32."""
        peak = self.steps[-1]["peak_mib"]
        return float(peak - self.start["begin_mib"] - 3 * 4 * self.start["parameters"] / 2**20)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError("a subject of the benchmark died")


def products() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What this machine's rate of products is measured by: PyTorch's own, which peers use, and that of `kernels`."""
    ours = available("linear")[0]
    linear = find("linear", torch.device("cpu"), ours)
    return {"torch.mm": torch.mm} | ({ours: lambda a, b: linear(a, b, None)} if ours != "aten" else {})


def product_flops(product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """FLOP/s of one 2048 × 2048 × 2048 product in fp32."""
    a = torch.randn(2048, 2048)
    begin = time.perf_counter()
    product(a, a)
    return 2 * 2048**3 / (time.perf_counter() - begin)


def compare(shape: str, threads: int, rounds: int) -> None:
    """Runs the rounds of one shape and prints what they say."""
    subjects = {row: Subject(name, shape, threads, memory) for row, (name, memory) in RUNS.items()}
    rates: dict[str, float] = {}
    for _ in range(rounds):
        for name, product in products().items():
            rates[name] = max(rates.get(name, 0), product_flops(product))
        for subject in subjects.values():
            subject.step()
    parts = subjects["engine"].parts()
    tokens = SHAPES[shape][4] * SHAPES[shape][5]
    print(f"\n{shape}, {tokens} tokens a step, {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print_runs(subjects, tokens)
    print_ratios(subjects, rates, tokens * flops_per_token(configured(SHAPES[shape]).model))
    print("  engine's time: " + ", ".join(f"{part} {share:.0%}" for part, share in parts.items() if share >= 0.005))
    for subject in subjects.values():
        subject.close()


def print_runs(subjects: dict[str, Subject], tokens: int) -> None:
    """One row per run."""
    print(f"  {'run':<27}{'tokens/s':>10}{'best':>9}{'CPU s/step':>12}{'step MiB':>10}")
    for row, subject in subjects.items():
        middle, best = statistics.median(subject.times()), min(subject.times())
        cpu = statistics.median(subject.times("cpu_seconds"))
        print(f"  {row:<27}{tokens / middle:>10.0f}{tokens / best:>9.0f}{cpu:>12.2f}{subject.step_mib():>10.0f}")


def print_ratios(subjects: dict[str, Subject], rates: dict[str, float], flops: float) -> None:
    """Ours against the peer; `rates`: best FLOP/s of a product; `flops`: of a step."""
    ours, plain, peer, kept = subjects.values()
    print(f"  {'ratio':<45}{'paired':>8}{'from–to':>14}{'best':>8}{'CPU':>8}")
    for name, fast, slow in (
        ("speed: engine over transformers", ours, peer),
        ("the same, transformers with kept memory too", ours, kept),
        ("speed: plain over transformers", plain, peer),
        ("time: engine over plain", plain, ours),
    ):
        paired = sorted(b / a for a, b in zip(fast.times(), slow.times(), strict=True))
        spread = f"{paired[0]:.2f}–{paired[-1]:.2f}"
        best = min(slow.times()) / min(fast.times())
        cpu = statistics.median(slow.times("cpu_seconds")) / statistics.median(fast.times("cpu_seconds"))
        print(f"  {name:<45}{statistics.median(paired):>8.2f}{spread:>14}{best:>8.2f}{cpu:>8.2f}")
    for name, rate in rates.items():
        shares = [flops / min(subject.times()) / rate for subject in (ours, peer)]
        measured = f"of {name}'s {rate / 1e9:.0f} GFLOP/s"
        print(f"  {measured:<45}engine {shares[0]:.2f}, transformers {shares[1]:.2f}")
    for name, subject in (("engine", ours), ("plain", plain)):
        memory = subject.step_mib() / peer.step_mib()
        print(f"  {f'step memory: {name} over transformers':<45}{memory:>8.2f} = 1/{1 / memory:.1f}")


def main() -> None:
    """One block per shape."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.train_step")
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="steps of every run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"training step, fp32, {options.threads} threads, runs in turns. Ratios: paired = median of the rounds', and")
    print(
        "the least and largest; best = of the best rounds, CPU = of the CPU time of all threads; a share is best step"
    )
    print(
        "against best product. Step MiB: peak above imports, parameters and Adam's moments. Kept memory: freed memory"
    )
    print("stays with the process, as under the engine (neox/allocator.py), and crumbs beside a freed tensor join it,")
    print("as in ranks of `jobs launch` here (site_configs/local/site.yaml).")
    for shape in options.shapes or SHAPES:
        compare(shape, options.threads, options.rounds or ROUNDS[shape])


if __name__ == "__main__":
    main()
