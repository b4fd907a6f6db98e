"""The report page and the last words on the console, from what a run leaves behind."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from neox.config.load import config_hash, dump, from_dict
from workflow.scripts import report_page
from workflow.summary import one_line_samples

MODEL = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 300}
CONFIG = from_dict({"model": MODEL})
VOID = {"meta", "br", "hr", "img"}


class Page(HTMLParser):
    """Text of every table cell, and a check that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def fabricate(folder: Path, first_loss: float, accuracy: float) -> dict[str, object]:
    """A run of 40 steps whose loss falls by half."""
    (folder / "eval").mkdir(parents=True)
    steps = range(1, 41)
    records = [
        {"step": n, "tokens": 100 * n, "loss": first_loss * (1 - n / 80), "tokens_per_s": 1000.0, "lr": 1e-3}
        for n in steps
    ]
    lines = [json.dumps(record) for record in records]
    lines.insert(20, json.dumps({"step": 20, "valid_loss": first_loss}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train_summary.json").write_text(
        json.dumps({"steps": 40, "tokens": 4000, "final_loss": first_loss / 2, "final_valid_loss": None, "wall_s": 90})
    )
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "a <b>\n", "text": "c & d"}) + "\n")
    metrics = {"cloze/acc": accuracy, "cloze/acc_stderr": 0.1, "heldout_bpb/bits_per_byte": 3.0 - accuracy}
    for step in (20, 40):
        (folder / "eval" / f"step_{step:08d}.json").write_text(json.dumps({"metrics": metrics}))
    (folder / "config.yaml").write_text(dump(CONFIG))
    return {"name": folder.name, "folder": str(folder), "steps": [40]}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    runs = [fabricate(tmp_path / "one", 8.0, 0.25), fabricate(tmp_path / "two", 6.0, 0.5)]
    tokens = {
        "unigram_entropy": 6.25,
        "documents": 3,
        "tokens": 99,
        "bytes_per_token": 3.5,
        "inputs": [{"file": "x.jsonl"}],
    }
    (tmp_path / "tokens.manifest.json").write_text(json.dumps({**tokens, "tokenizer_sha256": "0" * 64}))
    suffixes = {"page": "html", "loss": "svg", "throughput": "svg", "evaluation": "html"}
    outputs = {name: tmp_path / f"{name}.{suffix}" for name, suffix in suffixes.items()}
    read = [report_page.read_run(**run) for run in runs]
    report_page.write_report("t", str(tmp_path / "tokens"), read, outputs)
    return tmp_path


def test_page_is_whole_and_needs_nothing_else(page: Path) -> None:
    text = (page / "page.html").read_text()
    cells = Page(text).cells
    assert cells[:10] == ["one", "15,600", "40", "4,000", "4", "–", "1,000", "–", "1.5 min", config_hash(CONFIG)[:12]]
    assert text.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!#)', text), "the page refers to another file"
    assert "<b>a &lt;b&gt;\n</b>c &amp; d" in text


def test_evaluation_marks_the_best(page: Path) -> None:
    text = (page / "evaluation.html").read_text()
    assert Page(text).cells == ["one", "40", "0.25", "2.75", "two", "40", "0.5", "2.5"]
    assert re.findall(r"<b>(.*?)</b>", text) == ["0.5", "2.5"]


def test_loss_figure_shows_every_run_and_the_unigram_entropy(page: Path) -> None:
    figure = (page / "loss.svg").read_text()
    ElementTree.fromstring(figure)
    for label in ("unigram entropy 6.25", "one", "two", "one, validation", "tokens"):
        assert f"<!-- {label} -->" in figure
    dotted = re.search(r'd="M \S+ (\S+) *\nL \S+ (\S+) *\n"[^>]*stroke-dasharray', figure)
    assert dotted is not None
    assert dotted[1] == dotted[2], "the unigram entropy is not a horizontal line"


def test_smoothing_starts_unbiased_and_keeps_a_constant() -> None:
    assert report_page.smoothed([3.0] * 800) == pytest.approx([3.0] * 800)
    zigzag = report_page.smoothed([1.0, 5.0] * 400)
    assert zigzag[0] == 1.0
    assert 2.5 < min(zigzag[400:]) < max(zigzag) < 5.0


def test_samples_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps({"prompt": "a", "text": "b\n\n c " + "d" * 300}) + "\n")
    (line,) = one_line_samples(tmp_path / "s.jsonl")
    assert line.startswith("ab c d")
    assert len(line) == 100
