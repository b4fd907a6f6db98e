"""Tokenizers of other libraries become a tokenizer.json, held against the original where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer

from neox.config.errors import UserError
from neox.data.durable import replacing
from neox.data.engine import TRICKY
from neox.data.vocabularies import characters, gpt2, sentencepiece, tiktoken

CHARACTERS = "char-level"


def convert_tokenizer(source: str, output: Path, merges: Path | None = None) -> str:
    """Write the tokenizer.json of a .model, a .tiktoken, a vocab.json with its `merges`, or of `char-level`.

    Returns what came of holding it against the original. UserError when the source is none of them.
    """
    path = Path(source)
    original: Callable[[Path], Callable[[str], list[int]]] | None = None
    if merges is not None:
        tokenizer = gpt2.convert(path, merges)
    elif source == CHARACTERS:
        tokenizer = characters.convert()
    elif path.suffix == ".model":
        tokenizer, original = sentencepiece.convert(path), sentencepiece.original
    elif path.suffix == ".tiktoken":
        tokenizer, original = tiktoken.convert(path), tiktoken.original
    elif path.name.endswith("vocab.json"):
        raise UserError(f"{source}: --merges, the file merges.txt that belongs to it, is required")
    else:
        raise UserError(f"{source}: must be a .model, a .tiktoken, a vocab.json, or {CHARACTERS}")
    checked = "" if original is None else _checked(tokenizer, path, original)
    with replacing(output) as (temporary,):
        temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    return checked


def _checked(tokenizer: Tokenizer, path: Path, original: Callable[[Path], Callable[[str], list[int]]]) -> str:
    name = original.__module__.rpartition(".")[2]
    try:
        encode = original(path)
    except ImportError:
        return f", not held against {name}, which is not installed"
    other = [text for text in TRICKY if tokenizer.encode(text, add_special_tokens=False).ids != encode(text)]
    if other:
        return (
            f", but other tokens than {name} for {len(other)} of {len(TRICKY)} tricky texts, such as {other[0][:40]!r}"
        )
    return f", equal to {name} {version(name)} on {len(TRICKY)} tricky texts"
