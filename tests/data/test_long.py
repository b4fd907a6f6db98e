"""Long documents, which go through in pieces: the same files, counts and complaints as whole ones."""

import io
import json
import random
import tarfile
import zipfile
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_inputs import make_texts, write_jsonl
from tokenizers import Tokenizer, normalizers, processors

from neox.config.errors import UserError
from neox.data import indexed, long, pool
from neox.data import reading as reading_module
from neox.data.formats import contract, lines
from neox.data.formats.contract import BadRecordError, Batch, Condition, Fields, Span
from neox.data.indexed import IndexedReader, IndexedWriter
from neox.data.prepare import Encoding, tokenize
from neox.data.reading import Reading

ATOMS = [*'a é中👩\n\\"\0\t/u', " b", "\U00010000", "d800", "\ufeff"]


@pytest.fixture(scope="session")
def begins_and_ends(tokenizer_file, tmp_path_factory):
    """A tokenizer of GPT-2's kind whose template adds a token on either side."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing("b $0 c", None, [("b", 7), ("c", 8)])
    path = tmp_path_factory.mktemp("template") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def are_long(monkeypatch):
    """What has 200 bytes is long, and a part of it has 20."""
    monkeypatch.setattr(long, "LONG", 200)
    monkeypatch.setattr(reading_module, "BATCH_BYTES", 200)
    monkeypatch.setattr(lines, "LONG_STRING", 50)
    monkeypatch.setattr(lines, "PART", 20)
    monkeypatch.setattr(contract, "PART", 20)
    found = []
    pieces = long._pieces
    monkeypatch.setattr(long, "_pieces", lambda *of: found.append(0) or pieces(*of))
    return found


def written(prefix, *of, **options):
    manifest = tokenize(*of, prefix, **options)
    files = [prefix.with_name(f"{prefix.name}.{end}").read_bytes() for end in ("bin", "idx")]
    return files, {name: value for name, value in manifest.items() if name != "tokenizer_engine"}


def make_inputs(folder):
    """Every format that holds text, with long documents among short ones, broken and unwanted ones too."""
    texts = [
        " ".join(make_texts(3)) + "中文。か\u3099\n\nEnd.\nNext 👩\u0301" * 9,
        *make_texts(5),
        "x" * 300,
        "\ufeffa b" * 60,
    ]
    one = write_jsonl(folder / "a.jsonl", texts * 2)
    broken = [
        {"text": "a b " * 99 + "\ud800"},
        {"text": ["p q " * 30, "r"]},
        {"no": "s t " * 99},
        {"text": "u", "x": "v " * 200},
    ]
    with one.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in broken)
    with one.open("ab") as file:
        file.write(b'{"text": "' + b"w " * 200 + b'\xff"}\n{"text": "' + b"w " * 200 + b"\n")
    plain = folder / "b.txt"
    plain.write_text(texts[0], encoding="utf-8-sig")
    wrong = folder / "c.txt"
    wrong.write_bytes(b"a b " * 100 + b"\xff" + b"c d " * 100)
    with zipfile.ZipFile(folder / "d.zip", "w") as archive, tarfile.open(folder / "e.tar", "w") as tar:
        for path in (plain, wrong):
            archive.write(path)
            tar.add(path)
    return [one, plain, wrong, folder / "d.zip", folder / "e.tar"]


@pytest.mark.parametrize("engine", ["gigatoken", "tokenizers"])
def test_pieces_change_nothing(tmp_path, begins_and_ends, engine, request):
    inputs = make_inputs(tmp_path)
    readings = {Reading(is_lenient=True): inputs}
    if engine == "gigatoken":
        readings |= {
            Reading(is_lenient=True, min_length=250): inputs,
            Reading(where=("x!=1",), is_lenient=True): inputs[:1],
        }
    encodings = {Encoding(begins_and_ends, reading, engine=engine): of for reading, of in readings.items()}
    before = [written(tmp_path / "whole", of, encoding) for encoding, of in encodings.items()]
    assert before[0][1]["broken"] == 7 and before[0][1]["documents"] > 20
    found = request.getfixturevalue("are_long")
    assert [written(tmp_path / "pieces", of, encoding) for encoding, of in encodings.items()] == before
    assert len(found) > 8
    encoding = Encoding(begins_and_ends, engine=engine)
    assert written(tmp_path / "two", inputs, next(iter(encodings)), workers=2) == before[0]
    for path, complaint in ((inputs[0], "a.jsonl, line 17: .*surrogate"), (inputs[2], "c.txt, the file: .* at 400")):
        with pytest.raises(UserError, match=complaint):
            tokenize([path], encoding, tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


def test_no_piece_is_much_longer_than_a_part(tmp_path, are_long):
    path = write_jsonl(tmp_path / "a.jsonl", ["many words here " * 500])
    batch = Batch(Span(path, "jsonl"), 0, [path.read_bytes()])
    pieces = list(long.divided(batch, Reading()))
    assert batch.records == [] and len(pieces) > 300 and max(len(piece.text) for piece in pieces) < 60
    for record in (b'{"text": "many words here"}', b"[" * 100_000):  # short; too deep for Python's json
        batch = Batch(Span(path, "jsonl"), 0, [record])
        assert list(long.divided(batch, Reading())) == [Batch(batch.span, 0, [record])]
    plain = tmp_path / "a.txt"
    plain.write_text("many words here " * 500)
    assert (
        "".join(piece.text for piece in long.divided_file(Span(plain, "text"), Reading(), bytes)) == plain.read_text()
    )
    assert long.divided_file(Span(plain, "text", 1, 1), Reading(), bytes) is None  # another shard's
    assert long.divided_file(Span(plain, "text"), Reading(ftfy=True), bytes) is None
    with pytest.raises(UserError, match="No such file"):
        long.divided_file(Span(tmp_path / "none.txt", "text"), Reading(), bytes)


def test_of_a_long_document_the_engine_is_proved_on_the_first_bytes(tmp_path, are_long, monkeypatch):
    monkeypatch.setattr(reading_module, "parse", None)  # which would hold it whole
    plain, one = tmp_path / "a.txt", write_jsonl(tmp_path / "a.jsonl", ["é words " * 50])
    plain.write_text("é words\n" * 50)
    spans = [Span(plain, "text"), Span(one, "jsonl")]
    plain_sample, json_sample = reading_module.first_texts(spans, Reading(), 120)
    assert plain_sample == ("é words\n" * 50)[:60] and json_sample == one.read_text()[:60]


def test_of_a_long_file_the_engine_is_proved_on_whole_records(tmp_path, are_long, monkeypatch):
    table = tmp_path / "a.parquet"
    texts = ["short", "é words", "words " * 50]
    pq.write_table(pa.table({"text": texts[:2]}), table)
    assert list(reading_module.first_texts([Span(table, "parquet")], Reading(), 600)) == texts[:2]
    monkeypatch.setattr(lines, "_whole_line", None)  # of the long one nothing is read
    for num_bytes, count in ((10, 1), (600, 2)):
        one = [Span(write_jsonl(tmp_path / "a.jsonl", texts), "jsonl")]
        assert list(reading_module.first_texts(one, Reading(), num_bytes)) == [t[:num_bytes] for t in texts[:count]]


def test_long_lines_grow_a_block_at_a_time(monkeypatch):
    class File(io.BytesIO):
        def readline(self, size=-1):
            assert 0 < size <= 7
            return super().readline(size)

    monkeypatch.setattr(lines, "BLOCK", 7)
    for end in (b"", b"\n", b"e"):
        content = b"a\nb\r\n\n" + b"long " * 9 + b"\n" + b"c\x85d\n" * 4 + end
        found, file = [], File(content)
        while more := lines._next_lines(file, 10):
            found += more
        assert found == list(io.BytesIO(content))


def test_parts_of_a_record_are_its_text(monkeypatch):
    monkeypatch.setattr(lines, "PART", 7)
    monkeypatch.setattr(lines, "LONG_STRING", 8)
    draw = random.Random(0)
    text = lambda: "".join(draw.choices(ATOMS, k=draw.randint(0, 20))) + "\ud800" * (draw.random() < 0.1)  # noqa: E731
    num_divided = 0
    for _ in range(6000):
        value = draw.choice([text(), text(), [text(), text()], [], 1])
        record = draw.choice([{"text": value}, {"m": text(), "text": value, "n": {"o": text()}}, {text(): 1}, value])
        content = bytearray(json.dumps(record, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
        if draw.random() < 0.3:
            content[draw.randrange(len(content))] = draw.choice(b'\0"\\ u\xd8\xed\xff')
        fields = Fields("text", draw.choice([(), (Condition("m", "q", False),)]))
        try:
            found = "".join(lines.parts(bytes(content), fields))
        except (ValueError, BadRecordError):
            continue  # such a record goes the way of short ones
        num_divided += 1
        assert found == lines.decode(bytes(content), fields), content
    assert num_divided > 500
    for half in (b"\\ud8000", b"\\uD8000"):  # what stands for the first long string, in the record itself
        with pytest.raises(BadRecordError, match="half"):
            list(lines.parts(b'{"m": "many words", "text": "' + half + b'"}', Fields()))


def test_an_item_may_come_in_several_calls(tmp_path, monkeypatch):
    tokens = np.arange(12, dtype=np.uint16)
    with IndexedWriter(tmp_path / "x", tokens.dtype) as writer:
        for start, stop, sizes in ((0, 5, [2]), (5, 7, []), (7, 12, [1, 3])):
            writer.add_items(tokens[start:stop], np.array(sizes, np.int32))
        writer.add_items(tokens[:1], np.array([1], np.int32))
    reader = IndexedReader(tmp_path / "x").check()
    assert [reader[item].tolist() for item in range(4)] == [[0, 1], [2, 3, 4, 5, 6, 7], [8, 9, 10], [11, 0]]
    monkeypatch.setattr(indexed, "MOST_TOKENS", 6)
    with (
        pytest.raises(UserError, match=r"a document of 7 tokens: .* up to 6"),
        IndexedWriter(tmp_path / "y", tokens.dtype) as writer,
    ):
        writer.add_items(tokens[:5], np.array([], np.int32))
        writer.add_items(tokens[:2], np.array([2], np.int32))
    assert not list(tmp_path.glob("y*"))


def test_of_long_batches_that_cannot_be_divided_one_waits_at_a_time():
    under_way = []

    class Pool:
        def submit(self, work, name, records):
            under_way.append(len(records[0]))
            assert len(under_way) <= 3 and sum(size >= long.LONG for size in under_way) <= 1
            done = Future()
            done.set_result(records)
            return done

    sizes = [1, 1, long.LONG, long.LONG, 1, 1, 1, long.LONG, 1]
    source = (Batch(Span(None, "jsonl"), number, [bytes(size)]) for number, size in enumerate(sizes))
    for number, (batch, records) in enumerate(pool.in_order(Pool(), source, 2)):
        assert batch.first == number and len(records[0]) == under_way.pop(0)
    assert number == len(sizes) - 1
