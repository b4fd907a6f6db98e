"""Evaluation of an exported model with lm-evaluation-harness on local task files, without any network."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from neox.config.errors import UserError
from neox.data.durable import write_json
from neox.data.jsonl import read_texts

DATA = "$DATA"
"""Stands for the data folder in a task file: lm-evaluation-harness wants absolute paths."""

QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_MULTIPROC": "1",  # the harness would start a process per core of a login node for its error bars
}
"""Read by the libraries when they are first imported."""

BOOTSTRAP_ITERS = 1000
"""Resamplings for the error bars of metrics that have no formula for them."""

PACKAGES = ("lm_eval", "transformers", "datasets", "torch")


def evaluate(
    model: Path, tasks: Path, names: Sequence[str], data: Path, output: Path, batch_size: int = 16
) -> dict[str, float]:
    """Runs the tasks called `names` of the folder `tasks` and writes `output`, JSON, whole or not at all.

    Args:
        model: folder of an exported model (`neox convert`).
        tasks: folder of lm-evaluation-harness task files, in which $DATA stands for `data`.
        names: tasks, groups or tags; empty: every task of the folder.

    Returns:
        {"task/metric": value}: also the "metrics" of the file, beside "versions" and the harness's own "results".

    Raises:
        UserError: a folder, file or task does not exist, or a data file is malformed.
    """
    _check_model(model)
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="neox-evaluate-") as scratch:
        folder = render_tasks(tasks, data, Path(scratch) / "tasks")
        results = _run(model, folder, names, tasks, batch_size)
    metrics = flatten(results["results"])
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    report = {"metrics": metrics, "versions": versions, "model": str(model), "harness": _plain(results, folder, tasks)}
    write_json(output, report)
    return metrics


def render_tasks(tasks: Path, data: Path, into: Path) -> Path:
    """Copies the folder `tasks` to `into` with $DATA replaced; a file that is no YAML is a UserError with its line."""
    if not tasks.is_dir():
        raise UserError(f"--tasks {tasks}: no such folder")
    for source in sorted(path for path in tasks.rglob("*") if path.suffix in (".yaml", ".py")):
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".yaml":
            _check_yaml(source, text)
            text = text.replace(DATA, json.dumps(str(data.resolve()))[1:-1])
        target = into / source.relative_to(tasks)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return into


def check_documents(task: dict[str, Any]) -> None:
    """UserError, with file and line, when a document lacks one of the task's `metadata.fields` or there is none.

    The harness would take the name of a missing field for the text itself.
    """
    fields = (task.get("metadata") or {}).get("fields", [])
    for file in ((task.get("dataset_kwargs") or {}).get("data_files") or {}).values():
        for field in fields:
            deque(read_texts([Path(file)], field), maxlen=0)


def flatten(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """{"cloze": {"acc,none": 0.5, "alias": …}} → {"cloze/acc": 0.5}: the filter's name goes, what is no number goes."""
    values = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, metrics in results.items()
        for key, value in metrics.items()
        if isinstance(value, int | float) and "," in key
    }
    return dict(sorted(values.items()))


def _check_model(model: Path) -> None:
    if not (model / "config.json").is_file():
        raise UserError(f"{model}: no exported model there (config.json is missing); make one with neox convert")


def _check_yaml(path: Path, text: str) -> None:
    try:
        yaml.compose(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's messages and progress bars are for a person at a terminal."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with ExitStack() as stack:
        if sys.stderr.isatty():
            stack.enter_context(redirect_stdout(sys.stderr))
        else:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def _run(model: Path, folder: Path, names: Sequence[str], tasks: Path, batch_size: int) -> dict[str, Any]:
    """The harness's own results."""
    os.environ.update(QUIET_AND_OFFLINE)
    import datasets
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    datasets.config.HF_DATASETS_CACHE = folder.parent / "datasets"  # not the user's home
    manager = TaskManager(include_path=folder, include_defaults=False)
    names = names or manager.all_subtasks
    for name in names:
        if name not in manager.all_tasks:
            known = ", ".join(manager.all_tasks) or "none"
            raise UserError(f"--task {name}: no such task in {tasks}; there are: {known}")
        check_documents(manager.task_index[name].cfg or {})
    try:
        with _quiet():
            results = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(model.resolve())},
                tasks=list(names),
                task_manager=manager,
                batch_size=batch_size,
                device="cuda" if torch.cuda.is_available() else "cpu",
                bootstrap_iters=BOOTSTRAP_ITERS,
                log_samples=False,
            )
    except (FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"cannot read a task's data: {error.__cause__ or error}") from None
    assert results is not None  # None on ranks that do not report; there is one
    return dict(results)


def _plain(results: dict[str, Any], rendered: Path, tasks: Path) -> dict[str, Any]:
    """What of the harness's report is about the evaluation, not about the machine or the temporary folder."""
    keys = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config")
    text = json.dumps({key: results[key] for key in keys if key in results}, default=str)
    return dict(json.loads(text.replace(str(rendered), str(tasks))))
