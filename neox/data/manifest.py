"""PREFIX.manifest.json, which describes a token file, and token files merged with theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neox.config.errors import UserError
from neox.data.durable import dump_json
from neox.data.indexed import IndexedWriter, open_alike
from neox.data.statistics import UnigramCounts


def manifest_path(prefix: str | Path) -> Path:
    """PREFIX.manifest.json."""
    return Path(f"{prefix}.manifest.json")


def write_manifest(
    writer: IndexedWriter, documents: int, text_bytes: int | None, counts: UnigramCounts, about: dict[str, Any]
) -> dict[str, Any]:
    """Write, as the companion of a token file, what is counted and known `about` it; returns that."""
    tokens = counts.total
    manifest = about | {
        "bytes_per_token": text_bytes / tokens if text_bytes is not None and tokens else None,
        "documents": documents,
        "dtype": str(writer.dtype),
        "text_bytes": text_bytes,
        "tokens": tokens,
        "unigram_entropy": counts.entropy(),
    }
    assert writer.companion is not None
    dump_json(writer.companion, manifest)
    return manifest


def merge_prefixes(prefixes: Sequence[Path], output: Path) -> dict[str, Any]:
    """Concatenate token files in the order given, and their manifests; returns the manifest.

    UserError when they came from different tokenizers, are shards that are not all there in order, or hold no document.
    """
    manifests = [read_manifest(prefix) for prefix in prefixes]
    _check_mergeable(prefixes, manifests)
    readers = open_alike(prefixes)
    documents = sum(map(len, readers))
    if not documents:
        raise UserError(f"{', '.join(map(str, prefixes))}: no document in any of them")
    same = ("append_eod", "end_of_document", "tokenizer_sha256", "vocab_size")
    about: dict[str, Any] = {name: manifests[0][name] for name in same if name in manifests[0]}
    about |= {
        name: [entry for each in manifests for entry in each.get(name, [])] for name in ("inputs", "broken_first")
    }
    about |= {name: sum(each.get(name, 0) for each in manifests) for name in ("broken", "left_out")}
    known_bytes = [each["text_bytes"] for each in manifests if each.get("text_bytes") is not None]
    text_bytes = sum(known_bytes) if len(known_bytes) == len(manifests) else None
    counts = UnigramCounts()
    with IndexedWriter(output, readers[0].dtype, manifest_path(output)) as writer:
        for reader in readers:
            writer.add_file(reader, counts.add)
        return write_manifest(writer, documents, text_bytes, counts, about)


def read_manifest(prefix: str | Path) -> dict[str, Any]:
    """The manifest, or nothing for token files that another program made; UserError when it is damaged."""
    try:
        return dict(json.loads(manifest_path(prefix).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{manifest_path(prefix)}: is damaged, it is not a JSON object; tokenise again") from error


def _check_mergeable(prefixes: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> None:
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        for name in ("tokenizer_sha256", "append_eod", "end_of_document"):
            if manifest.get(name) != manifests[0].get(name):
                raise UserError(f"{prefix}: its {name} differs from that of {prefixes[0]}; tokenise both the same way")
    shards = [manifest.get("shard") for manifest in manifests]
    if any(shard not in (None, "0/1") for shard in shards):
        expected = [f"{index}/{len(shards)}" for index in range(len(shards))]
        if shards != expected:
            raise UserError(f"merge: the shards are {shards}, but must be all of one input in order: {expected}")
