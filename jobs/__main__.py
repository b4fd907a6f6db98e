"""Entry point of the `jobs` command."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from jobs.errors import UserError
from jobs.site import load_site


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs", description="Runs commands as ranks and knows the sites.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    launch = commands.add_parser("launch", help="run a command as many ranks inside an allocation, or on this machine")
    launch.add_argument("--site", required=True, help="a folder of site_configs/, or a path to a site.yaml")
    launch.add_argument("--nodes", type=int, default=1)
    launch.add_argument("--ranks-per-node", type=int, help="default: the site's node.ranks")
    launch.add_argument("--run-dir", type=Path, help="append how this allocation ended to its segments.jsonl")
    launch.add_argument("--dry-run", action="store_true", help="print environment and launch line, start nothing")
    launch.add_argument("argv", nargs="+", metavar="-- COMMAND", help="the command and its arguments, passed untouched")
    site = commands.add_parser("site", help="facts of a site")
    show = site.add_subparsers(dest="action", required=True).add_parser("show", help="print what is known of a site")
    show.add_argument("site", help="a folder of site_configs/, or a path to a site.yaml")
    return parser


def run_launch(arguments: argparse.Namespace) -> int:
    import os

    from jobs import launcher

    for option in ("nodes", "ranks_per_node"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    site = load_site(arguments.site)
    size = (arguments.nodes, arguments.ranks_per_node)
    if arguments.dry_run:
        folder = Path("LAUNCH_FOLDER")
        launch = launcher.plan_launch(site, arguments.argv, *size, folder, os.environ)
        print(launcher.describe(site, launch, os.environ))
        return 0
    return launcher.run(site, arguments.argv, *size, arguments.run_dir)


def show_site(arguments: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(asdict(load_site(arguments.site)), sort_keys=False), end="")
    return 0


def main() -> int:
    """Returns the exit code: that of the ranks for `launch`; 2 when the user's input is wrong."""
    arguments = build_parser().parse_args()
    try:
        return {"launch": run_launch, "site": show_site}[arguments.command](arguments)
    except UserError as error:
        print(f"jobs: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
