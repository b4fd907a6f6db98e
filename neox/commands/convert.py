"""`neox convert`: our checkpoints become models of `transformers`, and models of others become our checkpoints."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HELP = "export a checkpoint to a Hugging Face model, or import one, or a checkpoint of GPT-NeoX or Meta"

DTYPES = ("float32", "bfloat16", "float16")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where from, where to, and the tokenizer."""
    parser.add_argument(
        "source", type=Path, metavar="DIR", help="to export: a step_* folder of a run; to import: a model's folder"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json: of the run (required), or of the model"
    )
    parser.add_argument(
        "--config", type=Path, action="append", default=[], metavar="FILE", help="of a GPT-NeoX run, may be repeated"
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest file of an export (default 5GB)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="numbers of an export (default float32)")


def run(args: argparse.Namespace) -> int:
    """Prints the folder."""
    shard_bytes = parse_size(args.max_shard_size)
    from neox.config.errors import UserError

    if not (args.source / "manifest.json").is_file():
        from neox.checkpoint.importing import import_model

        if args.dtype:
            raise UserError(f"--dtype {args.dtype}: is for exports; checkpoints hold float32")
        import_model(args.source, args.output, args.tokenizer, args.config)
    else:
        import torch

        from neox.checkpoint.huggingface import convert

        if args.tokenizer is None:
            raise UserError("--tokenizer is required to export a checkpoint: tokenizer.json of the run")
        if args.config:
            raise UserError(f"--config {args.config[0]}: is for imports; a checkpoint of ours knows its configuration")
        convert(args.source, args.tokenizer, args.output, shard_bytes, getattr(torch, args.dtype or "float32"))
    print(args.output)
    return 0


def parse_size(text: str) -> int:
    """Bytes of 5GB, 200MB, … (powers of ten, as in transformers).

    Raises:
        UserError: it is no such size.
    """
    from neox.config.errors import UserError

    match = re.fullmatch(r"(\d+)\s*(KB|MB|GB)", text.upper())
    if not match or match[1] == "0":
        raise UserError(f"--max-shard-size {text}: give a number and a unit, such as 5GB or 200MB")
    return int(match[1]) * UNITS[match[2]]
