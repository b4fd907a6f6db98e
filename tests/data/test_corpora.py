"""The built-in corpus and the evaluation data made of its held-out documents."""

import ast
import hashlib
import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest
from data_inputs import write_jsonl

from neox.config.errors import UserError
from neox.data import heldout
from neox.data.corpora import Document, _modules, interleave, write_corpus
from neox.data.heldout import MAX_CHARACTERS, cloze_passages, shortened, write_heldout
from neox.data.indexed import IndexedWriter
from neox.data.prepare import Encoding, tokenize
from neox.data.reading import Reading, read_texts
from neox.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    return path, write_corpus(path)


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_manifest_describes_the_file(corpus):
    path, manifest = corpus
    content = path.read_bytes()
    assert manifest == json.loads(Path(f"{path}.manifest.json").read_text())
    assert (manifest["bytes"], manifest["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest["documents"] == len(records(path))
    assert manifest["interpreter"]["version"] == platform.python_version()
    assert 5e6 < len(content) < 20e6


def test_corpus_is_deterministic(corpus, tmp_path):
    write_corpus(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == corpus[0].read_bytes()


def test_every_stretch_has_every_kind(corpus):
    sources = [record["meta"]["source"] for record in records(corpus[0])]
    assert len(set(sources)) == len(sources)
    for start in range(0, len(sources) - 50, 50):
        assert {source.split("/")[0] for source in sources[start : start + 50]} == {"topic", "docstrings", "source"}


def test_docstrings_are_not_in_the_sources(corpus):
    texts = {record["meta"]["source"]: record["text"] for record in records(corpus[0])}
    phrase = "If ``indent`` is a non-negative integer"
    assert phrase in texts["docstrings/json/__init__"] and phrase not in texts["source/json/__init__"]
    assert "class JSONDecoder" in texts["source/json/decoder"]
    assert not any("test" in source.split("/")[1:-1] for source in texts)


def test_modules_that_do_not_decode_are_passed_over(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"# coding: utf-8\nx = '\xff'\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\n'''Café.'''\nx = 1\n".encode("latin-1"))
    (tmp_path / "inline.py").write_text(
        'def f(): "é one line"; return 1\n\n\ndef g():\n    """Gone."""\n    return 2\n'
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text("x = 1\n")
    found = {source.source: (docstrings.text, source.text) for docstrings, source in _modules(tmp_path)}
    assert set(found) == {"source/latin", "source/inline"}
    assert found["source/latin"] == ("Café.", "# coding: latin-1\nx = 1\n")
    docstrings, source = found["source/inline"]
    assert docstrings == "f\n\né one line\n\ng\n\nGone."
    assert source == 'def f(): "é one line"; return 1\n\n\ndef g():\n    return 2\n'
    ast.parse(source)


def test_interleave_spreads_each_kind():
    kinds = [[Document(f"{kind}/{i}", "x") for i in range(count)] for kind, count in (("a", 20), ("b", 4))]
    order = [document.source[0] for document in interleave(kinds)]
    assert [order[i : i + 6].count("b") for i in range(0, 24, 6)] == [1, 1, 1, 1]


def test_heldout_is_what_training_never_saw(corpus, tmp_path, tokenizer_file):
    path, _ = corpus
    tokenize([path], Encoding(tokenizer_file), tmp_path / "tokens")
    tokenizer = load_tokenizer(tokenizer_file)
    manifest = write_heldout(tmp_path / "tokens", tokenizer, (90, 5, 5), "test", tmp_path / "held")
    first, last = manifest["documents"]["test"]
    texts = list(read_texts([path], Reading()))
    assert last == len(texts) and first == pytest.approx(0.95 * len(texts), abs=2)
    samples = [record["text"] for record in records(tmp_path / "held" / "perplexity.jsonl")]
    assert len(samples) == manifest["perplexity"] > 20
    assert samples == [shortened(text) for text in texts[first:]][: len(samples)]
    assert max(map(len, samples)) <= MAX_CHARACTERS
    unseen = " ".join(" ".join(texts[first:]).split())
    passages = records(tmp_path / "held" / "cloze.jsonl")
    assert len(passages) == manifest["cloze"] > 50
    assert all(f"{passage['context']} {passage['target']}." in unseen for passage in passages)
    questions = records(tmp_path / "held" / "choice.jsonl")
    assert len(questions) == manifest["choice"] > 50
    for question in questions:
        right = question["choices"][question["answer"]]
        assert len(set(question["choices"])) == 4 and any(question["context"] + right in text for text in texts[first:])
    assert {question["answer"] for question in questions} == {0, 1, 2, 3}
    sums = records(tmp_path / "held" / "arithmetic.jsonl")
    assert len({record["question"] for record in sums}) == manifest["arithmetic"] == 90
    symbols = {"plus": "+", "minus": "-", "times": "*"}
    for record in sums:
        a, word, b = re.fullmatch(r"Question: What is (\d+) (\w+) (\d+)\?\nAnswer:", record["question"]).groups()
        assert record["answer"] == f" {eval(a + symbols[word] + b)}"


@pytest.fixture
def tokens(tmp_path, tokenizer_file):
    """Prefix of 100 documents, `text 0` and so on, and their tokenizer."""
    path = write_jsonl(tmp_path / "c.jsonl", [f"text {i}" for i in range(100)])
    tokenize([path], Encoding(tokenizer_file), tmp_path / "tokens")
    return tmp_path / "tokens", load_tokenizer(tokenizer_file)


def heldout_texts(folder):
    return [record["text"] for record in records(folder / "perplexity.jsonl")]


def test_small_test_part_is_joined_by_the_validation_part(tmp_path, tokens):
    manifest = write_heldout(*tokens, (90, 8, 2), "test", tmp_path / "held")
    assert manifest["documents"] == {"test": [98, 100], "valid": [90, 98]}
    assert heldout_texts(tmp_path / "held") == [f"text {i}" for i in (98, 99, *range(90, 98))]
    assert write_heldout(*tokens, (90, 8, 2), "valid", tmp_path / "v")["documents"] == {"valid": [90, 98]}


def test_heldout_of_a_part_of_any_size_is_read_in_part(tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(heldout, "MAX_TOKENS", 1)
    write_heldout(*tokens, (1, 99, 0), "valid", tmp_path / "held")
    assert heldout_texts(tmp_path / "held") == ["text 1"]


def test_heldout_of_samples_that_hold_several_documents(tmp_path, tokens):
    """As Pythia's: cut anywhere, so one may begin within a text and end without an end."""
    _, tokenizer = tokens
    ids = [tokenizer.tokenizer.encode(text).ids for text in ("half a text", "Café", "<|padding|>", "and half")]
    sample = [*ids[0], tokenizer.eod, *ids[1], tokenizer.eod, tokenizer.eod, *ids[2], tokenizer.eod, *ids[3]]
    with IndexedWriter(tmp_path / "samples", np.dtype(np.uint16)) as writer:
        writer.add_items(np.array(sample, np.uint16), np.array([len(sample)]))
    write_heldout(tmp_path / "samples", tokenizer, (0, 1, 0), "valid", tmp_path / "held")
    assert heldout_texts(tmp_path / "held") == ["half a text", "Café", "<|padding|>", "and half"]


def test_heldout_of_another_tokenizers_tokens(tmp_path, tokens):
    with IndexedWriter(tmp_path / "samples", np.dtype(np.uint16)) as writer:
        writer.add_items(np.array([5, 300], np.uint16), np.array([2]))
    with pytest.raises(UserError, match=r"samples: document 0 has token 300, the tokenizer's are 0 to 299"):
        write_heldout(tmp_path / "samples", tokens[1], (0, 1, 0), "valid", tmp_path / "held")
    assert not (tmp_path / "held").exists()


def test_part_without_documents(tmp_path, tokens):
    with pytest.raises(UserError, match=r"data\.split 1,1,0 leaves none of 100 documents to the part 'test'"):
        write_heldout(*tokens, (1, 1, 0), "test", tmp_path / "held")
    assert not (tmp_path / "held").exists()


def test_cloze_takes_prose_whose_last_word_came_before():
    prose = "The list has many file objects in it and it says which of them are ready so that we may ask that list. "
    assert list(cloze_passages(prose)) == [{"context": prose[: prose.rindex(" list.")], "target": "list"}]
    assert list(cloze_passages(prose.replace("that list", "that kernel"))) == []  # never named before
    assert list(cloze_passages(prose.replace("that list", "that sorted_list"))) == []  # the end of a word is none
    assert list(cloze_passages("x = 1 # selector\n" * 20 + "selector. ")) == []  # code
    assert list(cloze_passages("A selector is a selector. ")) == []  # too little context
