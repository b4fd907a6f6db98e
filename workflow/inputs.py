"""Which files an experiment begins with: its corpus or its token file, its tokenizer; there, or made, or fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neox.config.errors import UserError
from neox.config.registry import Asset, assets, file_name, find


def corpus_files(corpus: Mapping[str, Any], root: str) -> tuple[str, ...]:
    """The files to tokenize: made, fetched, or there already."""
    if "tokens" in corpus:
        return ()
    if "path" in corpus:
        return tuple(existing(as_list(corpus["path"]), "corpus.path"))
    if "url" in corpus:
        return (f"{root}/corpus/{file_name(corpus['url'])}",)
    if "name" in corpus:
        return tuple(f"{root}/corpus/{file}" for file in named_files(corpus["name"]))
    return (f"{root}/corpus/corpus.jsonl",)


def token_prefix(config: Mapping[str, Any], root: str) -> str:
    """Of the token file that the workflow makes, or of one that is there; UserError where that cannot be used."""
    prefix = config["corpus"].get("tokens")
    if prefix is None:
        return f"{root}/tokens/corpus"
    existing([f"{prefix}.bin", f"{prefix}.idx"], "corpus.tokens")
    if "vocab_size" in config["tokenizer"]:
        raise UserError(
            f"workflow configuration: tokenizer.vocab_size: {prefix} is tokenised already; "
            "tokenizer.file or tokenizer.name says by which tokenizer"
        )
    return str(prefix)


def named_files(name: str) -> tuple[str, ...]:
    """The files of a corpus of the registry; UserError where the workflow cannot fetch it."""
    asset = find(name)
    if asset.gone:
        raise UserError(
            f"workflow configuration: corpus.name: {name}: {asset.gone}; instead: {', '.join(asset.instead)}"
        )
    if asset.kind != "corpus" or not asset.files:
        raise UserError(
            f"workflow configuration: corpus.name: {name}: only a corpus whose files the registry lists; "
            f"`neox data fetch {name}` gets it, and corpus.path names the files"
        )
    return asset.files


def named_tokenizer(name: str) -> Asset:
    """A tokenizer of the registry; UserError for one that is no tokenizer.json."""
    asset = find(name)
    if asset.vocab_size is None:
        usable = ", ".join(known.name for known in assets().values() if known.vocab_size)
        raise UserError(f"workflow configuration: tokenizer.name: {name}: is no tokenizer.json; there is {usable}")
    return asset


def existing(paths: Iterable[str], key: str) -> list[str]:
    """The paths themselves; UserError for the first that is no file."""
    found = list(paths)
    for path in found:
        if not Path(path).is_file():
            raise UserError(f"workflow configuration: {key}: there is no file {path}")
    return found


def as_list(files: str | Sequence[str]) -> list[str]:
    """One file or many, as many."""
    return [files] if isinstance(files, str) else list(files)
