"""The .bin/.idx pair: golden bytes, damage, merging, a full disk."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from neox.config.errors import UserError
from neox.data.indexed import DTYPES, IndexedReader, IndexedWriter, open_alike, token_dtype

ITEMS = [[5, 6, 7], [], [65000]]
# Laid out by hand from GPT-NeoX's format, field by field.
GOLDEN_IDX = (
    b"MMIDIDX\x00\x00"
    + struct.pack("<QBQQ", 1, 8, 3, 4)
    + struct.pack("<3i", 3, 0, 1)
    + struct.pack("<3q", 0, 6, 6)
    + struct.pack("<4q", 0, 1, 2, 3)
)
GOLDEN_BIN = struct.pack("<4H", 5, 6, 7, 65000)


def write(prefix, items, dtype=np.uint16):
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        writer.add_items(np.concatenate([np.array(item, dtype) for item in items]), np.array([len(i) for i in items]))
    return prefix


def test_golden_bytes(tmp_path):
    write(tmp_path / "x", ITEMS)
    assert (tmp_path / "x.idx").read_bytes() == GOLDEN_IDX
    assert (tmp_path / "x.bin").read_bytes() == GOLDEN_BIN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


@pytest.mark.parametrize(("code", "dtype"), DTYPES.items())
def test_every_dtype_is_read(tmp_path, code, dtype):
    width = np.dtype(dtype).itemsize
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, 2, 3)
    body = struct.pack("<2i", 2, 1) + struct.pack("<2q", 0, 2 * width) + struct.pack("<3q", 0, 1, 2)
    (tmp_path / "x.idx").write_bytes(header + body)
    (tmp_path / "x.bin").write_bytes(np.array([1, 2, 3], dtype).tobytes())
    reader = IndexedReader(tmp_path / "x")
    assert reader.dtype == dtype
    assert [reader[i].tolist() for i in range(2)] == [[1, 2], [3]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, "uint16"), (65500, "int32"), (300000, "int32")])
def test_dtype_rule(vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype


def cut(name, keep):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def overwrite(offset, content):
    def damage(folder):
        data = bytearray((folder / "x.idx").read_bytes())
        data[offset : offset + len(content)] = content
        (folder / "x.idx").write_bytes(data)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "x.bin").unlink(), "x.bin: no such file"),
        (lambda folder: (folder / "x.idx").unlink(), "x.idx: no such file"),
        (cut("x.idx", 20), "header is truncated"),
        (cut("x.idx", -1), "x.idx: 101 bytes, but its header announces 102"),
        (cut("x.bin", -2), "x.bin: 6 bytes, but .* describes 8"),
        (overwrite(0, b"TNTIDX\x00\x00"), "old cached/lazy"),
        (overwrite(0, b"garbage"), "not an index"),
        (overwrite(9, struct.pack("<Q", 2)), "version 2"),
        (overwrite(17, b"\x09"), "dtype code 9"),
        (overwrite(34, struct.pack("<i", -3)), "sizes and offsets do not agree"),
        (overwrite(46, struct.pack("<q", 2)), "sizes and offsets do not agree"),
        (overwrite(70, struct.pack("<2q", 0, 9)), "document bounds"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    write(tmp_path / "x", ITEMS)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        IndexedReader(tmp_path / "x").check()


def test_merge_keeps_items_and_document_bounds(tmp_path):
    parts = [[[1], [2, 3]], [[]], [[4, 5, 6], []]]
    prefixes = [write(tmp_path / f"p{i}", items) for i, items in enumerate(parts)]
    # A document of two items, as other writers make them.
    idx = bytearray((tmp_path / "p0.idx").read_bytes())
    header = struct.pack("<Q", 2)
    (tmp_path / "p0.idx").write_bytes(bytes(idx[:26]) + header + bytes(idx[34:58]) + struct.pack("<2q", 0, 2))
    seen = []
    with IndexedWriter(tmp_path / "all", np.dtype(np.uint16)) as writer:
        for part in open_alike(prefixes):
            writer.add_file(part, lambda block: seen.extend(block.tolist()))
    reader = IndexedReader(tmp_path / "all")
    assert [reader[i].tolist() for i in range(len(reader))] == [item for part in parts for item in part]
    assert reader.doc_idx.tolist() == [0, 2, 3, 4, 5]
    assert seen == [1, 2, 3, 4, 5, 6]


def test_merge_refuses_other_dtypes(tmp_path):
    write(tmp_path / "a", [[1]])
    write(tmp_path / "b", [[1]], np.int32)
    with pytest.raises(UserError, match=r"int32 tokens, but .* has uint16"):
        open_alike([tmp_path / "a", tmp_path / "b"])


def test_failure_leaves_the_old_files(tmp_path):
    write(tmp_path / "x", ITEMS)
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.add_items(np.array([9], np.uint16), np.array([1]))
        raise RuntimeError
    assert (tmp_path / "x.idx").read_bytes() == GOLDEN_IDX
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


WRITE_MUCH = """
import numpy as np, sys
from neox.data.indexed import IndexedWriter
with IndexedWriter(sys.argv[1], np.dtype(np.uint16)) as writer:
    for _ in range(64):
        writer.add_items(np.zeros(1 << 20, np.uint16), np.array([1 << 20]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_leaves_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small]).returncode:
        pytest.skip("this container may not mount")
    try:
        done = subprocess.run([sys.executable, "-c", WRITE_MUCH, small / "x"], capture_output=True, text=True)
        assert "UserError" in done.stderr and "No space left on device, nothing was written" in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_file_size_limit_leaves_nothing(tmp_path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, 1 << 22))\n" + WRITE_MUCH
    done = subprocess.run([sys.executable, "-c", limited, tmp_path / "x"], capture_output=True, text=True)
    assert "UserError" in done.stderr and "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []
