"""What loading costs: tokens a second on one core, and the time to the first batch of a run that goes on.

`python -m tests.bench.loading [--gigabytes 10 --sample 1000000000 --folder DIR]`: token files of random documents are
made in the folder and removed; sample 10⁹ of 10 GB needs 14 GB for index maps and 4 GB of memory to make them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from neox.config.derive import resolve
from neox.config.load import load_config
from neox.config.schema import Config
from neox.data.indexed import IndexedWriter, bin_path
from neox.data.loader import Batches
from neox.data.parts import Parts, plan_parts

SEQ_LENGTH, BATCH = 2048, 8
BLOCK = 1 << 24
MEAN_LENGTH = 4096
NUM_TOKENS = 1 << 25
"""Read for the rate."""


def write_tokens(prefix: Path, num_bytes: float) -> None:
    """Documents of 1 to 8191 tokens of two bytes, a block at a time."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 50_000, BLOCK + 2 * MEAN_LENGTH, np.uint16)
    with IndexedWriter(prefix, tokens.dtype) as writer:
        for _ in range(max(1, round(num_bytes / 2 / BLOCK))):
            sizes = generator.integers(1, 2 * MEAN_LENGTH, BLOCK // MEAN_LENGTH, np.int32)
            sizes = sizes[np.cumsum(sizes) <= BLOCK]
            writer.add_items(tokens[: sizes.sum()], sizes)


def configuration(prefix: Path, sample: int) -> Config:
    """Of a run that comes to that sample."""
    steps = (sample + BATCH) // BATCH + 1
    changes = [f"data.path={prefix}", "data.split=[1,0,0]", f"model.seq_length={SEQ_LENGTH}", "model.vocab_size=50000"]
    changes += ["model.num_layers=1", "model.hidden_size=64", "model.num_heads=1", "train.valid_interval=0"]
    changes += [f"train.steps={steps}", f"train.global_batch_size={BATCH}", f"train.micro_batch_size={BATCH}"]
    return resolve(load_config([], changes), 1)


def batches(parts: Parts) -> Batches:
    """Of the only rank."""
    return Batches(parts.train.open(), BATCH, 1, 1, 0, parts.ends)


def rate(config: Config, sample: int) -> float:
    """Tokens for each second that this process computes, from that sample on."""
    source = batches(plan_parts(config))
    last = max(1, sample - NUM_TOKENS // SEQ_LENGTH)
    source.step(last)
    begin, count = time.process_time(), 0
    while count < NUM_TOKENS:
        count += sum(part.tokens.numel() for part in source.step(last + count // SEQ_LENGTH))
    return count / (time.process_time() - begin)


def first_batch(prefix: Path, sample: int) -> None:
    """Print the seconds from the configuration to a batch, as the process that checks and opens the index maps."""
    config = configuration(prefix, sample)
    begin = time.perf_counter()
    parts = plan_parts(config)
    parts.make()
    batches(parts).step(sample)
    print(time.perf_counter() - begin)


def resumed(prefix: Path, sample: int) -> float:
    """`first_batch` in a new process, none of whose files are in memory."""
    for path in prefix.parent.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only what is written can be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-m", "tests.bench.loading", "--resume", str(prefix), "--sample", str(sample)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.2)
    parser.add_argument("--sample", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="default: the system's for temporary files")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.resume:
        first_batch(args.resume, args.sample)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        prefix = Path(name) / "tokens"
        write_tokens(prefix, args.gigabytes * 1e9)
        config = configuration(prefix, args.sample)
        begin = time.process_time()
        plan_parts(config).make()
        print(
            f"{bin_path(prefix).stat().st_size / 1e9:.2f} GB of tokens, sequence {SEQ_LENGTH}, {BATCH} samples a batch"
        )
        print(f"index maps of {args.sample} samples made in {time.process_time() - begin:.1f} CPU seconds")
        print(f"{rate(config, args.sample) / 1e6:.1f} million tokens per CPU second")
        print(f"{resumed(prefix, args.sample):.2f} s from the configuration to the batch of sample {args.sample}")


if __name__ == "__main__":
    main()
