"""Tokenising the same corpus with this project, the `tokenizers` library alone, GPT-NeoX and Megatron-LM, in turns.

`python -m tests.bench.tokenizing [CORPUS.jsonl --tokenizer tokenizer.json] [--neox DIR] [--megatron DIR]`: DIR are
clones of theirs, run by `--peer-python`, which has what they import. Without a corpus it is the built-in one, with a
tokenizer trained on it. Whole processes are timed, and the memory of all their children is summed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

WORKERS = 2
RAW = """
import json, sys
from itertools import islice
from tokenizers import Tokenizer
tokenizer, lines = Tokenizer.from_file(sys.argv[2]), open(sys.argv[1], "rb")
while batch := [json.loads(line)["text"] for line in islice(lines, 1000)]:
    tokenizer.encode_batch_fast(batch, add_special_tokens=False)
"""


@dataclass
class Subject:
    """A program, where it leaves PREFIX.bin and PREFIX.idx, and what was measured."""

    name: str
    command: list[str]
    prefix: Path | None = None
    folder: Path = field(default_factory=Path.cwd)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def subjects(args: argparse.Namespace, folder: Path) -> list[Subject]:
    """Who takes part."""
    corpus, tokenizer = str(args.corpus), str(args.tokenizer)
    found = []
    for engine in ("gigatoken", "tokenizers"):
        command = [sys.executable, "-m", "neox", "data", "tokenize", corpus, "--tokenizer", tokenizer]
        command += ["--workers", str(WORKERS), "--engine", engine, "--output", str(folder / engine)]
        found.append(Subject(f"neox data tokenize, {engine}", command, folder / engine))
    found.append(Subject("tokenizers alone, nothing written", [sys.executable, "-c", RAW, corpus, tokenizer]))
    given = ["--input", corpus, "--vocab-file", tokenizer, "--tokenizer-type", "HFTokenizer", "--append-eod"]
    if args.neox:
        program = [args.peer_python, "tools/datasets/preprocess_data.py", *given, "--workers", str(WORKERS)]
        prefix = folder / "neox_text_document"
        found.append(Subject("GPT-NeoX", [*program, "--output-prefix", str(folder / "neox")], prefix, args.neox))
    if args.megatron:
        program = [args.peer_python, "tools/preprocess_data_fast.py", "--input", corpus, "--append-eod"]
        program += ["--output-prefix", str(folder / "megatron"), *args.megatron_options]
        found.append(Subject("Megatron-LM, fast", program, folder / "megatron_text_document", args.megatron))
    return found


def run(subject: Subject) -> None:
    """Once, from start to end."""
    begin = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(subject.folder), *sys.path[:1]])}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            subject.command, cwd=subject.folder, stdout=said, stderr=said, env=environment, start_new_session=True
        )
        while process.poll() is None:
            subject.peak_bytes = max(subject.peak_bytes, session_bytes(process.pid))
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{subject.name} failed:\n{said.read().decode()[-2000:]}")
    subject.seconds.append(time.perf_counter() - begin)


def session_bytes(session: int) -> int:
    """Resident memory of all processes of a session."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[3]) == session:
                total += int((status.parent / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def same_files(one: Path, other: Path) -> bool:
    """Whether two token files are equal to the byte."""
    return all(Path(f"{one}.{end}").read_bytes() == Path(f"{other}.{end}").read_bytes() for end in ("bin", "idx"))


def builtin(folder: Path) -> tuple[Path, Path]:
    """The built-in corpus, and a tokenizer trained on it."""
    neox = [sys.executable, "-m", "neox", "data"]
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.json"
    subprocess.run([*neox, "corpus", "--output", corpus], check=True, stdout=subprocess.DEVNULL)
    train = [*neox, "train-tokenizer", corpus, "--vocab-size", "8000", "--output", tokenizer]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    return corpus, tokenizer


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--neox", type=Path, metavar="DIR", help="clone of GPT-NeoX")
    parser.add_argument("--megatron", type=Path, metavar="DIR", help="clone of Megatron-LM")
    parser.add_argument("--megatron-options", nargs=argparse.REMAINDER, default=[], help="last: its tokenizer")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.corpus is None:
            args.corpus, args.tokenizer = builtin(Path(name))
        args.corpus, args.tokenizer = args.corpus.absolute(), args.tokenizer.absolute()
        found = subjects(args, Path(name))
        for _ in range(args.rounds):
            for subject in found:
                run(subject)
        megabytes = args.corpus.stat().st_size / 1e6
        print(f"{megabytes:.1f} MB of JSON lines, {WORKERS} processes, median of {args.rounds} rounds in turns")
        print(f"{'program':<34}{'s':>8}{'MB/s':>8}{'ours is':>9}{'peak MB':>9}  token files")
        ours = statistics.median(found[0].seconds)
        for subject in found:
            seconds = statistics.median(subject.seconds)
            equal = "" if subject.prefix is None else "ours" if subject is found[0] else "differ"
            if equal == "differ" and subject.prefix and found[0].prefix and same_files(subject.prefix, found[0].prefix):
                equal = "the same bytes"
            peak, speed = subject.peak_bytes / 1e6, megabytes / seconds
            print(f"{subject.name:<34}{seconds:>8.2f}{speed:>8.1f}{seconds / ours:>8.1f}x{peak:>9.0f} {equal}")


if __name__ == "__main__":
    main()
