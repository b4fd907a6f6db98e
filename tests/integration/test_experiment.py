"""Expansion of an experiment to runs, and what is refused before any job starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from neox.config.derive import num_parameters
from neox.config.errors import UserError
from neox.config.load import load_config
from workflow.experiment import Experiment, build_experiment

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "neox" / "presets" / "demo"
BASE, TINY, SMALL = (str(DEMO / f"{name}.yaml") for name in ("base", "tiny", "small"))


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def settings(**changes: Any) -> dict[str, Any]:
    runs = {"recipe": BASE, "axes": {"size": {"tiny": TINY, "small": SMALL}}}
    return copy.deepcopy(
        {"name": "t", "corpus": {"builtin": True}, "tokenizer": {"vocab_size": 2048}, "runs": runs, **changes}
    )


def experiment(**changes: Any) -> Experiment:
    return build_experiment(settings(**changes))


def test_axes_expand_to_their_product_in_order() -> None:
    axes = {"size": {"tiny": TINY, "small": SMALL}, "seed": [1234, 7], "optim.lr": [1e-3, 0.0005]}
    runs = experiment(runs={"recipe": BASE, "axes": axes}).runs
    assert list(runs)[:3] == ["tiny-seed1234-lr0.001", "tiny-seed1234-lr0.0005", "tiny-seed7-lr0.001"]
    assert len(runs) == 8
    run = runs["small-seed7-lr0.0005"]
    assert run.files == (BASE, SMALL)
    assert (run.config.train.seed, run.config.data.seed, run.config.optim.lr) == (7, 7, 0.0005)
    assert load_config(list(run.files), list(run.overrides)).optim.lr == 0.0005  # what the job will be given


def test_rows_stand_beside_the_product() -> None:
    row = {
        "name": "long",
        "recipe": [TINY],
        "set": {"train.steps": 7, "checkpoint.steps": [1, 2], "optim.betas": [0.9, 0.99]},
    }
    runs = experiment(runs={"recipe": BASE, "axes": {"size": {"tiny": TINY}}, "rows": [row]}).runs
    assert list(runs) == ["tiny", "long"]
    assert runs["long"].steps == (1, 2, 7)
    assert runs["long"].config.checkpoint.steps == (1, 2)
    assert load_config(list(runs["long"].files), list(runs["long"].overrides)).optim.betas == (0.9, 0.99)


def test_ranks_are_dealt_to_nodes() -> None:
    runs = {
        "recipe": [BASE, TINY],
        "ranks_per_node": 2,
        "rows": [{"name": "a", "set": {"parallel.pp": 2}}, {"name": "b"}],
    }
    run = experiment(runs=runs).runs
    assert (run["a"].nodes, run["a"].ranks_per_node, run["b"].nodes, run["b"].ranks_per_node) == (2, 2, 1, 2)


def test_evaluated_and_exported_steps() -> None:
    runs = {"recipe": [BASE, TINY], "rows": [{"name": "a", "set": {"train.steps": 250, "checkpoint.steps": [0, 3]}}]}
    keep = copy.deepcopy(runs)
    keep["rows"][0]["set"]["checkpoint.keep_last"] = 1
    assert experiment(runs=runs).runs["a"].exported == (250,)
    assert experiment(runs=runs).runs["a"].steps == (0, 3, 100, 200, 250)
    assert experiment(runs=keep).runs["a"].steps == (0, 3, 250)
    assert experiment(runs=keep, export={"checkpoints": "all"}).runs["a"].exported == (0, 3, 250)
    assert experiment(runs=keep, evaluate={"checkpoints": [3, 250]}).runs["a"].steps == (3, 250)
    for key in ("evaluate", "export"):
        with pytest.raises(UserError, match=rf"{key}\.checkpoints: no checkpoint of step 100 is kept"):
            experiment(runs=keep, **{key: {"checkpoints": [100]}})
    keep["rows"][0]["set"]["checkpoint.keep_every"] = 200
    assert experiment(runs=keep, evaluate={"checkpoints": "last"}).runs["a"].steps == (250,)
    assert experiment(runs=keep).runs["a"].steps == (0, 3, 200, 250)


WRONG = [
    ({"shard": 2}, "unknown key 'shard'; allowed here: shards"),
    ({"corpus": {"biltin": True}}, "unknown key 'corpus.biltin'; allowed here: builtin"),
    ({"corpus": {"builtin": True, "url": "http://a/b"}}, "corpus needs exactly one of builtin, path, url"),
    ({"corpus": {"path": "nowhere.jsonl"}}, "corpus.path: there is no file nowhere.jsonl"),
    ({"corpus": {"tokens": "nowhere"}}, "corpus.tokens: there is no file nowhere.bin"),
    ({"tokenizer": {"file": "nowhere.json"}}, "tokenizer.file: there is no file nowhere.json"),
    ({"tokenizer": {"name": "gpt2_tokenizer"}}, "gpt2_tokenizer: is no tokenizer.json; there is neox_20b_tokenizer"),
    ({"tokenizer": {"name": "neox_20b"}}, "tokenizer.name: neox_20b: is no tokenizer.json"),
    ({"tokenizer": {"name": "neox_20b_tokeniser"}}, "no asset of that name; did you mean neox_20b_tokenizer"),
    ({"shards": 0}, "shards: 0 is less than the minimum of 1"),
    ({"name": "a/b"}, "name: 'a/b' does not match"),
    ({"site": "nowhere"}, "nowhere"),
    ({"runs": {"recipe": BASE}}, "runs needs axes or rows"),
    ({"runs": {"recipe": BASE, "axes": {"size": {"x": "nowhere.yaml"}}}}, "run x: cannot read .* nowhere.yaml"),
    ({"runs": {"recipe": [BASE, TINY], "axes": {"optim.lrr": [1.0]}}}, "run lrr1.0: .*'optim.lrr'; nearest: optim.lr"),
    (
        {"runs": {"recipe": [BASE, TINY], "rows": [{"name": "a", "set": {"data.train_paths": ["x"]}}]}},
        "run a: data.train_paths: the runs of a workflow train on its corpus",
    ),
    ({"runs": {"recipe": [BASE, TINY], "axes": {"parallel.pp": [3]}}}, "run pp3: parallel.pp = 3 stages need"),
    ({"runs": {"recipe": [BASE, TINY], "axes": {"parallel.tp": [3]}}}, "run tp3: parallel.tp = 3 must divide"),
    ({"runs": {"recipe": [BASE, TINY], "axes": {"parallel.dp": [3]}}}, "run dp3: train: global_batch_size"),
    (
        {
            "runs": {
                "recipe": [BASE, TINY],
                "rows": [{"name": "a", "set": {"parallel.dp": 4, "train.global_batch_size": 32}}],
                "ranks_per_node": 3,
            }
        },
        "run a: dp × tp × pp = 4 × 1 × 1 = 4 ranks do not fill nodes of 3 ranks",
    ),
    ({"runs": {"recipe": [BASE, TINY], "rows": [{"name": "a"}, {"name": "a"}]}}, "two runs are called a"),
    (
        {"runs": {"recipe": [BASE, TINY], "rows": [{"name": "a"}, {"name": "b", "set": {"data.split": [9, 1, 1]}}]}},
        "runs a and b differ in data.split",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_mistake_is_one_line_that_names_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        experiment(**changes)
    assert "\n" not in str(caught.value)


def test_tokens_that_are_there_need_the_tokenizer_that_made_them(tmp_path: Path) -> None:
    for suffix in ("bin", "idx"):
        (tmp_path / f"corpus.{suffix}").touch()
    tokens = {"tokens": str(tmp_path / "corpus")}
    with pytest.raises(UserError, match=r"tokenizer.vocab_size: .*/corpus is tokenised already; tokenizer.file or"):
        experiment(corpus=tokens)
    found = experiment(corpus=tokens, tokenizer={"name": "neox_20b_tokenizer"})
    assert (found.tokens, found.corpus) == (str(tmp_path / "corpus"), ())


def test_two_sizes_of_the_demo_differ() -> None:
    sizes = [num_parameters(run.config.model) for run in experiment().runs.values()]
    assert sizes[0] < sizes[1]


# Non-embedding parameters and size of a head: Biderman et al. 2023 (arXiv 2304.01373), table 1; 14M, 31M: model cards.
PYTHIA = {
    "14m": (1_189_888, 32),
    "31m": (4_739_072, 32),
    "70m": (18_915_328, 64),
    "160m": (85_056_000, 64),
    "410m": (302_311_424, 64),
    "1b": (805_736_448, 256),
    "1.4b": (1_208_602_624, 128),
    "2.8b": (2_517_652_480, 80),
    "6.9b": (6_444_163_072, 128),
    "12b": (11_327_027_200, 128),
}


@pytest.mark.parametrize("size", PYTHIA)
def test_pythia_presets_have_the_published_sizes(size: str) -> None:
    folder = ROOT / "neox" / "presets" / "pythia"
    runs = {"recipe": str(folder / "base.yaml"), "axes": {"size": {size: str(folder / f"{size}.yaml")}}}
    run = experiment(
        runs={**runs, "ranks_per_node": 8}, tokenizer={"vocab_size": 50277}, evaluate={"checkpoints": "all"}
    )
    config = run.runs[size].config
    padded = {"6.9b": 50432, "12b": 50688}.get(size, 50304)
    parameters = num_parameters(config.model) - 2 * padded * config.model.hidden_size
    assert (parameters, config.model.hidden_size // config.model.num_heads) == PYTHIA[size]
    assert len(run.runs[size].steps) == 154
    assert config.train.steps * (config.train.global_batch_size or 0) * config.model.seq_length == 299_892_736_000


def test_a_tokenizer_by_name_is_fetched_later_but_counted_now() -> None:
    found = experiment(tokenizer={"name": "neox_20b_tokenizer"})
    assert found.tokenizer == "results/t/tokenizer/20B_tokenizer.json"
    assert {run.config.model.vocab_size for run in found.runs.values()} == {50277}
    assert not any("vocab_size" in override for run in found.runs.values() for override in run.overrides)


def test_every_configuration_in_the_repository_is_valid() -> None:
    files = sorted((ROOT / "workflow" / "config").glob("*.yaml"))
    assert files
    for file in files:
        assert build_experiment(yaml.safe_load(file.read_text())).runs
