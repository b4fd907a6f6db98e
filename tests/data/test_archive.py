"""Archives: what is honest is unpacked whole, what is not is one clear line, and nothing of it is left."""

import gzip
import io
import random
import stat
import tarfile
import zipfile

import pytest
import zstandard

from neox.config.errors import UserError
from neox.data import archive as archives
from neox.data.archive import unpack

TEXT = random.Random(0).randbytes(40_000)


def entry(name, kind=tarfile.REGTYPE, target="", content=b"x", **attributes):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content if kind == tarfile.REGTYPE else b""


def tar_bytes(*entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(*files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files:
            opened.writestr(name, content)
    return buffer.getvalue()


def refuse(tmp_path, name, content, message, **options):
    """The error, of one line; nothing is written beside the archive, nor anywhere above."""
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / name
    archive.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        unpack(archive, tmp_path / "in" / "out", **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", name]


GOOD = tar_bytes(
    entry("./", tarfile.DIRTYPE),
    entry("a/b.txt", content=TEXT),
    entry("a/again", tarfile.LNKTYPE, "a/b.txt"),
    entry("a/soft", tarfile.SYMTYPE, "../a/b.txt"),
    entry("x" * 200 + "/é", content=b"long", mode=0o4777, uid=12345),
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tar", GOOD),
        ("x.tar.gz", gzip.compress(GOOD)),
        ("x.tgz", gzip.compress(GOOD)),
        ("x.tar.zst", zstandard.compress(GOOD)),
        ("x.zip", zip_bytes(("a/b.txt", TEXT), ("a/again", TEXT), ("a/soft", TEXT), ("x" * 200 + "/é", b"long"))),
    ],
)
def test_honest_archives(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    assert unpack(tmp_path / name, tmp_path / "out") == 4
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*")}
    assert sorted(found) == ["a", "a/again", "a/b.txt", "a/soft", "x" * 200, "x" * 200 + "/é"]
    assert {found[name].read_bytes() for name in ("a/b.txt", "a/again", "a/soft")} == {TEXT}
    assert not any(path.is_symlink() or path.stat().st_mode & stat.S_ISUID for path in found.values())
    with pytest.raises(UserError, match="is there already"):
        unpack(tmp_path / name, tmp_path / "out")


def test_one_compressed_file(tmp_path):
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(TEXT))
    assert unpack(tmp_path / "corpus.jsonl.gz", tmp_path / "out") == 1
    assert (tmp_path / "out" / "corpus.jsonl").read_bytes() == TEXT


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("../evil")], "'../evil' would land outside"),
        ([entry("a/../../evil")], "would land outside"),
        ([entry("/tmp/evil")], "would land outside"),
        ([entry("..\\evil")], "would land outside"),
        ([entry("l", tarfile.SYMTYPE, "/etc"), entry("l/evil")], "'l' would land outside"),
        ([entry("l", tarfile.SYMTYPE, "../../etc/passwd")], "'l' would land outside"),
        ([entry("l", tarfile.LNKTYPE, "../secret")], "'l' would land outside"),
        ([entry("l", tarfile.SYMTYPE, "later"), entry("later")], "'l' is a link to later, which is no file before it"),
        (
            [entry("f", content=TEXT), entry("f", tarfile.LNKTYPE, "f")],
            "'f' is a link to f, which is no file before it",
        ),
        ([entry("d", tarfile.DIRTYPE), entry("l", tarfile.SYMTYPE, "d")], "which is no file before it"),
        ([entry("null", tarfile.CHRTYPE)], "'null' is a device"),
        ([entry("pipe", tarfile.FIFOTYPE)], "'pipe' is a device"),
        ([entry("a"), entry("a/b")], "nothing was unpacked"),
        ([entry("n" * 300)], "File name too long"),
    ],
)
def test_members_that_are_refused(tmp_path, entries, message):
    refuse(tmp_path, "x.tar.gz", gzip.compress(tar_bytes(entry("ok"), *entries)), message)


def test_a_length_below_zero_is_refused(tmp_path):
    head = bytearray(tar_bytes(entry("ok", content=TEXT))[: tarfile.BLOCKSIZE])
    head[124:136], head[148:156] = b"\xff" * 12, b" " * 8  # base 256
    head[148:156] = b"%06o\0 " % sum(head)
    refuse(tmp_path, "x.tar", bytes(head) + TEXT + bytes(10240), "cannot be read .a member of -1 bytes")


def test_zip_members_that_are_refused(tmp_path):
    link = zipfile.ZipInfo("l")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for number, (content, message) in enumerate(
        [
            (zip_bytes(("ok", "x"), ("../evil", "x")), "'../evil' would land outside"),
            (zip_bytes(("ok", "x"), (link, "../../etc/passwd")), "'l' would land outside"),
            (zip_bytes(("ok", TEXT))[:-30], "cannot be read"),
            (zip_bytes(("ok", TEXT)).replace(TEXT[100:140], bytes(40)), "Bad CRC-32"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        refuse(tmp_path / str(number), "x.zip", content, message)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.zip", zip_bytes(("bomb", bytes(20 << 20)))),
        ("x.gz", gzip.compress(bytes(20 << 20), 1)),
        ("x.tar.zst", zstandard.compress(tar_bytes(entry("bomb", content=bytes(20 << 20))))),
        ("x.tar.zst", zstandard.compress(GOOD + bytes(20 << 20))),  # behind its end
        ("x.tar.zst", zstandard.compress(tar_bytes(*[entry("x", content=b"")] * 3000))),  # of nothing but headers
    ],
)
def test_bombs(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    refuse(tmp_path, name, content, "holds more than 200 times its own bytes")


def test_a_header_that_would_fill_the_memory(tmp_path):
    content = bytearray(tar_bytes(entry("n" * 150)))
    assert content[156:157] == b"x"  # the attributes that a long name is kept in
    content[124:136] = b"77777777777\0"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    refuse(tmp_path, "x.tar", bytes(content), "a header of 8589934591 bytes")


def test_allowed_to_grow_more(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 8 << 20)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(9 << 20), 1))
    assert unpack(tmp_path / "x.gz", tmp_path / "out", max_ratio=2000) == 1


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.zst", "x.zip"])
def test_cut_anywhere(tmp_path, name):
    whole = {"x.tar": GOOD, "x.tar.gz": gzip.compress(GOOD), "x.tar.zst": zstandard.compress(GOOD)}
    content = whole.get(name) or zip_bytes(("a", TEXT), ("b", b"short"))
    end = len(content.rstrip(b"\0")) if name == "x.tar" else len(content)
    archive = tmp_path / name
    for cut in {0, 1, 511, 512, 1024, end // 2, end - 1024, end - 513, end - 1, *range(1, end, end // 40)}:
        archive.write_bytes(content[:cut])
        with pytest.raises(UserError) as caught:
            unpack(archive, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_no_archive(tmp_path):
    refuse(tmp_path, "x.txt", b"text", r"not an archive by its name; what is unpacked ends in \.tar, \.zip, ")
