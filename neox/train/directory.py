"""A run's directory: what a start finds there, whether it may go on from it, and what it writes; no torch."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neox import __version__
from neox.checkpoint import manifest as manifests
from neox.checkpoint.config import saved_config
from neox.checkpoint.store import Store, step_name
from neox.config.errors import UserError
from neox.config.load import dump, to_dict
from neox.config.schema import Config
from neox.data.durable import replacing, write_json

MAY_CHANGE = (
    *(
        "data.path",
        "data.train_paths",
        "data.train_label_paths",
        "data.valid_",
        "data.test_",
        "data.index_dir",
        "data.cache_",
        "data.tokenizer",
    ),
    *("train.attention", "train.steps", "train.global_batch_size", "train.micro_batch_size", "train.grad_accum"),
    *("train.valid_interval", "train.valid_batches", "parallel.", "checkpoint.", "log."),
    *("train.max_", "train.on_", "train.spike_", "train.step_timeout_s"),
)
"""Keys, and beginnings of keys, that change neither the model, nor the optimizer, nor the order of the samples."""


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "checkpoints")
        self.metrics = folder / "metrics.jsonl"
        self.tensorboard = folder / "tensorboard"
        self.summary = folder / "train_summary.json"
        self.segment = folder / "segment.json"

    def check(self, config: Config) -> int | None:
        """The newest step whose checkpoint has a readable manifest, for a run with `config` to go on from, or None.

        Raises:
            UserError: the folder cannot be written to, or a key changed that must not.
        """
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"--run-dir {self.folder}: {place} is not a folder that can be written to")
        for step in reversed(self.store.steps()):
            try:
                manifest = manifests.read(self.store.path(step))
            except UserError:
                continue  # damaged: training passes it over, and says so
            self._check_same(saved_config(manifest), config)
            return step
        return None

    def _check_same(self, saved: Config, config: Config) -> None:
        for key, old, new in differences(to_dict(saved), to_dict(config)):
            if not key.startswith(MAY_CHANGE):
                raise UserError(
                    f"{key} = {new}: the run in {self.folder} has {old}, and going on from its checkpoints keeps "
                    "the model, the optimizer and the order of the data; to change it, rename the run (another "
                    "--run-dir) or remove its folder"
                )

    def saved_state(self, step: int | None) -> dict[str, Any] | None:
        """What the checkpoint of `step` says beside its tensors: samples seen, data, random state. None for None."""
        return None if step is None else manifests.read(self.store.path(step)).state

    def prepare(self, config: Config, sources: Sequence[Path], overrides: Sequence[str], step: int) -> None:
        """Writes config.yaml and sources/, and removes the summary of a shorter run.

        `segment.json` tells whoever started this process which step after `step` it begins with.
        """
        self.summary.unlink(missing_ok=True)
        write_json(self.segment, {"first_step": step + 1})
        with replacing(self.folder / "config.yaml") as (temporary,):
            temporary.write_text(dump(config), encoding="utf-8")
        folder = self.folder / "sources"
        copies = [(f"{number:02d}_{path.name}", path.read_bytes()) for number, path in enumerate(sources)]
        copies.append(("overrides.txt", "".join(f"{override}\n" for override in overrides).encode()))
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in copies:
            with replacing(folder / name) as (temporary,):
                temporary.write_bytes(content)

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of metrics.jsonl; a line that a killed process left half-written is passed over."""
        if not self.metrics.is_file():
            return
        with self.metrics.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue

    def write_summary(self) -> None:
        """train_summary.json from the metrics and the checkpoints there are.

        wall_s is the time spent in steps; the rates are medians over all steps that say them.
        """
        steps = valid = None
        wall_s = 0.0
        rates: dict[str, list[float]] = {"tokens_per_s": [], "model_tflops": [], "mfu": [], "hfu": []}
        for record in self.records():
            if "loss" in record:
                steps = record
                wall_s += record["step_time_s"]
                for name, values in rates.items():
                    values += [record[name]] if name in record else []
            elif "valid_loss" in record:
                valid = record["valid_loss"]
        summary = {
            "steps": steps and steps["step"],
            "tokens": steps and steps["tokens"],
            "final_loss": steps and steps["loss"],
            "final_valid_loss": valid,
            "checkpoints": [step_name(step) for step in self.store.steps()],
            "wall_s": round(wall_s, 3),
            **{name: statistics.median(values) for name, values in rates.items() if values},
        }
        write_json(self.summary, summary)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) of every value that differs; a key that one side lacks counts as None."""
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def code_version() -> dict[str, str | None]:
    """Version of this package, and the git commit when it runs from a checkout."""
    return {"version": __version__, "commit": _commit(Path(__file__).parents[2] / ".git")}


def _commit(git: Path) -> str | None:
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        if (git / reference).is_file():
            return (git / reference).read_text().strip()
        packed = (line.split() for line in (git / "packed-refs").read_text().splitlines())
        return next((words[0] for words in packed if words[1:] == [reference]), None)
    except OSError:
        return None
