"""The model card of an export: what it is, what it was trained on and how, what it scores, all read from its run."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from neox import __version__
from neox.checkpoint import manifest as manifests
from neox.config.derive import num_parameters
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import Config
from neox.train.directory import RunDirectory

Score = tuple[str, str, str, str, str]
"""Task, few-shot examples, metric, value, and what measured it."""
CURVE_ROWS = 12
LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({where})
model = AutoModelForCausalLM.from_pretrained({where})
```"""


def run_of(export: Path) -> Path | None:
    """The run directory that an export lies in, as `RUN/hf/step_00001000`; None: it lies elsewhere."""
    candidate = export.absolute().parent.parent
    return candidate if (candidate / "config.yaml").is_file() else None


def model_card(export: Path, run_dir: Path, repo: str, revision: str, licence: str | None) -> str:
    """Markdown with the front matter that the Hub reads; paths of this machine are not in it.

    `repo` and `revision` are where the model will be, for who loads it.

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
    where = f'"{repo}"' if revision == "main" else f'"{repo}", revision="{revision}"'
    scores = list(_scores(run_dir, step))
    sections = {
        "Use": LOADING.format(where=where),
        "Model": _table(_model(config, json.loads((export / "config.json").read_text()))),
        "Data": _table(_data(config, records)),
        "Training": _table(_training(config, step)),
        "Loss": _columns(("step", "tokens", "loss", "validation loss"), _curve(records)),
        "Evaluation": _columns(("task", "shots", "metric", "value", "by"), scores) if scores else "None yet.",
        "Code": _table(_code(run_dir, step)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    name = run_dir.absolute().name
    return f"{_front_matter(name, scores, licence)}\n# {name}, step {step}\n\n{body}\n"


def _front_matter(name: str, scores: Iterable[Score], licence: str | None) -> str:
    """What the Hub finds the model by, and the scores that it shows."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": task, "type": task},
            "metrics": [
                {"type": metric, "value": float(value), "name": f"{metric}, {shots}-shot" if shots else metric}
            ],
        }
        for task, shots, metric, value, _ in scores
        if not metric.endswith("_stderr")
    ]
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["neox-hpc"]}
    matter |= {"license": licence} if licence else {}
    matter |= {"model-index": [{"name": name, "results": results}]} if results else {}
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n"


def _model(config: Config, exported: dict[str, Any]) -> Iterator[tuple[str, object]]:
    model = config.model
    yield "architecture", ", ".join(exported.get("architectures", [])) or "?"
    yield "parameters", f"{num_parameters(model):,}"
    yield "layers × width, heads", f"{model.num_layers} × {model.hidden_size}, {model.num_heads}"
    yield "context", f"{model.seq_length} tokens"
    yield "vocabulary", f"{model.vocab_size:,}" if model.vocab_size else "?"
    yield "input and output embeddings", "tied" if model.tie_embeddings else "separate"


def _data(config: Config, records: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
    seen = max((record.get("tokens", 0) for record in records), default=0)
    yield "tokens seen", f"{seen:,}"
    corpus: dict[str, dict[str, int]] = defaultdict(dict)  # file → sha256 of each part of it → bytes
    for prefix in dict.fromkeys(filter(None, (config.data.path, *config.data.train_paths))):
        try:
            manifest = json.loads(Path(f"{prefix}.manifest.json").read_text())
            size = f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens"
            for item in manifest["inputs"]:
                corpus[Path(item["file"]).name][item["sha256"]] = item["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            size = "not described"
        yield f"token file {Path(prefix).name}", size
    for name, parts in sorted(corpus.items()):
        read = f"sha256 {next(iter(parts))}" if len(parts) == 1 else f"in {len(parts)} files or parts of one"
        yield f"corpus file {name}", f"{sum(parts.values()):,} bytes, {read}"
    yield "seed of the order", config.data.seed


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
    """About CURVE_ROWS rows at even distances up to the last, where there is a validation loss if that is often."""
    valid = {record["step"]: record["valid_loss"] for record in records if "valid_loss" in record}
    losses = [record for record in records if "loss" in record]
    validated = [record for record in losses if record["step"] in valid]
    losses = validated if len(validated) >= CURVE_ROWS else losses
    stride = max(1, -(-len(losses) // CURVE_ROWS))
    for record in losses[(len(losses) - 1) % stride :: stride]:
        shown = f"{valid[record['step']]:.4f}" if record["step"] in valid else ""
        yield f"{record['step']:,}", f"{record.get('tokens', 0):,}", f"{record['loss']:.4f}", shown


def _scores(run_dir: Path, step: int) -> Iterator[Score]:
    """What `neox evaluate` wrote of this step."""
    for path in sorted((run_dir / "eval").glob(f"step_{step:08d}*.json")):
        report = json.loads(path.read_text())
        version = report.get("versions", {}).get("lm_eval")
        shots = report.get("harness", {}).get("n-shot", {})
        for name, value in report.get("metrics", {}).items():
            task, _, metric = name.rpartition("/")
            measured_by = f"lm-evaluation-harness {version}" if version else ""
            yield task, str(shots.get(task, "")), metric, f"{value:.6g}", measured_by


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
    lines = [[str(cell).replace("|", r"\|") for cell in line] for line in (head, ("---",) * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
