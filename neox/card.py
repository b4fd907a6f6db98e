"""The model card of an export: what it is, what it was trained on and how, what it scores, all read from its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from neox import __version__
from neox.checkpoint import manifest as manifests
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import Config
from neox.train.directory import RunDirectory

CURVE_ROWS = 12


def run_of(export: Path) -> Path | None:
    """The run directory that an export lies in, as `RUN/hf/step_00001000`; None: it lies elsewhere."""
    candidate = export.absolute().parent.parent
    return candidate if (candidate / "config.yaml").is_file() else None


def model_card(export: Path, run_dir: Path, licence: str | None) -> str:
    """Markdown with the front matter that the Hub reads; paths of this machine are not in it.

    Raises:
        UserError: `export` is no exported model of a step, or `run_dir` no run directory.
    """
    match = re.fullmatch(r"step_(\d+)", export.name)
    if not match or not (export / "config.json").is_file():
        raise UserError(f"{export}: must be a folder step_* that `neox convert` made (config.json)")
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not a run directory (config.yaml)")
    step, config = int(match[1]), load_config([run_dir / "config.yaml"], [])
    records = [record for record in RunDirectory(run_dir).records() if record.get("step", step + 1) <= step]
    sections = {
        "Model": _table(_model(config, json.loads((export / "config.json").read_text()))),
        "Data": _table(_data(config, records)),
        "Training": _table(_training(config, step)),
        "Loss": _columns(("step", "tokens", "loss", "validation loss"), _curve(records)),
        "Evaluation": _evaluation(run_dir, step),
        "Code": _table(_code(run_dir, step)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_front_matter(licence)}\n# {run_dir.absolute().name}, step {step}\n\n{body}\n"


def _front_matter(licence: str | None) -> str:
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"license: {licence}"] if licence else []),
    ]
    return "\n".join(["---", *lines, "---", ""])


def _model(config: Config, exported: dict[str, Any]) -> Iterator[tuple[str, object]]:
    model = config.model
    yield "architecture", ", ".join(exported.get("architectures", [])) or "?"
    yield "layers × width, heads", f"{model.num_layers} × {model.hidden_size}, {model.num_heads}"
    yield "context", f"{model.seq_length} tokens"
    yield "vocabulary", exported.get("vocab_size", "?")


def _data(config: Config, records: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
    seen = max((record.get("tokens", 0) for record in records), default=0)
    yield "tokens seen", f"{seen:,}"
    for prefix in filter(None, (config.data.path, *config.data.train_paths)):
        yield f"token file {Path(prefix).name}", _token_file(Path(f"{prefix}.manifest.json"))
    yield "seed of the order", config.data.seed


def _token_file(path: Path) -> str:
    try:
        manifest = json.loads(path.read_text())
        inputs = {f"{Path(item['file']).name} (sha256 {item['sha256']})" for item in manifest["inputs"]}
        return f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens of {', '.join(sorted(inputs))}"
    except (OSError, ValueError, KeyError, TypeError):
        return "not described"


def _training(config: Config, step: int) -> Iterator[tuple[str, object]]:
    train, optim = config.train, config.optim
    yield "steps", f"{step:,} of {train.steps:,}"
    yield "global batch", f"{train.global_batch_size} samples"
    yield (
        "optimizer",
        f"{optim.name}, learning rate {optim.lr:g}, {optim.schedule}, weight decay {optim.weight_decay:g}",
    )
    yield "precision", train.precision
    yield "seed of the weights", train.seed


def _curve(records: list[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """About CURVE_ROWS rows at even distances, the last record among them."""
    valid = {record["step"]: record["valid_loss"] for record in records if "valid_loss" in record}
    losses = [record for record in records if "loss" in record]
    stride = max(1, -(-len(losses) // CURVE_ROWS))
    for record in losses[(len(losses) - 1) % stride :: stride]:
        nearest = max((step for step in valid if step <= record["step"]), default=None)
        shown = "" if nearest is None else f"{valid[nearest]:.4f}"
        yield f"{record['step']:,}", f"{record.get('tokens', 0):,}", f"{record['loss']:.4f}", shown


def _evaluation(run_dir: Path, step: int) -> str:
    paths = sorted((run_dir / "eval").glob(f"step_{step:08d}*.json"))
    rows = [row for path in paths for row in json.loads(path.read_text()).get("metrics", {}).items()]
    return _columns(("task/metric", "value"), ((name, f"{value:.6g}") for name, value in rows)) if rows else "None yet."


def _code(run_dir: Path, step: int) -> Iterator[tuple[str, object]]:
    try:
        code = manifests.read(RunDirectory(run_dir).store.path(step)).state["code"]
    except (UserError, KeyError):
        code = {"version": __version__}  # the checkpoint is gone: that of the export at least
    yield "neox-hpc", code["version"]
    yield "commit", code.get("commit") or "not known"


def _table(rows: Iterable[tuple[str, object]]) -> str:
    return _columns(("", ""), rows)


def _columns(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
