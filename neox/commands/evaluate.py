"""`neox evaluate`: an exported model on the local evaluation tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "evaluate an exported model or a checkpoint with lm-evaluation-harness: on local task files, or its own tasks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the tasks and their data."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL_DIR", help="folder that `neox convert` made, or a checkpoint"
    )
    help = "folder of task files, for which nothing is fetched (default: the harness's own tasks)"
    parser.add_argument("--tasks", type=Path, metavar="DIR", help=help)
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="task to run, may be repeated (default: all of DIR)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="what $DATA in a file of --tasks stands for")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="of a checkpoint (default: the one its configuration names)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file of the results")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sequences at a time (default 16)")


def run(args: argparse.Namespace) -> int:
    """Prints each metric on a line."""
    from neox.evaluate import evaluate

    metrics = evaluate(args.model, args.tasks, args.task, args.data, args.output, args.batch_size, args.tokenizer)
    width = max(map(len, metrics), default=0)
    lines = [f"{name:<{width}}  {value:.6g}" for name, value in metrics.items()]
    print("\n".join(lines or [f"no metric is a number; what the harness says is in {args.output}"]))
    return 0
