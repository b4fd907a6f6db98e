"""`neox convert`: a checkpoint becomes a model that `transformers` loads."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "export a checkpoint to a Hugging Face model (GPTNeoX, Llama, Mistral or Falcon) with its tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where from, where to, and the tokenizer."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="a step_* folder of a run")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="tokenizer.json of the run")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")


def run(args: argparse.Namespace) -> int:
    """Prints the folder."""
    from neox.checkpoint.huggingface import convert

    convert(args.checkpoint, args.tokenizer, args.output)
    print(args.output)
    return 0
