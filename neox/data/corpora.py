"""A corpus that needs no network: the help topics, docstrings and sources that every CPython carries."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox.data.durable import dump_json, replacing

EXCLUDED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),  # not the library itself
    "pydoc_data",  # the topics are documents of their own
    "encodings",  # tables of code points
}
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """A text and where it comes from, like `source/json/decoder`."""

    source: str
    text: str


def write_corpus(output: Path) -> dict[str, Any]:
    """Write the corpus as JSON lines {"text", "meta": {"source"}} and its manifest; returns the manifest.

    The same interpreter writes the same bytes.
    """
    with replacing(output, Path(f"{output}.manifest.json")) as (lines, description):
        documents = _collect(Path(sysconfig.get_paths()["stdlib"]))
        content = b"".join(map(_json_line, documents))
        lines.write_bytes(content)
        manifest = {
            "bytes": len(content),
            "documents": len(documents),
            "interpreter": {"implementation": platform.python_implementation(), "version": platform.python_version()},
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        dump_json(description, manifest)
    return manifest


def _collect(library: Path) -> list[Document]:
    kinds = [list(_topics()), *map(list, zip(*_modules(library), strict=True))]
    return interleave([document for document in kind if document.text.strip()] for kind in kinds)


def interleave(kinds: Iterable[list[Document]]) -> list[Document]:
    """One order in which each kind is spread evenly, so that every stretch of documents holds its share of each."""
    placed = []
    for number, kind in enumerate(kinds):
        shuffled = sorted(kind, key=lambda document: hashlib.sha256(document.source.encode()).digest())
        placed += [((i + 0.5) / len(kind), number, document) for i, document in enumerate(shuffled)]
    return [document for _, _, document in sorted(placed, key=lambda place: place[:2])]


def _json_line(document: Document) -> bytes:
    record = {"text": document.text, "meta": {"source": document.source}}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Document(f"topic/{name}", text)


def _modules(library: Path) -> Iterator[tuple[Document, Document]]:
    """For each module its docstrings, and its source without them: no text is in two documents."""
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if EXCLUDED_FOLDERS.intersection(place.parts) or place.parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        try:
            with tokenize.open(path) as file:
                source = file.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # outdated escapes in some modules
                tree = ast.parse(source)
            source.encode()
        except (OSError, SyntaxError, ValueError):  # a file that does not decode, or of another Python
            continue
        name = place.with_suffix("").as_posix()
        documented = list(_documented(tree))
        prose = "\n\n".join(f"{label}\n\n{text}" if label else text for label, text, _ in documented)
        yield Document(f"docstrings/{name}", prose), Document(f"source/{name}", _without(source, documented))


def _documented(tree: ast.Module) -> Iterator[tuple[str, str, ast.stmt]]:
    """Name, docstring and docstring's node of the module and of all that it defines, from top to bottom."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, Definition) and (text := ast.get_docstring(node)):
            found.append((node.body[0].lineno, getattr(node, "name", ""), text, node.body[0]))
    for _, name, text, statement in sorted(found, key=lambda entry: entry[0]):
        yield name, text, statement


def _without(source: str, documented: list[tuple[str, str, ast.stmt]]) -> str:
    lines = source.splitlines(keepends=True)
    for _, _, statement in reversed(documented):
        first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
        # A docstring on the line of its `def`, or with code after it, stays.
        if (
            not lines[first][: statement.col_offset].strip()
            and not lines[last - 1].encode()[statement.end_col_offset :].strip()
        ):
            del lines[first:last]
    return "".join(lines)
