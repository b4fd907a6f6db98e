"""`neox config`: show a resolved configuration, compare two, or print every key with its meaning."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

HELP = "show, compare or document configurations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds show, diff and docs."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="merge files (ours or GPT-NeoX's) and overrides, check, print as YAML")
    show.add_argument("config", nargs="+", metavar="FILE|key=value", help="merged left to right; GPT-NeoX files too")
    show.add_argument("--world-size", type=int, metavar="N", help="also resolve it for N ranks: dp, batch, vocabulary")
    diff = actions.add_parser("diff", help="the keys in which two configurations differ; exit code 1 if they do")
    diff.add_argument("left", type=Path)
    diff.add_argument("right", type=Path)
    actions.add_parser("docs", help="every key with type, default and meaning, as Markdown")


def run(args: argparse.Namespace) -> int:
    """Runs the chosen action."""
    if args.action == "show":
        return show(args.config, args.world_size)
    if args.action == "diff":
        return diff(args.left, args.right)
    from neox.config.docs import markdown

    print(markdown(), end="")
    return 0


def show(arguments: list[str], world_size: int | None) -> int:
    """Prints the merged configuration and its hash."""
    from neox.config.derive import resolve
    from neox.config.load import config_hash, dump, load_config, parse_arguments

    config = load_config(*parse_arguments(arguments))
    if world_size is not None:
        config = resolve(config, world_size)
    print(dump(config), end="")
    print(f"# sha256 {config_hash(config)}")
    return 0


def diff(left: Path, right: Path) -> int:
    """Prints a unified diff of the two merged configurations."""
    from neox.config.load import dump, load_config

    before, after = (dump(load_config([path])).splitlines(keepends=True) for path in (left, right))
    lines = list(difflib.unified_diff(before, after, str(left), str(right), n=0))
    sys.stdout.writelines(lines)
    return 1 if lines else 0
