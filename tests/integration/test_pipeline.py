"""The whole workflow on a very small experiment, then what a rerun and a touched file repeat."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [str(Path(sys.executable).parent / "snakemake"), "--snakefile", str(ROOT / "Snakefile")]
MODEL = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "seq_length": 32}


def snakemake(folder: Path, *arguments: str, profile: str = "local") -> subprocess.CompletedProcess[str]:
    """Runs it in `folder`, where it keeps its own records and results."""
    command = [*SNAKEMAKE, "--profile", str(ROOT / "site_configs" / profile), "--directory", str(folder), *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Jobs that a run would start now: rule → how many."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    table = (done.stdout + done.stderr).partition("Job stats:")[2].partition("\n\n")[0]
    return {
        rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.M) if rule not in ("total", "all")
    }


def write_inputs(folder: Path) -> Path:
    """Corpus, recipe files and experiment of two runs of four steps; returns the experiment's configuration."""
    sentence = "the quick brown fox jumps over the lazy dog and then it sleeps for a while near the old river bank"
    texts = [" ".join(sentence[n % 40 :] + "." for n in range(i, i + 12)) for i in range(60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = {
        "model": MODEL,
        "parallel": {"dp": 2},
        "data": {"split": [8, 1, 1]},
        "train": {"steps": 4, "micro_batch_size": 1, "valid_interval": 2, "valid_batches": 1},
        "checkpoint": {"interval": 2},
        "log": {"interval": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe))
    for name, size in (("a", 16), ("b", 32)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"hidden_size": size}}))
    experiment = {
        "name": "mini",
        "corpus": {"path": "corpus.jsonl"},
        "tokenizer": {"vocab_size": 300},
        "shards": 2,
        "runs": {"recipe": "base.yaml", "axes": {"size": {"a": "a.yaml", "b": "b.yaml"}}},
        "evaluate": {
            "checkpoints": "last",
            "tasks": ["heldout_bpb"],
            "task_folder": str(ROOT / "workflow" / "eval_tasks"),
        },
        "samples": {"prompts": ["the "], "max_tokens": 8},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder / "experiment.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a pipeline that ran to the end, and what the console showed."""
    folder = tmp_path_factory.mktemp("pipeline")
    configuration = write_inputs(folder)
    done = snakemake(folder, "--configfile", str(configuration))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return folder, done.stdout + done.stderr


ALL = {
    "tokenizer": 1,
    "tokenize": 2,
    "merge": 1,
    "heldout": 1,
    "index": 2,
    "train": 2,
    "convert": 2,
    "evaluate": 2,
    "sample": 2,
    "report_page": 1,
}
AFTER_TRAINING = {"convert": 1, "evaluate": 1, "sample": 1, "report_page": 1}


def test_pipeline_makes_everything(finished: tuple[Path, str]) -> None:
    root = finished[0] / "results" / "mini"
    for run in ("a", "b"):
        assert (root / "runs" / run / "hf" / "step_00000004" / "model.safetensors").is_file()
        assert json.loads((root / "runs" / run / "eval" / "step_00000004.json").read_text())["metrics"]
        assert json.loads((root / "runs" / run / "train_summary.json").read_text())["steps"] == 4
        assert (root / "runs" / run / "checkpoints" / "step_00000002").is_dir()
        maps = (root / "tokens" / "index" / f"{run}.txt").read_text()
        assert re.search(r"train: \d+ samples, (made|found) results/mini/tokens/corpus_train_indexmap_8ns_32sl", maps)
    (key,) = (root / "tokens").glob("corpus_train_indexmap_*_key.json")
    assert key.stat().st_mtime < (root / "runs" / "a" / "config.yaml").stat().st_mtime, "before training"
    assert "<svg" in (root / "report.html").read_text()


def test_console_shows_progress_and_ends_with_the_results(finished: tuple[Path, str]) -> None:
    console = finished[1]
    assert re.search(r"step [1-4]/4 \| loss .* tokens/s \| ETA", console), "no progress line of the trainer"
    assert "report       results/mini/report.html" in console
    assert "checkpoints results/mini/runs/a/checkpoints, models results/mini/runs/a/hf" in console
    assert re.search(r"^b +loss \d", console, re.M)
    assert "a writes: the " in console


def test_rerun_does_nothing(finished: tuple[Path, str]) -> None:
    done = snakemake(finished[0], "--configfile", str(finished[0] / "experiment.yaml"))
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("touched", "repeated"),
    [
        ("b.yaml", {"index": 1, "train": 1, **AFTER_TRAINING}),
        ("base.yaml", {name: ALL[name] for name in ("index", "train", *AFTER_TRAINING)}),
        ("experiment.yaml", {"report_page": 1}),
        ("results/mini/runs/a/train_summary.json", AFTER_TRAINING),
        ("corpus.jsonl", ALL),
    ],
)
def test_touch_repeats_what_depends_on_it(finished: tuple[Path, str], touched: str, repeated: dict[str, int]) -> None:
    folder = finished[0]
    before = (folder / touched).stat()
    now = time.time()
    os.utime(folder / touched, (now, now))
    try:
        assert planned(folder, "--configfile", str(folder / "experiment.yaml")) == repeated
    finally:
        os.utime(folder / touched, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_was_deleted_is_made_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    deleted = [finished[0] / "results" / "mini" / "runs" / name for name in ("a/eval/step_00000004.json", "b/hf")]
    for path in deleted:
        path.rename(tmp_path / path.name)
    try:
        repeated = planned(finished[0], "--configfile", str(finished[0] / "experiment.yaml"))
    finally:
        for path in deleted:
            (tmp_path / path.name).rename(path)
    assert repeated == {"convert": 1, "evaluate": 1, "report_page": 1}


def test_token_files_that_are_there_are_trained_on(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Of a program that writes no manifest, as GPT-NeoX does."""
    (folder := tmp_path / "theirs").mkdir()
    for suffix in ("bin", "idx"):
        shutil.copy(finished[0] / f"results/mini/tokens/corpus.{suffix}", folder / f"text_document.{suffix}")
    shutil.copy(finished[0] / "results/mini/tokenizer/tokenizer.json", folder)
    configuration = write_inputs(tmp_path)
    experiment = yaml.safe_load(configuration.read_text()) | {"corpus": {"tokens": "theirs/text_document"}}
    experiment |= {"tokenizer": {"file": "theirs/tokenizer.json"}}
    experiment["runs"] = {"recipe": "base.yaml", "rows": [{"name": "a", "recipe": "a.yaml"}]}
    configuration.write_text(yaml.safe_dump(experiment))
    done = snakemake(tmp_path, "--configfile", str(configuration))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    ours, theirs = (
        json.loads((root / "results/mini/runs/a/train_summary.json").read_text()) for root in (finished[0], tmp_path)
    )
    assert theirs["final_loss"] == ours["final_loss"]
    heldout = [(root / "results/mini/heldout/perplexity.jsonl").read_text() for root in (finished[0], tmp_path)]
    assert heldout[0] == heldout[1] and "jumps over the lazy dog" in heldout[0]
    assert "unigram entropy" not in done.stdout + (tmp_path / "results/mini/report.html").read_text()


def test_changed_value_repeats_only_its_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    experiment = yaml.safe_load((finished[0] / "experiment.yaml").read_text())
    experiment["runs"]["rows"] = [{"name": "c", "recipe": ["a.yaml"]}]
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(experiment))
    assert planned(finished[0], "--configfile", str(tmp_path / "more.yaml")) == {
        **{"index": 1, "train": 1},
        **AFTER_TRAINING,
    }


SITES = [("cluster_demo", name) for name in ("frontier", "lumi", "aws", "summit")]


@pytest.mark.parametrize(
    ("file", "profile"), [("demo", "local"), ("demo", "slurm"), ("cluster_demo", "slurm"), ("pythia", "slurm"), *SITES]
)
def test_configurations_plan(file: str, profile: str, tmp_path: Path) -> None:
    for name in ("neox", "workflow", "site_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = snakemake(
        tmp_path, "--dry-run", "--quiet", "all", "--configfile", f"workflow/config/{file}.yaml", profile=profile
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_communication_is_tuned_before_training_uses_it(tmp_path: Path) -> None:
    configuration = write_inputs(tmp_path)
    fetched = {"tokenizer": {"name": "neox_20b_tokenizer"}}
    named = {"results": "user's results"}  # each command stays one that a shell takes as it is meant
    tuned = yaml.safe_load(configuration.read_text()) | {"tune": {"run": "b"}} | fetched | named
    configuration.write_text(yaml.safe_dump(tuned))
    site = f"site={ROOT / 'site_configs' / 'local' / 'openmpi.yaml'}"
    done = snakemake(tmp_path, "--dry-run", "-p", "--configfile", str(configuration), "--config", site)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    overlay, folder = (shlex.quote(f"user's results/mini/{name}") for name in ("tuning/overlay.yaml", "tokenizer"))
    assert shown.count(f"--overlay {overlay} --run-dir") == 2
    assert f"neox data fetch neox_20b_tokenizer --output {folder} " in shown
    assert shown.count("--tokenizer {}".format(folder.replace("tokenizer'", "tokenizer/20B_tokenizer.json'"))) > 4
    commands = re.findall(r"^Shell command: (.+)", shown, re.M)
    assert len(commands) > 9 and not [line for line in commands if subprocess.run(["bash", "-nc", line]).returncode]
    assert re.search(r"^tune +1$", shown, re.M) and re.search(r"^tuning_figure +1$", shown, re.M)
    refused = snakemake(tmp_path, "--dry-run", "--configfile", str(configuration))
    assert refused.returncode == 2 and "tune: site local has no `tuning`" in refused.stderr


def test_wrong_key_is_one_line(tmp_path: Path) -> None:
    configuration = write_inputs(tmp_path)
    done = snakemake(tmp_path, "--configfile", str(configuration), "--config", "shard=3")
    assert done.returncode == 2
    complaint = [line for line in done.stderr.splitlines() if not line.startswith(("Using profile", "Config file"))]
    assert complaint == ["workflow: error: workflow configuration: unknown key 'shard'; allowed here: shards"]
    assert not (tmp_path / "results").exists()


def test_what_is_fetched_lies_where_a_failed_job_leaves_it(tmp_path: Path) -> None:
    configuration = write_inputs(tmp_path)
    source = tmp_path / "a b.jsonl"
    (tmp_path / "corpus.jsonl").rename(source)
    settings = yaml.safe_load(configuration.read_text()) | {"corpus": {"url": source.as_uri()}}
    configuration.write_text(yaml.safe_dump(settings))
    fetched, corpus = (tmp_path / "results" / "mini" / name for name in ("fetched", "corpus"))
    done = snakemake(tmp_path, "--configfile", str(configuration), "--until", "fetch")
    assert done.returncode == 0, done.stderr
    (file,) = corpus.iterdir()
    assert file.samefile(fetched / "url" / file.name) and file.read_bytes() == source.read_bytes()


def test_training_waits_for_one_that_outlived_its_controller(finished: tuple[Path, str]) -> None:
    """The last test: it trains run `a` again, which is finished already."""
    folder, waiting = finished[0], "a training from before still runs here; waiting for its end\n"
    summary = "results/mini/runs/a/train_summary.json"
    arguments = [summary, "--configfile", "experiment.yaml", "--forcerun", "train", "--quiet", "all"]
    with (folder / "results/mini/runs/a/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [*SNAKEMAKE, "--profile", str(ROOT / "site_configs" / "local"), *arguments]
        second = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert second.stdout is not None
        seen = []
        for line in second.stdout:
            seen.append(line)
            if line.endswith(waiting):
                break
        assert seen[-1].endswith(waiting), "".join(seen)
        assert second.poll() is None
        assert not (folder / summary).exists()  # Snakemake has removed it, and nobody else wrote it
    console, _ = second.communicate(timeout=100)
    assert second.returncode == 0, console
    assert "finished already: step 4 of 4" in console
    log = (folder / summary).with_name("logs") / "train.log"
    assert re.search("^step 4/4 .*finished already", log.read_text(), re.MULTILINE | re.DOTALL), "of both trainings"
    assert (folder / summary).is_file()
