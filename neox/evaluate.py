"""Evaluation of a model with lm-evaluation-harness: on local task files, without any network, or on its own tasks."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import logging
import os
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from neox.config.errors import UserError
from neox.data.durable import write_json
from neox.data.reading import Reading, read_texts

if TYPE_CHECKING:
    from neox.language_model import LanguageModel

DATA = "$DATA"
"""Stands for the data folder in a task file: lm-evaluation-harness wants absolute paths."""

OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
QUIET = {
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
    model: Path,
    tasks: Path | None,
    names: Sequence[str],
    data: Path | None,
    output: Path,
    batch_size: int = 16,
    tokenizer: Path | None = None,
) -> dict[str, float]:
    """Runs the tasks called `names` and writes `output`, JSON, whole or not at all.

    Args:
        model: folder of an exported model (`neox convert`), or a checkpoint, which our own model computes.
        tokenizer: tokenizer.json for a checkpoint; None: the one its configuration names.
        tasks: folder of lm-evaluation-harness task files, in which $DATA stands for `data`; None: the harness's own,
            whose documents are in the cache of `datasets` or are fetched.
        names: tasks, groups or tags; empty: every task of the folder.

    Returns:
        {"task/metric": value}: also the "metrics" of the file, beside "versions", the harness's own "results", and
        "skipped": of several tasks, those for which the held-out documents gave nothing, and their empty file.

    Raises:
        UserError: a folder, file or task does not exist, a data file is malformed, or documents cannot be fetched.
    """
    _check_model(model)
    _check_request(tasks, names, data, batch_size)
    os.environ.update(QUIET if tasks is None else QUIET | OFFLINE)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="neox-evaluate-") as scratch:
        folder = Path(scratch) / "tasks"
        if tasks is not None and data is not None:
            render_tasks(tasks, data, folder)
        results, skipped = _run(_language_model(model, tokenizer, batch_size), folder, names, tasks)
    metrics = flatten(results["results"])
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    report = {"metrics": metrics, "skipped": skipped, "versions": versions, "model": str(model)}
    write_json(output, report | {"harness": _plain(results, folder, tasks)})
    return metrics


def _check_request(tasks: Path | None, names: Sequence[str], data: Path | None, batch_size: int) -> None:
    if (tasks is None) != (data is None):
        raise UserError("--tasks and --data: a folder of task files needs the folder of their data, and only it does")
    if tasks is None and not names:
        raise UserError("--task: name some of lm-evaluation-harness's tasks, or a folder of task files with --tasks")
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")


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
    for file in data_files(task):
        for field in fields:
            deque(read_texts([file], Reading("jsonl", field, min_length=0)), maxlen=0)


def data_files(task: dict[str, Any]) -> list[Path]:
    """The files that a task's configuration names."""
    return [Path(file) for file in ((task.get("dataset_kwargs") or {}).get("data_files") or {}).values()]


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
    if not (model / "config.json").is_file() and not (model / "manifest.json").is_file():
        raise UserError(f"{model}: no exported model there (config.json), and no checkpoint (manifest.json)")


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


def _language_model(model: Path, tokenizer: Path | None, batch_size: int) -> dict[str, Any]:
    """The harness's arguments for its own back end on an exported model, or for ours on a checkpoint."""
    import torch

    if not (model / "manifest.json").is_file():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        named = {"pretrained": str(model.resolve())}
        return {"model": "hf", "model_args": named, "batch_size": batch_size, "device": device}
    from neox.generate import load_generator
    from neox.language_model import LanguageModel

    return {"model": _adapted(LanguageModel(load_generator(model, tokenizer), batch_size))}


def _adapted(model: LanguageModel) -> Any:
    """The harness's interface to our model: its requests are objects whose `args` are ours."""
    from lm_eval.api.model import LM

    class Adapted(LM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return model.log_likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return model.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return model.generate_until([request.args for request in requests])

    return Adapted()


def _run(
    language_model: dict[str, Any], folder: Path, names: Sequence[str], tasks: Path | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The harness's own results, and the tasks that it was not given, with their empty file."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    evaluator.get_git_commit_hash = lambda: None  # we do not report it, and outside of a repository git complains
    if tasks is None:
        manager = TaskManager()
    else:
        datasets.config.HF_DATASETS_CACHE = folder.parent / "datasets"  # not the user's home
        manager = TaskManager(include_path=folder, include_defaults=False)
    chosen, skipped = _with_data(manager, names or manager.all_subtasks, tasks)
    try:
        with _quiet():
            results = evaluator.simple_evaluate(
                **language_model,
                tasks=chosen,
                task_manager=manager,
                bootstrap_iters=BOOTSTRAP_ITERS,
                log_samples=False,
            )
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"cannot read a task's data: {error.__cause__ or error}") from None
    except Exception as error:
        if place := _place_in_harness(error):
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise UserError(f"lm-evaluation-harness cannot run {', '.join(chosen)}: {reason} ({place})") from error
        raise
    assert results is not None  # None on ranks that do not report; there is one
    return dict(results), skipped


def _place_in_harness(error: Exception) -> str | None:
    """Where the harness failed over a task file, whose mistakes it takes as they come; None where a model failed."""
    frames = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if any(module.startswith(("neox.language_model", "torch", "transformers")) for module, _ in frames):
        return None
    inside = [f"{module}:{line}" for module, line in frames if module.startswith("lm_eval.")]
    return inside[-1] if inside else None


def _with_data(manager: Any, names: Sequence[str], tasks: Path | None) -> tuple[list[str], dict[str, str]]:
    """The tasks to run, whose documents are checked, and those without any: a trained model is worth the others."""
    configs = {}
    if not names:
        raise UserError(f"--tasks {tasks}: there is no task in its files, *.yaml")
    for name in names:
        if name not in manager.all_tasks:
            known = manager.all_tasks if tasks else difflib.get_close_matches(name, manager.all_tasks)
            where = tasks or "lm-evaluation-harness"
            raise UserError(f"--task {name}: no such task in {where}; there are: {', '.join(known) or 'none'}")
        configs[name] = manager.task_index[name].cfg or {}
    if tasks is None:
        return list(configs), {}
    files = {name: file for name, config in configs.items() for file in data_files(config)}
    skipped = {name: str(file) for name, file in files.items() if file.is_file() and not file.stat().st_size}
    if len(skipped) == len(configs):
        skipped = {}  # nothing to run: said as of any other file that is wrong
    for name, file in skipped.items():
        print(f"neox: warning: task {name} skipped: {file} is empty", file=sys.stderr, flush=True)
    chosen = [name for name in configs if name not in skipped]
    for name in chosen:
        check_documents(configs[name])
    return chosen, skipped


def _plain(results: dict[str, Any], rendered: Path, tasks: Path | None) -> dict[str, Any]:
    """What of the harness's report is about the evaluation, not about the machine or the temporary folder."""
    keys = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config")
    text = json.dumps({key: results[key] for key in keys if key in results}, default=str)
    return dict(json.loads(text.replace(str(rendered), str(tasks))))
