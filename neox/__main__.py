"""The `neox` command: finds the subcommand, runs it, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from neox import __version__
from neox.config.errors import UserError

COMMANDS = ("config", "plan", "data", "train", "generate", "evaluate", "convert", "checkpoint", "upload", "bench")


def parser() -> argparse.ArgumentParser:
    """The whole command line; importing the command modules loads no torch."""
    top = argparse.ArgumentParser(prog="neox", description="Train, export and evaluate GPT-NeoX-style language models.")
    top.add_argument("--version", action="version", version=f"neox {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"neox.commands.{name}")
        sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit codes: 0 done, 85 state saved (run again), 2 wrong input, anything else failed."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except UserError as error:
        complain(str(error))
        return 2
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def complain(message: str) -> None:
    """One line on stderr, from the first rank only: every rank sees the same wrong input."""
    if os.environ.get("RANK", "0") == "0":
        print(f"neox: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
