"""Training and loading tokenizers."""

import json

import pytest
from data_inputs import make_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from neox.config.errors import UserError
from neox.data.engine import make_engine
from neox.data.tokenizer import load_tokenizer, train_tokenizer


def test_training_is_deterministic(tmp_path):
    entries = [train_tokenizer(make_texts(90), 320, tmp_path / name) for name in ("a", "b")]
    assert entries == [320, 320]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_special_tokens_and_size(tokenizer_file):
    loaded = load_tokenizer(tokenizer_file)
    assert (loaded.eod, loaded.vocab_size) == (0, 300)
    assert loaded.tokenizer.token_to_id("<|padding|>") == 1


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_decoding_gives_the_text_back(tokenizer_file, text):
    tokenizer = load_tokenizer(tokenizer_file).tokenizer
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_small_text_gives_fewer_entries(tmp_path):
    assert train_tokenizer(["ab ab"], 1000, tmp_path / "t.json") < 300


@pytest.mark.parametrize("engine", ["tokenizers", "gigatoken"])
def test_documents_are_neither_cut_nor_filled_up(tokenizer_file, tmp_path, engine):
    tokenizer = load_tokenizer(tokenizer_file).tokenizer
    lengths = [len(tokenizer.encode(text).ids) for text in ("a", "some words " * 20)]
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "t.json"))
    made = make_engine(engine, tmp_path / "t.json", load_tokenizer(tmp_path / "t.json"))
    assert [len(ids) for ids in made.encode(["a", "some words " * 20])] == lengths


def test_wrong_input(tmp_path):
    with pytest.raises(UserError, match="vocab-size 257: must be at least 258"):
        train_tokenizer([], 257, tmp_path / "t.json")
    with pytest.raises(UserError, match=r"t.json: No such file"):
        load_tokenizer(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match=r"t.json: not a tokenizer.json"):
        load_tokenizer(tmp_path / "t.json")
    train_tokenizer(["ab"], 300, tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    ends = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    template = {"type": "TemplateProcessing", "single": [text, end, text], "pair": [], "special_tokens": ends}
    content["post_processor"] = template
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"t.json: its post_processor changes the text's own tokens"):
        load_tokenizer(tmp_path / "t.json")


def test_tokenizer_without_end_of_document(tmp_path):
    train_tokenizer(["ab"], 300, tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(text.replace("<|endoftext|>", "<end>"))
    with pytest.raises(UserError, match=r"t.json: has none of <\|endoftext\|>, .*data.end_of_document"):
        load_tokenizer(tmp_path / "t.json")
    assert load_tokenizer(tmp_path / "t.json", "<end>").eod_token == "<end>"
