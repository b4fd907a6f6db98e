"""Kinds of files that a corpus may be made of, one module each; which one a file is says its suffix, or the user."""

from __future__ import annotations

from pathlib import Path

from neox.config.errors import UserError
from neox.data.formats import archive, dat, lines, parquet, text, tfrecord, zipped
from neox.data.formats.compression import COMPRESSIONS
from neox.data.formats.contract import Format

FORMATS: dict[str, Format] = {
    "jsonl": lines.FORMAT,
    "text": text.FORMAT,
    "parquet": parquet.FORMAT,
    "jsonl.tar": archive.LINES,  # before tar, whose suffix it ends with
    "tar": archive.TEXTS,
    "zip": zipped.FORMAT,
    "dat": dat.FORMAT,
    "tfrecord": tfrecord.FORMAT,
}


def guess(path: Path) -> str | None:
    """Name of the format that a file's suffixes stand for; None: of none."""
    name = path.name.lower()
    bare = name.removesuffix(path.suffix.lower()) if path.suffix.lower() in COMPRESSIONS else name
    for known, format in FORMATS.items():
        if (bare if format.is_compressible else name).endswith(format.suffixes):
            return known
    return None


def format_of(path: Path, wanted: str) -> str:
    """Name of the format of a file, `wanted` unless that is auto. UserError when its suffix says nothing."""
    found = guess(path) if wanted == "auto" else wanted
    if found is None:
        raise UserError(f"{path}: its suffix names no format; say --format {', '.join(FORMATS)}")
    return found
