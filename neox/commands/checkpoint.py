"""`neox checkpoint`: what a checkpoint holds, how two differ, and whether every byte is what was saved."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HELP = "inspect, compare or verify checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds inspect, diff and verify."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="step, layout, files and tensors; of a run directory, the latest")
    inspect.add_argument("checkpoint", type=Path, metavar="DIR", help="a checkpoint or a run directory")
    diff = actions.add_parser("diff", help="tensors that differ, whatever layouts wrote them; exit code 1 if any do")
    for side in ("left", "right"):
        diff.add_argument(side, type=Path, metavar=side.upper(), help="a checkpoint, or a run directory's latest")
    verify = actions.add_parser(
        "verify", help="hash every file, of a run directory those of all; exit code 1 if damaged"
    )
    verify.add_argument("checkpoint", type=Path, metavar="DIR", help="a checkpoint or a run directory")
    for action in (inspect, diff, verify):
        action.add_argument("--json", action="store_true", help="for programs instead of people")


def run(args: argparse.Namespace) -> int:
    """Runs the chosen action."""
    if args.action == "inspect":
        return inspect(args.checkpoint, args.json)
    if args.action == "diff":
        return diff(args.left, args.right, args.json)
    return verify(args.checkpoint, args.json)


def inspect(path: Path, as_json: bool) -> int:
    """Prints the summary of one checkpoint and its tensors."""
    from neox.checkpoint.inspect import summary
    from neox.checkpoint.store import checkpoints_at

    found = summary(checkpoints_at(path)[-1])
    if as_json:
        return _print_json(found, 0)
    layout, code = found["layout"] or {}, found["code"] or {}
    rows = [
        ("checkpoint", found["path"]),
        ("step", f"{found['step']:,}"),
        ("samples", _or_dash(found["samples"])),
        ("parameters", f"{found['num_parameters']:,}"),
        ("size", f"{len(found['files'])} files, {found['num_bytes']:,} bytes"),
        ("saved by", " × ".join(f"{axis} {layout.get(axis, '?')}" for axis in ("dp", "tp", "pp"))),
        ("code", " ".join(str(part) for part in (code.get("version"), code.get("commit")) if part) or "–"),
        ("config sha256", found["config_sha256"] or "–"),
    ]
    print("\n".join(f"{name:<15}{value}" for name, value in rows))
    _print_table(
        ("tensor", "shape", "kinds"),
        ((tensor["name"], _shape(tensor["shape"]), ", ".join(tensor["kinds"])) for tensor in found["tensors"]),
    )
    return 0


def diff(left: Path, right: Path, as_json: bool) -> int:
    """Prints the tensors that differ, the largest relative difference first."""
    import dataclasses

    from neox.checkpoint.compare import compare
    from neox.checkpoint.store import checkpoints_at

    sides = [checkpoints_at(path)[-1] for path in (left, right)]
    found = list(compare(*sides))
    different = [one for one in found if not one.is_equal]
    if as_json:
        return _print_json([dataclasses.asdict(one) for one in found], int(bool(different)))
    print(f"left   {sides[0]}\nright  {sides[1]}")
    if different:
        different.sort(key=lambda one: float("inf") if one.relative is None else one.relative, reverse=True)
        rows = ((one.name, one.kind, *_sizes(one.max_abs, one.relative, one.shapes)) for one in different)
        _print_table(("tensor", "kind", "max |left − right|", "‖left − right‖ / ‖left‖"), rows)
    print(f"{len(found) - len(different)} of {len(found)} tensors are equal")
    return int(bool(different))


def verify(path: Path, as_json: bool) -> int:
    """Prints what is wrong with every file."""
    from neox.checkpoint.store import checkpoints_at
    from neox.checkpoint.verify import damages_of

    found = {str(directory): damages_of(directory) for directory in checkpoints_at(path)}
    damaged = [damage for files in found.values() for damage in files.values() if damage is not None]
    if as_json:
        return _print_json(found, int(bool(damaged)))
    rows = (
        (directory, str(len(files)), "damaged" if any(files.values()) else "intact")
        for directory, files in found.items()
    )
    _print_table(("checkpoint", "files", "state"), rows)
    print("\n".join(damaged), end="\n" if damaged else "")
    return int(bool(damaged))


def _sizes(max_abs: float | None, relative: float | None, shapes: tuple[Any, Any]) -> tuple[str, str]:
    if max_abs is None or relative is None:
        return tuple("missing" if shape is None else _shape(shape) for shape in shapes)  # type: ignore[return-value]
    return f"{max_abs:.3e}", f"{relative:.3e}"


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(str(size) for size in shape) or "scalar"


def _or_dash(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _print_json(value: Any, code: int) -> int:
    print(json.dumps(value, indent=1))
    return code


def _print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they must be, also where the output is not a terminal."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
