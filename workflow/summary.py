"""The last words on the console: where everything is, the final losses, and text that the models wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workflow.experiment import Experiment, Run

NUM_SAMPLES = 3
SAMPLE_WIDTH = 100


def summary(experiment: Experiment) -> str:
    """Text for the console; what is not there yet is left out."""
    root = Path(experiment.root)
    runs = list(experiment.runs.values())
    lines = ["", f"report       {root / 'report.html'}"]
    entropy = read(Path(f"{experiment.tokens}.manifest.json")).get("unigram_entropy")
    for run in runs:
        lines += run_lines(run, root / "runs" / run.name)
    if entropy is not None:
        lines.append(
            f"for comparison, a model that knows token frequencies alone has loss {entropy:.3f} (unigram entropy)"
        )
    lines += [f"{name} writes: {text}" for name, text in first_samples(runs, root)]
    return "\n".join(lines) + "\n"


def run_lines(run: Run, folder: Path) -> Iterator[str]:
    """Checkpoints, exported models and final losses of one run."""
    result = read(folder / "train_summary.json")
    losses = [
        f"{label} {result[key]:.3f}"
        for label, key in (("loss", "final_loss"), ("validation loss", "final_valid_loss"))
        if result.get(key) is not None
    ]
    yield f"{run.name:<12} {', '.join(losses)}"
    yield f"             checkpoints {folder / 'checkpoints'}, models {folder / 'hf'}"


def first_samples(runs: list[Run], root: Path) -> list[tuple[str, str]]:
    """The first sample of every run, then the second, and so on: run and text on one line."""
    texts = [
        [(run.name, line) for line in one_line_samples(root / "runs" / run.name / "samples.jsonl")] for run in runs
    ]
    ordered = [text[i] for i in range(NUM_SAMPLES) for text in texts if i < len(text)]
    return ordered[:NUM_SAMPLES]


def one_line_samples(path: Path) -> list[str]:
    """Prompt and continuation of each sample, without line breaks, cut to the console's width."""
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [" ".join(f"{sample['prompt']}{sample['text']}".split())[:SAMPLE_WIDTH] for sample in samples]


def read(path: Path) -> Any:
    """The JSON in a file, or nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
