"""`neox data check`, and what is said of token files that are cut or wrong anywhere."""

import json
import random
import struct

import numpy as np
import pytest
from data_inputs import make_texts, write_jsonl

from neox.__main__ import main
from neox.config.errors import UserError
from neox.data.check import Vocabulary, check_tokens
from neox.data.indexed import IndexedReader, IndexedWriter
from neox.data.manifest import read_manifest
from neox.data.prepare import Encoding, tokenize
from neox.data.tokenizer import load_tokenizer

ITEMS = [[5, 6, 7, 0], [], [8, 0], [0, 9, 1000]]


def write(prefix, items, dtype=np.uint16):
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for item in items:
            writer.add_items(np.array(item, dtype), np.array([len(item)]))
    return prefix


def test_report(tmp_path, tokenizer_file, capsys):
    texts = [text for text in make_texts(30) if text != "\n"]
    tokenize([write_jsonl(tmp_path / "a.jsonl", texts)], Encoding(tokenizer_file), tmp_path / "x")
    shape = ["model.hidden_size=8", "model.num_heads=2", "model.num_layers=1"]
    command = ["data", "check", str(tmp_path / "x"), "--tokenizer", str(tokenizer_file), "--config", *shape]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(command[: command.index("--config")]) == 0  # then nothing is said of a model
    alone = capsys.readouterr().out.splitlines()
    assert alone.pop(2).split(None, 1)[1] == "the tokenizer has 300" and alone == lines[:2] + lines[3:]
    reader = IndexedReader(tmp_path / "x")
    assert lines[0].startswith(f"{tmp_path}/x: 25 documents, {len(reader.tokens)} tokens of uint16, ")
    assert lines[1].split() == ["ids", str(reader.tokens.min()), "to", str(reader.tokens.max())]
    assert lines[2].split(None, 1)[1] == "the tokenizer has 300, the model has 300, 384 rows, 84 of them padding"
    assert f"mean {reader.sizes.mean():.1f}, least {reader.sizes.min()}, " in lines[3]
    counts = [line.split() for line in lines[4:] if line.startswith("   ")]
    for first, _, last, count, bar in counts:
        assert int(count) == np.count_nonzero((reader.sizes >= int(first)) & (reader.sizes <= int(last)))
        assert 1 <= len(bar) <= 40
    assert sum(int(row[3]) for row in counts) == 25
    assert "ends          25 of 25 documents end with <|endoftext|>, 0 stand inside" in lines
    first = load_tokenizer(tokenizer_file).tokenizer.decode(reader[0].tolist(), skip_special_tokens=False)
    assert f"document 0: {first!r}" in lines and lines[-1].startswith("document 24: ")


def test_ids_are_held_against_tokenizer_and_model(tmp_path, tokenizer_file):
    loaded = load_tokenizer(tokenizer_file)
    write(tmp_path / "x", ITEMS)
    for vocabulary, limit in ((Vocabulary(loaded), 299), (Vocabulary(model_ids=900, model_rows=1024), 899)):
        with pytest.raises(UserError, match=f"x.bin: document 3 has id 1000, but there are ids 0 to {limit}"):
            list(check_tokens(tmp_path / "x", vocabulary))
    assert "ids           0 to 1000" in list(check_tokens(tmp_path / "x", Vocabulary()))
    write(tmp_path / "x", [*ITEMS[:3], [0, 9]])
    assert "ends          2 of 4 documents end with <|endoftext|>, 1 stand inside" in list(
        check_tokens(tmp_path / "x", Vocabulary(loaded))
    )
    write(tmp_path / "labels", [[-100, -100, 5]], np.int32)
    assert any("2 of -100" in line for line in check_tokens(tmp_path / "labels", Vocabulary(loaded)))
    (tmp_path / "x.manifest.json").write_text(json.dumps({"documents": 5}))
    with pytest.raises(UserError, match=r"x.manifest.json: says documents 5, but it is 4"):
        list(check_tokens(tmp_path / "x", Vocabulary()))
    (tmp_path / "x.manifest.json").write_text("null")
    for reader in (lambda: list(check_tokens(tmp_path / "x", Vocabulary())), lambda: read_manifest(tmp_path / "x")):
        with pytest.raises(UserError, match=r"x.manifest.json: is damaged, it is not a JSON object"):
            reader()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("code", [6, 7])
def test_floats_of_gpt_neox_and_megatron(tmp_path, dtype, code):
    """Their codes 6 and 7 are each other's."""
    write(tmp_path / "x", [[0.5, -1.0], [2.0]], dtype)
    idx = bytearray((tmp_path / "x.idx").read_bytes())
    idx[17] = code
    (tmp_path / "x.idx").write_bytes(idx)
    reader = IndexedReader(tmp_path / "x").check()
    assert (reader.dtype, reader[0].tolist(), reader[1].tolist()) == (dtype, [0.5, -1.0], [2.0])
    assert "values        -1.0 to 2.0" in list(check_tokens(tmp_path / "x", Vocabulary()))


@pytest.mark.parametrize("name", ["x.idx", "x.bin"])
def test_cut_at_any_byte_is_one_line(tmp_path, name):
    write(tmp_path / "x", ITEMS)
    whole = (tmp_path / name).read_bytes()
    for keep in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"x\.(idx|bin): [^\n]*(truncated|not an index)[^\n]*$"):
            list(check_tokens(tmp_path / "x", Vocabulary()))


def test_any_wrong_bit_is_one_line_or_other_bounds(tmp_path):
    """What the index says of items is told twice, what it says of documents once."""
    write(tmp_path / "x", ITEMS)
    whole = (tmp_path / "x.idx").read_bytes()
    expected = IndexedReader(tmp_path / "x").tokens.tolist()
    rng = random.Random(0)
    for position in range(len(whole)):
        wrong = bytearray(whole)
        wrong[position] ^= 1 << rng.randrange(8)
        (tmp_path / "x.idx").write_bytes(wrong)
        try:
            reader = IndexedReader(tmp_path / "x").check()
            list(check_tokens(tmp_path / "x", Vocabulary()))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            is_dtype, is_bounds = position == 17, position >= 34 + 12 * len(ITEMS)
            assert is_dtype or (is_bounds and reader.tokens.tolist() == expected)
    assert struct.unpack_from("<Q", whole, 18) == (4,)
