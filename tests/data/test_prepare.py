"""Tokenising JSON lines: every worker and shard count gives the same files; wrong lines are named."""

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import math
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import zstandard
from data_inputs import make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from neox.config.errors import UserError
from neox.data import corpora, heldout, manifest, prepare
from neox.data.formats.contract import Span
from neox.data.indexed import IndexedReader, IndexedWriter
from neox.data.manifest import merge_prefixes
from neox.data.prepare import Encoding, tokenize
from neox.data.reading import Reading, batches, files, read_texts, shard_spans
from neox.data.tokenizer import load_tokenizer, train_tokenizer

COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def compressed(path, suffix):
    """The same lines as `path`, in two gzip members or zstd frames as parallel compressors write them."""
    content = path.read_bytes()
    middle = len(content) // 3
    out = path.with_name(path.name + suffix)
    out.write_bytes(COMPRESS[suffix](content[:middle]) + COMPRESS[suffix](content[middle:]))
    return out


def pair(prefix):
    return [prefix.with_name(f"{prefix.name}.{end}").read_bytes() for end in ("bin", "idx")]


def test_tokens_are_the_tokenizer_s_with_an_end_of_document(tmp_path, tokenizer_file):
    texts = make_texts(40)
    manifest = tokenize([write_jsonl(tmp_path / "a.jsonl", texts)], Encoding(tokenizer_file), tmp_path / "x")
    loaded = load_tokenizer(tokenizer_file)
    expected = [[*loaded.tokenizer.encode(text).ids, 0] for text in texts]
    reader = IndexedReader(tmp_path / "x")
    assert [reader[i].tolist() for i in range(len(reader))] == expected
    assert [loaded.tokenizer.decode(ids[:-1]) for ids in expected] == texts
    counts = Counter(token for ids in expected for token in ids)
    total = counts.total()
    text_bytes = sum(len(text.encode()) for text in texts)
    assert manifest["unigram_entropy"] == pytest.approx(
        -sum(n / total * math.log(n / total) for n in counts.values()), abs=1e-12
    )
    assert (manifest["documents"], manifest["tokens"], manifest["text_bytes"]) == (40, total, text_bytes)
    assert (manifest["bytes_per_token"], manifest["dtype"]) == (text_bytes / total, "uint16")
    assert (manifest["vocab_size"], manifest["tokenizer_sha256"]) == (
        300,
        hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(),
    )
    lines = (tmp_path / "a.jsonl").read_bytes()
    assert manifest["inputs"] == [{"file": "a.jsonl", "bytes": len(lines), "sha256": hashlib.sha256(lines).hexdigest()}]
    assert json.loads((tmp_path / "x.manifest.json").read_text()) == manifest


def test_empty_texts_are_left_out_as_in_gpt_neox_or_kept(tmp_path, tokenizer_file):
    path = write_jsonl(tmp_path / "a.jsonl", ["", "ab", ""])
    manifest = tokenize([path], Encoding(tokenizer_file, append_eod=False), tmp_path / "x")
    assert (manifest["documents"], manifest["left_out"]) == (1, 2)
    tokenize([path], Encoding(tokenizer_file, Reading(min_length=0), append_eod=False), tmp_path / "x")
    sizes = IndexedReader(tmp_path / "x").sizes
    assert sizes[0] == sizes[2] == 0 < sizes[1]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_workers_and_shards_change_nothing(tmp_path, tokenizer_file, monkeypatch, suffix):
    monkeypatch.setattr("neox.data.reading.BATCH_BYTES", 200)
    inputs = [
        compressed(write_jsonl(tmp_path / f"{i}.jsonl", make_texts(n)), suffix) for i, n in enumerate((31, 1, 50))
    ]
    encoding = Encoding(tokenizer_file)
    tokenize(inputs, encoding, tmp_path / "serial")
    tokenize(inputs, encoding, tmp_path / "parallel", workers=2)
    shards = [tmp_path / f"shard{i}" for i in range(5)]
    for i, shard in enumerate(shards):
        tokenize(inputs, encoding, shard, (i, 5))
    merged = merge_prefixes(shards, tmp_path / "merged")
    assert pair(tmp_path / "parallel") == pair(tmp_path / "serial") == pair(tmp_path / "merged")
    assert len(IndexedReader(tmp_path / "merged")) == 82
    serial = json.loads((tmp_path / "serial.manifest.json").read_text())
    for name in ("documents", "tokens", "text_bytes", "unigram_entropy", "bytes_per_token", "tokenizer_sha256"):
        assert merged[name] == serial[name]


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), max_size=12),
    count=st.integers(1, 20),
    batch_bytes=st.integers(1, 60),
    is_ended=st.booleans(),
)
def test_shards_hold_every_line_once(tmp_path_factory, texts, count, batch_bytes, is_ended):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for text in texts]
    path.write_bytes(b"".join(lines)[: None if is_ended else -1])
    read = []
    for index in range(count):
        for span in shard_spans(files([path, path], Reading()), index, count):
            with patch("neox.data.reading.BATCH_BYTES", batch_bytes):
                for batch in batches(span, Reading()):
                    read += batch.records
    whole = path.read_bytes().splitlines(keepends=True) if texts else []
    assert b"".join(read) == path.read_bytes() * 2
    assert len(read) == 2 * path.read_bytes().count(b"\n") + (0 if is_ended or not texts else 2), whole


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'["text"]', "not a JSON object but list"),
        (b'{"content": "a"}', r"no key 'text', only \['content'\]"),
        (b'{"text": null}', "must be a string, not NoneType"),
        (b'{"text": "\\ud800"}', "half a surrogate"),
    ],
)
def test_wrong_line_is_named(tmp_path, tokenizer_file, monkeypatch, suffix, line, message):
    monkeypatch.setattr("neox.data.reading.BATCH_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(30))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:20], b"\n", line + b"\n", *lines[20:]]))
    path = compressed(path, suffix)
    for shard in ((0, 1), (1, 2)):
        with pytest.raises(UserError, match=rf"a.jsonl{suffix}, line 22: .*{message}"):
            tokenize([path], Encoding(tokenizer_file), tmp_path / "x", shard)
    with pytest.raises(UserError, match=f"line 22: .*{message}"):
        list(read_texts([path], Reading()))
    assert {file.name for file in tmp_path.iterdir()} == {"a.jsonl", path.name}


def test_wrong_line_is_named_by_a_worker(tmp_path, tokenizer_file):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{}\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 2: no key 'text'"):
        tokenize([path], Encoding(tokenizer_file), tmp_path / "x", workers=2)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("keep", [-3, 40, 0])
def test_damaged_compression_is_named(tmp_path, tokenizer_file, suffix, keep):
    path = compressed(write_jsonl(tmp_path / "a.jsonl", make_texts(500)), suffix)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"a.jsonl{suffix}: cannot be decompressed"):
        tokenize([tmp_path / "a.jsonl", path], Encoding(tokenizer_file), tmp_path / "x")
    with pytest.raises(UserError, match=f"a.jsonl{suffix}: cannot be decompressed"):
        shard_spans(files([path], Reading()), 0, 2)
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match=f"a.jsonl{suffix}: cannot be decompressed"):
        list(read_texts([path], Reading()))


def test_missing_input(tmp_path, tokenizer_file):
    with pytest.raises(UserError, match=r"none.jsonl: No such file"):
        tokenize([tmp_path / "none.jsonl"], Encoding(tokenizer_file), tmp_path / "x")
    with pytest.raises(UserError, match=r"none.jsonl.gz: No such file"):
        next(read_texts([tmp_path / "none.jsonl.gz"], Reading()))


def test_cut_gzip_boundary_needs_no_other_file(tmp_path):
    """Only the file that a boundary cuts is decompressed to find its length."""
    whole = write_jsonl(tmp_path / "a.jsonl", make_texts(30))
    cut = compressed(whole, ".gz")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"x" * cut.stat().st_size)
    assert shard_spans(files([cut, tmp_path / "bad.jsonl.gz"], Reading()), 0, 2) == [Span(cut, "jsonl")]


def test_merge_refuses_missing_shards_and_other_tokenizers(tmp_path, tokenizer_file):
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(30))
    for i in range(3):
        tokenize([path], Encoding(tokenizer_file), tmp_path / f"s{i}", (i, 3))
    for wrong in (["s0", "s1"], ["s0", "s2", "s1"]):
        with pytest.raises(UserError, match="must be all of one input in order"):
            merge_prefixes([tmp_path / name for name in wrong], tmp_path / "x")
    train_tokenizer(["other words"], 280, tmp_path / "other.json")
    tokenize([path], Encoding(tmp_path / "other.json"), tmp_path / "o")
    with pytest.raises(UserError, match="tokenizer_sha256 differs"):
        merge_prefixes([tmp_path / "s0", tmp_path / "o"], tmp_path / "x")


def test_merge_of_another_program_s_files(tmp_path, tokenizer_file):
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(9))
    tokenize([path], Encoding(tokenizer_file), tmp_path / "s")
    (tmp_path / "s.manifest.json").unlink()
    manifest = merge_prefixes([tmp_path / "s", tmp_path / "s"], tmp_path / "x")
    assert (manifest["documents"], manifest["text_bytes"]) == (18, None)


def test_merge_of_labels_and_rewards(tmp_path):
    for name, dtype in (("labels", np.int32), ("rewards", np.float32)):
        for number in range(2):
            with IndexedWriter(tmp_path / f"{name}{number}", np.dtype(dtype)) as writer:
                writer.add_items(np.array([-100, 5, number, 7], dtype), np.array([3, 1]))
        manifest = merge_prefixes([tmp_path / f"{name}0", tmp_path / f"{name}1"], tmp_path / name)
        assert manifest["tokens"] == 8
        merged = IndexedReader(tmp_path / name)
        assert [merged[i].tolist() for i in range(4)] == [[-100, 5, 0], [7], [-100, 5, 1], [7]]
    counts = [2, 1, 1, 2]  # of 5, 0, 1 and 7
    manifest = json.loads((tmp_path / "labels.manifest.json").read_text())
    assert manifest["unigram_entropy"] == pytest.approx(-sum(n / 6 * math.log(n / 6) for n in counts))


def test_wide_vocabulary_gets_int32(tmp_path, tokenizer_file, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", ["a b"])
    wide = load_tokenizer(tokenizer_file)
    object.__setattr__(wide, "vocab_size", 65500)
    monkeypatch.setattr(prepare, "load_tokenizer", lambda *_: wide)
    tokenize([path], Encoding(tokenizer_file), tmp_path / "x")
    assert IndexedReader(tmp_path / "x").dtype == np.int32


@pytest.fixture
def full_disk(monkeypatch):
    """Every file of JSON that describes others finds the disk full."""

    def fail(temporary, value):
        temporary.write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (manifest, corpora, heldout):
        monkeypatch.setattr(module, "dump_json", fail)


def test_full_disk_at_the_manifest_leaves_nothing(tmp_path, tokenizer_file, full_disk):
    texts, tokenizer = write_jsonl(tmp_path / "a.jsonl", make_texts(9)), load_tokenizer(tokenizer_file)
    with IndexedWriter(tmp_path / "tokens", np.dtype(np.uint16)) as writer:
        writer.add_items(np.arange(9, dtype=np.uint16), np.ones(9, np.int32))
    for write in (
        lambda: tokenize([texts], Encoding(tokenizer_file), tmp_path / "out" / "tokens"),
        lambda: corpora.write_corpus(tmp_path / "out" / "corpus.jsonl"),
        lambda: heldout.write_heldout(tmp_path / "tokens", tokenizer, (1, 1, 1), "test", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="No space left on device, nothing was written"):
            write()
        assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_at_the_manifest_of_a_merge_keeps_the_old_files(tmp_path, tokenizer_file, request):
    texts = write_jsonl(tmp_path / "a.jsonl", make_texts(9))
    for name in ("part", "whole"):
        tokenize([texts], Encoding(tokenizer_file), tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(UserError, match="No space left on device, nothing was written"):
        merge_prefixes([tmp_path / "part"] * 2, tmp_path / "whole")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_corpus_without_a_document(tmp_path, tokenizer_file):
    blank = tmp_path / "blank.jsonl"
    blank.write_bytes(b"\n  \n")
    reason = f"{blank}: no document, only records that are blank"
    with pytest.raises(UserError, match=reason):
        tokenize([blank], Encoding(tokenizer_file), tmp_path / "x")
    with pytest.raises(UserError, match=reason):
        train_tokenizer(read_texts([blank], Reading()), 300, tmp_path / "t.json")
    for i in range(2):  # a shard may be empty, but not all of them
        tokenize([blank], Encoding(tokenizer_file), tmp_path / f"s{i}", (i, 2))
    with pytest.raises(UserError, match="no document in any of them"):
        merge_prefixes([tmp_path / "s0", tmp_path / "s1"], tmp_path / "x")
    assert not list(tmp_path.glob("x*")) and not (tmp_path / "t.json").exists()
