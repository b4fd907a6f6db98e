"""`neox data fetch`: files by the registry's names, by URL, from S3 or from a disk, and archives unpacked."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from neox.config.errors import UserError
from neox.config.registry import Asset, assets, file_name, find

URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a name of --list (of the Hub: NAME@REVISION), a URL, s3://BUCKET/KEY or a file",
    )
    parser.add_argument("--list", action="store_true", help="what is known by name: kind, licence, state, contents")
    parser.add_argument("--output", type=Path, metavar="PATH", help="file; of a name a folder (default: data/NAME)")
    parser.add_argument("--sha256", metavar="H", help="refuse a file with another hash")
    parser.add_argument("--size", type=int, metavar="BYTES", help="refuse a file of another size")
    parser.add_argument("--connections", type=int, default=8, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument("--mirror", metavar="URL", help="folder that has the files of a name; http, s3 or file")
    parser.add_argument("--extract", type=Path, metavar="DIR", help="unpack what was fetched into a new folder")
    parser.add_argument("--max-ratio", type=int, metavar="N", help="times its bytes that an archive may hold (200)")


def run(args: argparse.Namespace) -> str:
    """Do it; returns what to print."""
    if args.list:
        return "\n".join(_table())
    if args.source is None:
        raise UserError("fetch: name a SOURCE, or ask for --list")
    if args.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", args.sha256):
        raise UserError(f"--sha256 {args.sha256}: must be 64 hexadecimal digits")
    if args.connections < 1:
        raise UserError(f"--connections {args.connections}: must be at least 1")
    if args.max_ratio is not None and args.max_ratio < 1:
        raise UserError(f"--max-ratio {args.max_ratio}: must be at least 1")
    if args.extract and args.extract.exists():
        raise UserError(f"--extract {args.extract}: is there already")
    lines = []
    if URL.fullmatch(args.source) or (args.source not in assets() and Path(args.source).is_file()):
        file, line = _fetch_file(args)
        lines = [line] if line else []
    else:
        file = _fetch_named(args, lines)
    if args.extract:
        lines.append(_extract(args, file))
    return "\n".join(lines)


def _fetch_file(args: argparse.Namespace) -> tuple[Path, str | None]:
    from neox.data.fetch import Download, fetch

    if args.mirror:
        raise UserError("--mirror: only for a name of --list")
    is_url = bool(URL.fullmatch(args.source))
    if not is_url and args.extract and not args.output:
        return Path(args.source), None  # it need not be copied first
    url = args.source if is_url else Path(args.source).absolute().as_uri()
    output = args.output or Path(file_name(url))
    digest = fetch(Download(url, output, args.sha256, args.size, args.connections))
    return output, f"{output}: sha256 {digest}"


def _fetch_named(args: argparse.Namespace, lines: list[str]) -> Path:
    """The folder of the asset's files, or its only file where it is to be unpacked."""
    from neox.data.assets import RECORD, fetch_asset, files_of

    if args.sha256 or args.size is not None:
        raise UserError("--sha256 and --size: only for a URL or a file; the registry has those of its names")
    asset = find(args.source)
    num_files = len(asset.urls or files_of(asset)) if args.extract else 1
    if num_files != 1:
        raise UserError(f"--extract: {asset.name} has {num_files} files; unpack them one by one")
    folder = args.output or Path("data") / asset.name
    files = fetch_asset(asset, folder, args.mirror, args.connections)
    total = sum((folder / file.name).stat().st_size for file in files)
    lines.append(f"{folder}: {len(files)} files, {total} bytes, recorded in {folder / RECORD}")
    return folder / files[0].name


def _extract(args: argparse.Namespace, archive: Path) -> str:
    from neox.data.archive import MAX_RATIO, unpack

    num_files = unpack(archive, args.extract, args.max_ratio or MAX_RATIO)
    return f"{args.extract}: {num_files} files of {archive}"


def _table() -> list[str]:
    rows: list[tuple[str, ...]] = [("name", "kind", "GB", "licence", "what", "state")]
    rows += [_row(asset) for asset in assets().values()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(asset: Asset) -> tuple[str, ...]:
    state = asset.doubt or ""
    if asset.gone:
        state = f"gone: {asset.gone}; instead: {', '.join(asset.instead)}"
    size = "?" if asset.size_gb is None else f"{asset.size_gb:g}"
    return asset.name, asset.kind, size, asset.licence or "?", asset.about, state
