"""What `neox data fetch` knows by name: corpora, token files, tokenizers, weights; the tables are beside this file."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from neox.config.errors import UserError

GROUP = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository of the Hugging Face Hub, which lists its files with sizes and hashes."""

    repo: str
    type: Literal["dataset", "model"]
    folder: str | None = None
    """None: the whole repository."""
    revision: str | None = None
    """Branch, tag or commit, as of a checkpoint on the way (Pythia's are step0 to step143000); None: main."""


@dataclass(frozen=True)
class Asset:
    """One entry of the tables. Its files are given by one of `urls`, `hub`, `url_list` and `index`."""

    name: str
    kind: Literal["corpus", "tokens", "tokenizer", "weights"]
    about: str
    urls: tuple[str, ...] = ()
    """One for each file."""
    hub: HubFolder | None = None
    url_list: str | None = None
    """URL of a text file that has the URL of a file in each line."""
    index: str | None = None
    """URL of a page that links to the files, or to such pages below it."""
    mirrors: tuple[tuple[str, ...], ...] = ()
    """Further sources of `urls`, in the same order; tried in turn."""
    licence: str | None = None
    """None: its publisher does not say."""
    sha256: dict[str, str] = field(default_factory=dict)
    """By file name, where one is published; of the others the first fetch records it."""
    vocab_size: int | None = None
    """Ids of a tokenizer whose one file is a tokenizer.json."""
    size_gb: float | None = None
    """As published; None: it is not."""
    gone: str | None = None
    """Why it can no longer be had where it was; None: it is there as far as is known."""
    doubt: str | None = None
    """Why it may not be there."""
    instead: tuple[str, ...] = ()
    """Names of assets that stand in for it."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files, where the table alone says them: those of `urls`."""
        return tuple(file_name(url) for url in self.urls)


def file_name(url: str) -> str:
    """The last part of a URL's path."""
    return re.split(r"[?#]", url, maxsplit=1)[0].rstrip("/").rpartition("/")[2]


@functools.cache
def assets() -> dict[str, Asset]:
    """All of them by name."""
    import yaml  # which every command would wait for

    tables = (yaml.safe_load(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.yaml")))
    return {name: _asset(name, entry) for table in tables for name, entry in table.items()}


def find(name: str) -> Asset:
    """The asset of that name; of a repository of the Hub also NAME@REVISION.

    Raises:
        UserError: there is none; it lists the nearest names.
    """
    known, _, revision = name.partition("@")
    if known in assets():
        return _at(assets()[known], revision) if revision else assets()[known]
    near = ", ".join(difflib.get_close_matches(name, assets(), n=3, cutoff=0.4)) or ", ".join(sorted(assets()))
    raise UserError(f"{name}: no asset of that name; did you mean {near}? `neox data fetch --list` shows all")


def _at(asset: Asset, revision: str) -> Asset:
    if asset.hub is None:
        raise UserError(f"{asset.name}@{revision}: only what is in a repository of the Hugging Face Hub has revisions")
    return replace(asset, name=f"{asset.name}@{revision}", hub=replace(asset.hub, revision=revision))


def expand(pattern: str) -> list[str]:
    """The strings that a pattern stands for, as in a shell: {00..29} counts with as many digits, {a,b} lists."""
    pieces = GROUP.split(pattern)
    choices = [_choices(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(group: str) -> list[str]:
    first, dots, last = group.partition("..")
    if not dots:
        return group.split(",")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def _asset(name: str, entry: dict[str, Any]) -> Asset:
    urls = tuple(url for pattern in entry.pop("urls", ()) for url in expand(pattern))
    mirrors = tuple(
        tuple(url for pattern in patterns for url in expand(pattern)) for patterns in entry.pop("mirrors", ())
    )
    hub = entry.pop("hub", None)
    instead = tuple(entry.pop("instead", ()))
    return Asset(name, urls=urls, mirrors=mirrors, hub=HubFolder(**hub) if hub else None, instead=instead, **entry)
