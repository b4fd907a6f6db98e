"""Every format gives the documents that other programs wrote into it, over any shards; damage is one line."""

import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_inputs import write_jsonl
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.summary.writer.record_writer import RecordWriter

from neox.config.errors import UserError
from neox.data.formats.registry import format_of
from neox.data.indexed import IndexedReader
from neox.data.prepare import Encoding, tokenize
from neox.data.reading import Losses, Reading, batches, files, parse, read_texts, shard_spans

TEXTS = [f"text {number} — 東京 {'x' * (7 * number)}" for number in range(12)]


def jsonl(texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def write_tar(path, mode, members, **options):
    with tarfile.open(path, mode, **options) as archive:
        folder = tarfile.TarInfo("texts")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def members():
    """Names too long for a tar's head, as the two kinds of extended heads keep them."""
    return [(f"texts/{'long ' * 40 if number % 3 else ''}{number}.txt", t.encode()) for number, t in enumerate(TEXTS)]


def write_parquet(path):
    table = pa.table({"id": list(range(12)), "text": TEXTS, "meta": [{"set": str(n % 2)} for n in range(12)]})
    pq.write_table(table, path, row_group_size=5)


def write_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("texts")
        for name, content in members():
            archive.writestr(name, content)


def write_dat(path):
    """As lm_dataformat's DatArchive."""
    body = b"".join(b"%016d" % len(text.encode()) + text.encode() for text in TEXTS)
    path.write_bytes(zstandard.compress(body))


def example_type():
    """tf.train.Example, from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    i64 = file.message_type.add(name="Int64List")
    i64.field.add(name="value", number=1, type=3, label=3)
    feature = file.message_type.add(name="Feature")
    feature.field.add(name="int64_list", number=3, type=11, label=1, type_name=".tf.Int64List")
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".tf.Feature")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".tf.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=11, label=1, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


IDS = [[0, 1, 127, 128, 299], [], [256] * 40, [5]]


def write_tfrecords(path, ids=IDS, key="text"):
    kind = example_type()
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for tokens in ids:
            example = kind()
            example.features.feature[key].int64_list.value.extend(tokens)
            writer.write(example.SerializeToString())


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(jsonl(TEXTS)),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(jsonl(TEXTS))),
    "a.parquet": write_parquet,
    "a.tar": lambda path: write_tar(path, "w", members(), format=tarfile.PAX_FORMAT),
    "a.tar.gz": lambda path: write_tar(path, "w:gz", members(), format=tarfile.GNU_FORMAT),
    "a.tar.xz": lambda path: write_tar(path, "w:xz", members()),
    "a.jsonl.zst.tar": lambda path: write_tar(
        path, "w", [(f"{n}.jsonl.zst", zstandard.compress(jsonl(TEXTS[n : n + 3]))) for n in range(0, 12, 3)]
    ),
    "a.zip": write_zip,
    "a.dat.zst": write_dat,
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    WRITERS[request.param](tmp_path / request.param)
    return tmp_path / request.param


def sharded(paths, reading, index, count):
    losses, documents = Losses(reading.is_lenient), []
    for span in shard_spans(files(paths, reading), index, count):
        for batch in batches(span, reading):
            parsed = parse(span.format, batch.records, reading)
            losses.count(batch, parsed)
            documents += parsed.documents
    return documents, losses


def test_documents_are_those_written_over_any_shards(written, monkeypatch):
    monkeypatch.setattr("neox.data.reading.BATCH_BYTES", 300)
    (written.parent / "one.txt").write_text("in the middle")
    paths = [written, written.parent / "one.txt", written]
    assert list(read_texts(paths, Reading())) == [*TEXTS, "in the middle", *TEXTS]
    for count in (1, 2, 3, 7, 40):
        shards = [sharded(paths, Reading(), index, count)[0] for index in range(count)]
        assert list(chain(*shards)) == [*TEXTS, "in the middle", *TEXTS]
        assert count != 2 or min(map(len, shards)) >= 9  # the shards are even


def test_cut_anywhere_is_an_error_or_changes_nothing(written):
    whole = written.read_bytes()
    is_plain = written.suffix == ".jsonl"
    for keep in [*range(0, len(whole), 1 + len(whole) // 100), len(whole) - 1]:
        written.write_bytes(whole[:keep])
        try:
            found = sharded([written], Reading(), 0, 1)[0]
        except UserError as error:
            assert str(error).startswith(str(written)) and "\n" not in str(error)
        else:
            assert found == (TEXTS[: whole[:keep].count(b"}")] if is_plain else TEXTS)


@pytest.mark.parametrize("name", ["a.tar", "a.jsonl.zst.tar", "a.zip", "a.dat.zst", "a.jsonl", "t.tfrecords"])
def test_any_wrong_byte_is_an_error_or_a_document(tmp_path, name):
    path = tmp_path / name
    (WRITERS | {"t.tfrecords": write_tfrecords})[name](path)
    whole, rng = path.read_bytes(), random.Random(name)
    for _ in range(80):
        wrong = bytearray(whole)
        wrong[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(wrong)
        try:
            documents, losses = sharded([path], Reading(is_lenient=True), 0, 1)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert name != "t.tfrecords" or losses.broken or len(documents) == len(IDS)


@pytest.mark.parametrize(
    ("name", "content", "line", "good"),
    [
        ("a.jsonl", jsonl(["a", "b"]) + b'{"text": "\xe6\x9d"}\n' + jsonl(["c"]), "line 3: not JSON", ["a", "b", "c"]),
        ("a.jsonl", b"[" * 200_000 + b"\n" + jsonl(["a"]), "line 1: not JSON", ["a"]),
        ("a.jsonl.xz", lzma.compress(jsonl(["a"]) + b'"' + b"\n"), "line 2: not JSON", ["a"]),
        ("a.txt", b"half \xe6\x9d", "the file: not UTF-8 \\(byte 0xe6 at 5\\)", []),
        ("a.dat", b"%016d" % 1 + b"a" + b"%016d" % 1 + b"\xff", "document 2: not UTF-8", ["a"]),
    ],
)
def test_broken_records_are_located_and_counted(tmp_path, name, content, line, good):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}, {line}"):
        list(read_texts([tmp_path / name], Reading()))
    documents, losses = sharded([tmp_path / name], Reading(is_lenient=True), 0, 1)
    assert (losses.broken, documents) == (1, good)


def test_broken_records_of_archives_and_columns(tmp_path):
    members = [("good.txt", b"good"), ("bad/one.txt", b"\xff")]
    inside = [("x.jsonl", b'{"text": "a"}\n'), ("y.jsonl", b'{"text": "b"}\n\n{"text": 5}\n')]
    texts = pa.array([b"good", None, b"\xe6\x9d"]).cast(pa.binary())
    pq.write_table(pa.table([texts.view(pa.string())], ["text"]), tmp_path / "a.parquet")
    write_tar(tmp_path / "a.tar", "w", members)
    write_tar(tmp_path / "b.jsonl.tar", "w", inside)
    paths = [tmp_path / name for name in ("a.parquet", "a.tar", "b.jsonl.tar")]
    documents, losses = sharded(paths, Reading(is_lenient=True), 0, 1)
    assert (documents, losses.broken, losses.left_out) == (["good", "good", "a", "b"], 4, 1)
    places = [line.removeprefix(f"{tmp_path}/").partition(": ")[0] for line in losses.first_broken]
    assert places == ["a.parquet, row 2", "a.parquet, row 3", "a.tar, bad/one.txt", "b.jsonl.tar, y.jsonl, line 3"]
    with pytest.raises(UserError, match=r"x.jsonl in it holds JSON lines: read it with --format jsonl.tar"):
        list(read_texts([write_tar(tmp_path / "c.tar", "w", inside)], Reading()))


def test_lenient_reading_counts_over_workers_and_lines_of_shards(tmp_path, tokenizer_file, capsys, monkeypatch):
    monkeypatch.setattr("neox.data.reading.BATCH_BYTES", 50)
    lines = [b'{"text": "ab"}\n', b"{}\n"] * 30
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    encoding = Encoding(tokenizer_file, Reading(is_lenient=True))
    for count in (1, 4):
        manifests = [tokenize([tmp_path / "a.jsonl"], encoding, tmp_path / "x", (i, count)) for i in range(count)]
        assert sum(manifest["broken"] for manifest in manifests) == 30 == sum(m["documents"] for m in manifests)
        last = manifests[-1]["broken_first"][0]
        assert last.endswith(f"a.jsonl, line {2 if count == 1 else 46}: no key 'text', only []")
    assert "30 broken records left out, the first: " in capsys.readouterr().err


def test_records_are_chosen_by_fields_and_length(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    rows = [{"body": {"en": "long enough"}, "meta": {"set": "a"}, "ok": True}, {"body": {"en": "short"}, "ok": True}]
    rows.append({"ok": False, "body": {"en": ["p", "q"]}})
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    assert list(read_texts([tmp_path / "a.parquet"], Reading(where=("meta.set=1", "id!=3")))) == [
        TEXTS[n] for n in (1, 5, 7, 9, 11)
    ]
    assert list(read_texts([path], Reading(key="body.en"))) == ["long enough", "short", "p\n\nq"]
    assert list(read_texts([path], Reading(key="body.en", where=("ok=true",), min_length=6))) == ["long enough"]
    assert list(read_texts([path], Reading(key="body.en", where=("meta.set!=a",)))) == ["short", "p\n\nq"]
    assert list(read_texts([write_jsonl(path, ["schÃ¶n"])], Reading(ftfy=True))) == ["schön"]


def test_token_ids_stay_as_they_are(tmp_path, tokenizer_file):
    write_tfrecords(tmp_path / "t.tfrecords")
    for count in (1, 3):
        found = chain(*(sharded([tmp_path / "t.tfrecords"], Reading(), i, count)[0] for i in range(count)))
        assert [ids.tolist() for ids in found] == IDS
    tokenize(
        [tmp_path / "t.tfrecords", write_jsonl(tmp_path / "a.jsonl", ["x"])], Encoding(tokenizer_file), tmp_path / "x"
    )
    reader = IndexedReader(tmp_path / "x")
    assert [reader[i].tolist() for i in range(4)] == IDS and len(reader) == 5
    write_tfrecords(tmp_path / "t.tfrecords", [[1], [300]])
    with pytest.raises(UserError, match=r"t.tfrecords, record 2: ids from 300 to 300, but the tokenizer has 0 to 299"):
        tokenize([tmp_path / "t.tfrecords"], Encoding(tokenizer_file), tmp_path / "x")
    write_tfrecords(tmp_path / "t.tfrecords", [[2**63 - 1, 0]], "ids")
    with pytest.raises(UserError, match=r"record 1: no feature 'text', only \['ids'\]"):
        sharded([tmp_path / "t.tfrecords"], Reading(), 0, 1)
    assert sharded([tmp_path / "t.tfrecords"], Reading(key="ids"), 0, 1)[0][0].tolist() == [2**63 - 1, 0]
    for content, wrong in (
        (b"\xff", "no tf.train.Example"),
        (b"\x0a\x0a\x0a\x08\x0a\x04text\x12\x00", "must be a list"),
    ):
        with (tmp_path / "w.tfrecords").open("wb") as file:
            RecordWriter(file).write(content)
        with pytest.raises(UserError, match=f"w.tfrecords, record 1: .*{wrong}"):
            sharded([tmp_path / "w.tfrecords"], Reading(), 0, 1)
    with pytest.raises(UserError, match="holds token ids, and text is needed"):
        list(read_texts([tmp_path / "t.tfrecords"], Reading()))


def test_folders_hold_their_files_in_order(tmp_path, capsys):
    texts = {"b/2.txt": "two", "a.md": "one", "c.jsonl": '{"text": "three"}', ".x.txt": "no", "z.pdf": "no"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(read_texts([tmp_path], Reading())) == ["one", "two", "three"]
    assert f"{tmp_path}: 1 files of no known suffix are not read, such as {tmp_path}/z.pdf" in capsys.readouterr().err
    assert list(read_texts([tmp_path], Reading("text"))) == ["one", "two", '{"text": "three"}', "no"]


@pytest.mark.parametrize(
    ("name", "reading", "message"),
    [
        ("a.bin", Reading(), r"a.bin: its suffix names no format; say --format jsonl, text"),
        ("a.txt", Reading(where=("a=b",)), "--where a=b: .*a.txt is read as text, whose records have no fields"),
        ("a.txt", Reading(key="body"), "--key body: .*have no fields"),
        ("a.tfrecords", Reading(ftfy=True), "--ftfy: .*a.tfrecords holds token ids"),
        ("a.jsonl", Reading(where=("a",)), "--where a: must be FIELD=VALUE"),
        ("a.parquet", Reading(key="body"), r"no column 'body', only \['id', 'meta', 'text'\]"),
        ("none.parquet", Reading(), "none.parquet: No such file"),
        ("none.zip", Reading(), "none.zip: No such file"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, name, reading, message):
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=message):
        sharded([tmp_path / name], reading, 0, 1)


def test_parquet_of_another_kind_of_file(tmp_path):
    for content in (b"", b"PAR1", b"no parquet"):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"a.parquet: cannot be read, the file is damaged"):
            list(read_texts([tmp_path / "a.parquet"], Reading()))


def test_formats_are_known_by_their_suffixes():
    names = ["x.jsonl.zst", "x.json.gz", "X.JSONL", "x.txt.xz", "x.tar.zst", "x.jsonl.zst.tar", "x.tgz", "x.dat.zst"]
    found = [format_of(Path(name), "auto") for name in names]
    assert found == ["jsonl", "jsonl", "jsonl", "text", "tar", "jsonl.tar", "tar", "dat"]
