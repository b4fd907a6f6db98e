"""Fetch what the registry knows by name: all its files into one folder, their hashes checked or recorded."""

from __future__ import annotations

import datetime
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import commonpath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from neox.config.errors import UserError
from neox.config.registry import Asset
from neox.data.durable import write_json
from neox.data.fetch import Download, fetch

RECORD = "fetched.json"
"""Beside the files: where each came from, its size and hash, which the next fetch into the folder expects."""
MAX_PAGES = 100
LINK = re.compile(r"""<a\s[^>]*?href=["']([^"'?#]+)["']""", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """One file of an asset: its path in the asset's folder, where it is to be had, and what it must be."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None


def fetch_asset(asset: Asset, folder: Path, mirror: str | None = None, connections: int = 8) -> list[RemoteFile]:
    """Fetches all files of an asset into `folder`, those that are there and right excepted; returns them.

    Args:
        mirror: URL of a folder that has the files under the same names, to be used instead of the table's sources.
        connections: as of `Download`.

    Raises:
        UserError: the asset is gone, only its publisher could list what to take from the mirror, none of its sources
            gives a file, or a file is not what it was.
    """
    if mirror and not asset.urls:
        raise UserError(f"--mirror: the registry has no list of the files of {asset.name}; fetch them by their URLs")
    if asset.gone and not mirror:
        instead = f"; instead: {', '.join(asset.instead)}" if asset.instead else ""
        own = "; a copy of your own: --mirror URL" if asset.urls else ""
        raise UserError(f"{asset.name}: {asset.gone}{instead}{own}")
    if asset.doubt and not mirror:
        print(f"{asset.name}: {asset.doubt}", file=sys.stderr)
    files = [_from_mirror(file, mirror) for file in files_of(asset)]
    record = _read_record(folder, asset)
    for number, file in enumerate(files, 1):
        print(f"{asset.name}: {number} of {len(files)}, {file.name}", file=sys.stderr, flush=True)
        known = record["files"].get(file.name, {}).get("sha256")
        url, digest = _fetch_from_any(file, folder / file.name, file.sha256 or known, connections)
        fetched = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        size = (folder / file.name).stat().st_size
        record["files"][file.name] = {"url": url, "bytes": size, "sha256": digest, "fetched": fetched}
        write_json(folder / RECORD, record)
    return files


def files_of(asset: Asset) -> list[RemoteFile]:
    """The files of an asset, asking its publisher where the table does not list them.

    Raises:
        UserError: the publisher does not answer, or lists names that no file may have.
    """
    if asset.hub:
        from neox.hub import list_files

        found = [RemoteFile(file.name, (file.url,), file.size, file.sha256) for file in list_files(asset.hub)]
    elif asset.url_list:
        found = _below_common_folder(_read_text(asset.url_list).split())
    elif asset.index:
        found = _linked(asset.index)
    else:
        sources = zip(asset.urls, *asset.mirrors, strict=True)
        found = [RemoteFile(name, urls) for name, urls in zip(asset.files, sources, strict=True)]
    if not found:
        raise UserError(f"{asset.name}: its publisher lists no file")
    for file in found:
        parts = PurePosixPath(file.name).parts
        if not parts or ".." in parts or parts[0].startswith("/") or file.name == RECORD:
            raise UserError(f"{asset.name}: its publisher lists a file that would land elsewhere, {file.name!r}")
    return [_with_hash(file, asset) for file in found]


def _with_hash(file: RemoteFile, asset: Asset) -> RemoteFile:
    published = asset.sha256.get(file.name)
    if published and file.sha256 not in (None, published):
        raise UserError(
            f"{asset.name}: {file.name} has sha256 {file.sha256} on the Hub, and was published with {published}"
        )
    return RemoteFile(file.name, file.urls, file.size, published or file.sha256)


def _from_mirror(file: RemoteFile, mirror: str | None) -> RemoteFile:
    return RemoteFile(file.name, (f"{mirror.rstrip('/')}/{file.name}",), file.size, file.sha256) if mirror else file


def _fetch_from_any(file: RemoteFile, output: Path, sha256: str | None, connections: int) -> tuple[str, str]:
    """The first source that gives the file, and the file's sha256."""
    failures = []
    for url in file.urls:
        try:
            return url, fetch(Download(url, output, sha256, file.size, connections))
        except UserError as error:
            failures.append(str(error))
    raise UserError("; ".join(failures))


def _read_record(folder: Path, asset: Asset) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if record["asset"] != asset.name or not isinstance(record["files"], dict):
            raise UserError(f"{path}: is the record of {record['asset']}; fetch {asset.name} into another folder")
        return record
    except FileNotFoundError:
        return {"asset": asset.name, "files": {}}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; remove it, and the files are fetched and recorded anew") from None


def _read_text(url: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "list"
        fetch(Download(url, output))
        return output.read_text(encoding="utf-8", errors="replace")


def _below_common_folder(urls: Sequence[str]) -> list[RemoteFile]:
    if wrong := [url for url in urls if not re.match(r"[a-z][a-z0-9+.-]*://[^/]+/", url)]:
        raise UserError(f"the publisher's list of files has {wrong[0][:80]!r}, which is no URL")
    paths = [unquote(urlsplit(url).path) for url in urls]
    folder = commonpath([path.rpartition("/")[0] for path in paths]) if paths else ""
    return [RemoteFile(path.removeprefix(folder).lstrip("/"), (url,)) for url, path in zip(urls, paths, strict=True)]


def _linked(index: str) -> list[RemoteFile]:
    """The files that a page and the pages below it link to, as web servers list folders."""
    pages, found = [index], []
    for page in pages:  # grows while it is read
        for link in dict.fromkeys(LINK.findall(_read_text(page))):
            url = urljoin(page, link)
            if not url.startswith(page) or url == page:
                continue
            if url.endswith("/"):
                pages.append(url)
            else:
                found.append(RemoteFile(unquote(url.removeprefix(index)), (url,)))
        if len(pages) > MAX_PAGES:
            raise UserError(f"{index}: lists more than {MAX_PAGES} folders")
    return found
