"""`neox upload`: an exported model to the Hugging Face Hub, with a model card filled from its run."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "send an exported model to the Hugging Face Hub, with a model card made from its run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the export, the repository, and what the run does not say."""
    parser.add_argument("export", type=Path, metavar="DIR", help="folder that `neox convert` made: RUN/hf/step_*")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository, made if there is none")
    parser.add_argument("--run-dir", type=Path, metavar="RUN", help="of the export (default: the one it lies in)")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="made if there is none (default main)")
    parser.add_argument("--licence", metavar="ID", help="for the card, as the Hub names it: apache-2.0")
    parser.add_argument("--private", action="store_true", help="if the repository is made")
    parser.add_argument("--dry-run", action="store_true", help="print the card and the files, send nothing")


def run(args: argparse.Namespace) -> int:
    """Prints where the model is now, or would be."""
    from neox.card import model_card, run_of
    from neox.config.errors import UserError
    from neox.hub import upload

    run_dir = args.run_dir or run_of(args.export)
    if run_dir is None:
        raise UserError(f"{args.export}: does not lie in a run directory; name it with --run-dir")
    card = model_card(args.export, run_dir, args.repo, args.revision, args.licence)
    files = [path for path in sorted(args.export.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    files = [path for path in files if path.name != "README.md"]
    if args.dry_run:
        print(card)
        for path in files:
            print(f"{path.stat().st_size:>14,}  {path.relative_to(args.export)}")
        print(f"not sent to {args.repo}, {args.revision}: {len(files)} files and README.md, the card above")
        return 0
    contents: dict[str, Path | bytes] = {path.relative_to(args.export).as_posix(): path for path in files}
    contents["README.md"] = card.encode()
    print(upload(args.repo, args.revision, contents, args.private))
    return 0
