"""The harness's numbers equal plain loops over our own model's logits; it needs no network and leaves nothing else."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from neox.__main__ import main
from neox.checkpoint.huggingface import convert, export
from neox.checkpoint.importing import import_model
from neox.checkpoint.special_tokens import special_tokens
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.data.questions import arithmetic_questions
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer, train_tokenizer
from neox.evaluate import evaluate, flatten
from neox.generate import Generator
from neox.language_model import stops_of
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.sampling import Sampling
from tests.checkpoint.test_huggingface import rows_of, save_checkpoint

TASKS = Path(__file__).parents[1] / "workflow" / "eval_tasks"
CFG = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, seq_length=24, vocab_size=400, vocab_multiple=64)
WORDS = ["river", "stone", "cloud", "meadow", "winter", "lantern", "harbour", "copper", "thistle", "amber"]
TEXTS = [
    "stone river",
    " ".join(WORDS * 4),  # longer than the context: several windows
    'def naïve(x):\n\treturn "☃" * x\n\n' * 3,
    '["a", "list", "of", "words"]',  # a template would have been read as a Python list
]


class World(NamedTuple):
    """One exported model, its data, and the original."""

    folder: Path
    model: GPT
    tokenizer: LoadedTokenizer
    passages: list[dict[str, str]]


def probabilities(world: World, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return world.model(torch.tensor([tokens]))[0].double().log_softmax(-1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    train_tokenizer([" " + " ".join(WORDS)] * 20, 400, folder / "tokenizer.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    model = GPT(CFG, padded_vocab(CFG)).eval()
    init_weights(model, CFG, seed=5)
    with torch.no_grad():  # mostly whole words are likely, so that some targets can be guessed
        is_word = [
            tokenizer.tokenizer.id_to_token(i) in {"Ġ" + word for word in WORDS} for i in range(padded_vocab(CFG))
        ]
        model.head.weight[~torch.tensor(is_word)] = 0
    export(CFG, rows_of(model), folder / "tokenizer.json", folder / "hf")
    world = World(folder, model, tokenizer, [])
    for index in range(24):
        context = " ".join((WORDS * 9)[index : index * 4 + 2])
        guess = int(probabilities(world, tokenizer.tokenizer.encode(context).ids[-24:])[-1].argmax())
        word = (tokenizer.tokenizer.id_to_token(guess) or "").removeprefix("Ġ")
        world.passages.append({"context": context, "target": word if index % 3 and word in WORDS else "stone bridge"})
    (folder / "data").mkdir()
    write_lines(folder / "data" / "perplexity.jsonl", [{"text": text} for text in TEXTS])
    write_lines(folder / "data" / "cloze.jsonl", world.passages)
    return world


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def run(world: World, output: Path, **changes: Any) -> dict[str, float]:
    arguments = {"model": world.folder / "hf", "tasks": TASKS, "names": [], "data": world.folder / "data"} | changes
    return evaluate(output=output, **arguments)


@pytest.fixture(scope="module")
def metrics(world: World) -> dict[str, float]:
    return run(world, world.folder / "all.json", names=["cloze", "heldout_bpb"], batch_size=3)


def test_bits_per_byte_is_that_of_a_plain_loop(world: World, metrics: dict[str, float]) -> None:
    nats = 0.0
    for text in TEXTS:
        tokens = [world.tokenizer.eod, *world.tokenizer.tokenizer.encode(text).ids]
        for start in range(1, len(tokens), CFG.seq_length):
            targets = tokens[start : start + CFG.seq_length]
            end = start + len(targets)
            logs = probabilities(world, tokens[max(0, end - 1 - CFG.seq_length) : end - 1])
            nats -= sum(float(logs[i - len(targets)][token]) for i, token in enumerate(targets))
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert metrics["heldout_bpb/bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)
    assert metrics["heldout_bpb/byte_perplexity"] == pytest.approx(math.exp(nats / num_bytes), rel=1e-5)


def test_cloze_is_that_of_a_plain_loop(world: World, metrics: dict[str, float]) -> None:
    logs, hits = [], []
    for passage in world.passages:
        context = world.tokenizer.tokenizer.encode(passage["context"]).ids
        tokens = world.tokenizer.tokenizer.encode(passage["context"] + " " + passage["target"]).ids
        target = tokens[len(context) :]
        rows = probabilities(world, tokens[:-1][-CFG.seq_length :])[-len(target) :]
        logs.append(sum(float(row[token]) for row, token in zip(rows, target, strict=True)))
        hits.append(rows.argmax(-1).tolist() == target)
    assert 0.1 < sum(hits) / len(hits) < 0.9
    assert metrics["cloze/acc"] == pytest.approx(sum(hits) / len(hits))
    assert metrics["cloze/perplexity"] == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-5)


ANSWER = """
task: answer
dataset_path: json
dataset_kwargs: {data_files: {test: $DATA/answer.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: [" stone", "\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


def begun_by(token: str, exported: Path, folder: Path) -> Path:
    """A copy of an exported model with a token that begins texts, which its tokenizer adds, as Llama's does."""
    shutil.copytree(exported, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": token}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_imported_models_score_as_with_transformers(world: World, tmp_path: Path) -> None:
    """Our model behind the harness, shared contexts and windows included, and its own back end on what was imported."""
    shutil.copytree(TASKS, tmp_path / "tasks")
    (tmp_path / "tasks" / "answer.yaml").write_text(ANSWER)
    generator = Generator(world.model, CFG, world.tokenizer)
    documents = []
    for index, passage in enumerate(world.passages):
        choices = [" stone bridge", " amber", " river", " copper thistle", " amber"][: 2 + index % 4]
        prompt = [1, *world.tokenizer.tokenizer.encode(passage["context"]).ids][-19:]  # 1: what begins texts
        (row,) = generator.rows([prompt], Sampling(max_tokens=5, temperature=0.0))
        said = world.tokenizer.tokenizer.decode(row).split(" stone")[0].split("\n")[0]
        said = said if index % 3 else "nothing of the kind"
        documents.append({"context": passage["context"], "choices": choices, "answer": index % 2, "said": said})
    for name, lines in (("choice", documents), ("answer", documents), ("arithmetic", list(arithmetic_questions())[:9])):
        write_lines(tmp_path / f"{name}.jsonl", lines)
    for name in ("cloze.jsonl", "perplexity.jsonl"):
        shutil.copy(world.folder / "data" / name, tmp_path)
    local = {"tasks": tmp_path / "tasks", "data": tmp_path, "batch_size": 3}
    theirs = begun_by("<|padding|>", world.folder / "hf", tmp_path / "hf")
    import_model(theirs, tmp_path / "ours")
    expected = run(world, tmp_path / "hf.json", **local, model=theirs)
    found = run(world, tmp_path / "ours.json", **local, model=tmp_path / "ours" / "checkpoints" / "step_00000000")
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0.1 < found["choice/acc"] < 0.9 and 0.4 < found["answer/exact_match"] < 0.7
    with pytest.raises(UserError, match="--tokenizer is required"):
        model = save_checkpoint(tmp_path / "checkpoints", CFG, world.model)
        run(world, tmp_path / "none.json", **local | {"model": model})
    convert(
        tmp_path / "ours" / "checkpoints" / "step_00000000", tmp_path / "ours" / "tokenizer.json", tmp_path / "back"
    )
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["bos_token"] == "<|padding|>"
    assert json.loads((tmp_path / "back" / "config.json").read_text())["bos_token_id"] == 1
    loaded = load_tokenizer(world.folder / "tokenizer.json")
    for state, begin in (({"config": {}}, "<|endoftext|>"), ({"config": {}, "origin": {}}, "<|padding|>")):
        assert special_tokens(state, theirs / "tokenizer.json", loaded).begin == begin


def test_batch_size_does_not_matter(world: World, metrics: dict[str, float], tmp_path: Path) -> None:
    assert run(world, tmp_path / "one.json", names=["cloze"], batch_size=1) == pytest.approx(
        {name: value for name, value in metrics.items() if name.startswith("cloze/")}, rel=1e-5
    )


def test_report_holds_metrics_versions_and_the_harness_results(world: World, metrics: dict[str, float]) -> None:
    report = json.loads((world.folder / "all.json").read_text())
    assert report["metrics"] == metrics
    assert set(report["versions"]) == {"lm_eval", "transformers", "datasets", "torch"}
    assert report["harness"]["results"]["cloze"]["acc,none"] == metrics["cloze/acc"]
    assert report["harness"]["n-samples"]["heldout_bpb"]["effective"] == len(TEXTS)
    assert "neox-evaluate-" not in json.dumps(report), "a temporary folder's name"


def test_tasks_of_the_harness_go_by_their_names(
    world: World, metrics: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder of tasks is another here: it reads all of its 14,000 files before it knows one by name."""
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    cloze = (TASKS / "cloze.yaml").read_text()
    (tmp_path / "cloze.yaml").write_text(cloze.replace("$DATA", str(world.folder / "data")))
    away = cloze.replace("task: cloze", "task: away").replace("dataset_path: json", "dataset_path: nobody/nothing")
    (tmp_path / "away.yaml").write_text(re.sub("dataset_kwargs: .*", "", away))
    own = {"tasks": None, "data": None}
    found = run(world, tmp_path / "out.json", **own, names=["cloze"], batch_size=3)
    assert found == {name: value for name, value in metrics.items() if name.startswith("cloze/")}
    for changes, message in (
        ({"names": ["clozed"]}, "--task clozed: no such task in lm-evaluation-harness; there are: cloze"),
        ({"names": ["away"]}, "cannot read a task's data: .*nobody/nothing"),
        ({"names": []}, "--task: name some"),
        ({"names": ["cloze"], "data": world.folder / "data"}, "--tasks and --data: "),
    ):
        with pytest.raises(UserError, match=message):
            run(world, tmp_path / "none.json", **{**own, **changes})
        assert not (tmp_path / "none.json").exists()


def test_flatten_keeps_numbers() -> None:
    results = {"b": {"alias": "b", "acc,none": 1, "acc_stderr,none": "N/A"}, "a": {"f1,strict": 0.5, "sample_len": 3}}
    assert flatten(results) == {"a/f1,strict": 0.5, "b/acc": 1}


def test_command_needs_no_network_and_is_quiet(world: World, tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def deny(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = deny\n"
        "from neox.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["evaluate", str(world.folder / "hf"), "--tasks", str(TASKS), "--data", str(world.folder / "data")]
    arguments += ["--task", "heldout_bpb", "--output", str(tmp_path / "out" / "eval.json")]
    (tmp_path / "home").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TQDM_", "TRANSFORMERS_"))}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment | {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,  # in no repository of git
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        f"heldout_bpb/{name}" for name in ("bits_per_byte", "byte_perplexity", "word_perplexity")
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["eval.json"]
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and "torch" not in str(path)] == []


def test_results_without_a_number_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "neox.evaluate.evaluate", lambda *_: flatten({"mine": {"answers,none": ["a"], "alias": "mine"}})
    )
    assert main(["evaluate", "model", "--task", "mine", "--output", "out.json"]) == 0
    assert capsys.readouterr().out == "no metric is a number; what the harness says is in out.json\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no_such_model"}, "no exported model"),
        ({"tasks": "no_such_tasks"}, "--tasks"),
        ({"data": "no_such_data"}, "--data"),
        ({"names": ["cloze", "clozed"]}, "clozed: no such task .* arithmetic, choice, cloze, heldout_bpb"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_wrong_input_is_one_line(world: World, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    changes = {key: tmp_path / value if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=message) as error:
        run(world, tmp_path / "out.json", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"cloze\.jsonl: No such file"),
        ("", r"cloze\.jsonl: no document"),
        ('{"context": "a", "target": "b"}\n{"context":\n', "line 2: not JSON"),
        ('{"context": "a"}\n', "line 1: no key 'target'"),
    ],
)
def test_wrong_data_names_file_and_line(world: World, tmp_path: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        (tmp_path / "cloze.jsonl").write_text(lines)
    with pytest.raises(UserError, match=message):
        run(world, tmp_path / "out.json", names=["cloze"], data=tmp_path)
    assert not (tmp_path / "out.json").exists()


def test_task_without_documents_does_not_keep_from_the_others(world: World, tmp_path: Path, capfd: Any) -> None:
    shutil.copy(world.folder / "data" / "perplexity.jsonl", tmp_path)
    (tmp_path / "cloze.jsonl").touch()
    metrics = run(world, tmp_path / "out.json", names=["cloze", "heldout_bpb"], data=tmp_path)
    assert {name.partition("/")[0] for name in metrics} == {"heldout_bpb"}
    assert f"task cloze skipped: {tmp_path / 'cloze.jsonl'} is empty" in capfd.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["skipped"] == {"cloze": str(tmp_path / "cloze.jsonl")}


def test_broken_task_file_names_its_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\noutput_type: [\n")
    with pytest.raises(UserError, match=r"mine\.yaml:3"):
        run(world, tmp_path / "out.json", tasks=tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(UserError, match=r"no task in .*\.yaml"):
        run(world, tmp_path / "out.json", tasks=tmp_path)


ASKING = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "$DATA/cloze.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric_list": [{"metric": "no_such"}]}, r"cannot run mine: \w+: .* \(lm_eval\.\S+:\d+\)"),
        ({"doc_to_text": "{{context.no.such}}"}, "cannot run mine: UndefinedError: 'str object' has no attribute 'no'"),
        ({"test_split": "no_such"}, "cannot run mine: .*no_such"),
        ({"no_such": 1}, "cannot run mine: TypeError: .*'no_such'"),
        ({"generation_kwargs": {"max_gen_toks": 10**6}}, "cannot run mine: .*1000000"),  # the harness's own back end
    ],
)
def test_wrong_task_files_are_one_line(world: World, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(ASKING | change))
    with pytest.raises(UserError, match=message) as error:
        run(world, tmp_path / "out.json", tasks=tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "out.json").exists()


def test_failures_of_a_model_are_no_task_files(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(ASKING))
    monkeypatch.setattr("transformers.GPTNeoXForCausalLM.forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(world, tmp_path / "out.json", tasks=tmp_path)


def test_stops_of_tasks() -> None:
    assert stops_of({"until": "a"}) == ("a",) and stops_of({"until": ["b", "", "c"]}) == ("b", "c")
    for wrong in (5, [5], {"a": 1}):
        with pytest.raises(UserError, match="is no text and no list of texts"):
            stops_of({"until": wrong})
