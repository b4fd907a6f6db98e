"""Ids that a tokenizer's file defines, without the library that wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neox.config.errors import UserError
from neox.config.vocabulary import count_vocabulary, end_of_document


def write(folder: Path, content: object) -> str:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_vocabulary_is_counted_in_the_tokenizer(tmp_path: Path) -> None:
    added = [{"id": 9, "content": "<|endoftext|>"}]
    assert count_vocabulary(write(tmp_path, {"model": {"vocab": {"a": 0, "b": 5}}, "added_tokens": added})) == 10
    assert count_vocabulary(write(tmp_path, {"model": {"vocab": [["a", -1.0], ["b", -2.5]]}})) == 2
    assert count_vocabulary(write(tmp_path, {"model": 0, "!": 1, "added_tokens": 50256})) == 50257, "GPT-2's vocab.json"


def test_end_of_document_is_found(tmp_path: Path) -> None:
    added = [{"id": 9, "content": "<|endoftext|>"}]
    path = write(tmp_path, {"model": {"vocab": {"a": 0}}, "added_tokens": added})
    assert end_of_document(path, None, "data.mask_eod") == 9
    path = write(tmp_path, {"a": 0, "</s>": 2, "<|end_of_text|>": 5})
    assert [end_of_document(path, wanted, "data.mask_eod") for wanted in (None, "</s>", "a")] == [5, 2, 0]
    with pytest.raises(UserError, match=r"has no token <x>, which data.end_of_document names"):
        end_of_document(path, "<x>", "data.mask_eod")
    with pytest.raises(UserError, match=r"has none of <\|endoftext\|>, <\|end_of_text\|>, </s>.*data.end_of_document"):
        end_of_document(write(tmp_path, {"a": 0}), None, "data.mask_eod")
    with pytest.raises(UserError, match=r"data\.mask_documents needs data\.tokenizer"):
        end_of_document(None, None, "data.mask_documents")


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"model": {"vocab": {"a": "b"}}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="is not a tokenizer"):
        count_vocabulary(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="No such file"):
        count_vocabulary(str(tmp_path / "none"))
