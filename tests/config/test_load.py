"""Merging, overriding and refusing: what a user can write, and the line they get when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox.__main__ import main
from neox.config.errors import UserError
from neox.config.load import config_hash, dump, from_dict, load_config, parse_arguments, read_yaml, to_dict

MODEL = ["model.num_layers=2", "model.hidden_size=64", "model.num_heads=4"]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_files_merge_left_to_right_then_overrides(tmp_path: Path) -> None:
    base = write(tmp_path, "a.yml", "model: {num_layers: 2, hidden_size: 64, num_heads: 4}\noptim: {lr: 1e-3}\n")
    over = write(tmp_path, "b.json", '{"model": {"num_layers": 3}, "optim": {"betas": [0.8, 0.9]}}')
    config = load_config([base, over], ["optim.lr=2.5e-4", "checkpoint.steps=[1, 2, 4]", "checkpoint.between=off"])
    assert (config.model.num_layers, config.model.hidden_size) == (3, 64)
    assert config.optim.lr == 2.5e-4
    assert config.optim.betas == (0.8, 0.9)
    assert (config.checkpoint.steps, config.checkpoint.between) == ((1, 2, 4), "off")


def test_dump_reads_back_equal_and_hash_follows_content(tmp_path: Path) -> None:
    config = load_config([], [*MODEL, "optim.lr=3e-4"])
    again = load_config([write(tmp_path, "c.yaml", dump(config))])
    assert again == config == from_dict(to_dict(config))
    assert config_hash(again) == config_hash(config)
    assert config_hash(load_config([], [*MODEL, "optim.lr=4e-4"])) != config_hash(config)


def test_arguments_split_into_files_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "lr=3.yml", "")
    files, overrides = parse_arguments(["x/y.yml", "optim.lr=1", "lr=3.yml", "data.path=a=b/c"])
    assert files == [Path("x/y.yml"), Path("lr=3.yml")]
    assert overrides == ["optim.lr=1", "data.path=a=b/c"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.hiden_size=3", ["unknown key 'model.hiden_size'", "model.hidden_size"]),
        ("hidden_size=3", ["unknown key 'hidden_size'", "model.hidden_size"]),
        ("optim.lr=fast", ["optim.lr = 'fast'", "float"]),
        ("train.steps=1.5", ["train.steps = 1.5", "int"]),
        ("train.steps=true", ["train.steps = True", "int"]),
        ("model.bias=1", ["model.bias = 1", "bool"]),
        ("model.norm=batch", ["model.norm = 'batch'", "layernorm, rmsnorm"]),
        ("parallel.zero_stage=true", ["parallel.zero_stage", "allowed are 1, 2, 3"]),
        ("optim.betas=[0.9]", ["optim.betas", "list of 2"]),
        ("model=3", ["model is a section"]),
        ("train.steps=[", ["train.steps=[", "not valid YAML"]),
    ],
)
def test_wrong_override_is_named(override: str, expected: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config([], [*MODEL, override])
    assert [text for text in expected if text not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  num_layers: 2\n  num_layers: 3\n", "bad.yml:3: key 'num_layers' is written twice"),
        ("model: {num_layers: 2\noptim: 3\n", "bad.yml:2: not valid YAML"),
        ("- a\n", "bad.yml: expected a mapping"),
        ("optim: {lrr: 1}\n", "bad.yml: unknown key 'optim.lrr'"),
    ],
)
def test_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([write(tmp_path, "bad.yml", text)])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yml: No such file"):
        load_config([tmp_path / "none.yml"])
    with pytest.raises(UserError, match=r"model\.num_layers is required"):
        load_config([])
    assert read_yaml(write(tmp_path, "empty.yml", "")) == {}


def test_command_prints_one_line_and_exits_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", *MODEL, "optim.lrr=1"]) == 2
    assert main(["config", "show", *MODEL, "model.num_heads=5", "model.vocab_size=9", "--world-size", "1"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("neox: error: optim.lrr=1: unknown key 'optim.lrr'; nearest: optim.lr")
    assert lines[1].startswith("neox: error: model.num_heads = 5 must divide model.hidden_size = 64")


def test_misspelt_section_is_named() -> None:
    with pytest.raises(UserError, match="unknown key 'modell'; nearest: model,"):
        load_config([], [*MODEL, "modell.x=1"])


def test_show_diff_and_docs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left = write(tmp_path, "l.yml", dump(load_config([], MODEL)))
    right = write(tmp_path, "r.yml", dump(load_config([], [*MODEL, "checkpoint.interval=7"])))
    assert main(["config", "show", str(left)]) == 0
    assert f"# sha256 {config_hash(load_config([left]))}" in capfd.readouterr().out
    assert main(["config", "diff", str(left), str(left)]) == 0
    assert main(["config", "diff", str(left), str(right)]) == 1
    assert "+  interval: 7" in capfd.readouterr().out
    assert main(["config", "docs"]) == 0
    docs = capfd.readouterr().out
    assert "| `optim.lr` | float | `0.0006` | Peak learning rate. |" in docs
    assert "|  |\n" not in docs, "a key without a meaning"
