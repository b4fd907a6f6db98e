"""Entry point of the `jobs` command."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from jobs.errors import UserError
from jobs.site import find_site, load_site, with_image, with_overlay


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs", description="Runs commands as ranks and knows the sites.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    launch = commands.add_parser("launch", help="run a command as many ranks inside an allocation, or on this machine")
    launch.add_argument("--overlay", type=Path, help="variables on top of the site's, as `jobs tune` writes them")
    launch.add_argument("--run-dir", type=Path, help="append how this allocation ended to its segments.jsonl")
    launch.add_argument("--image", help="container image, instead of the one of the site's container")
    launch.add_argument(
        "--hostfile", type=Path, help="hosts as `HOST slots=RANKS`, a line each, where no scheduler gives any"
    )
    launch.add_argument("--dry-run", action="store_true", help="print environment and launch line, start nothing")
    tune = commands.add_parser("tune", help="find the settings of a site's `tuning` that make a command's time shorter")
    tune.add_argument("--rounds", type=int, default=20, help="times that all are measured (default: %(default)s)")
    tune.add_argument("--output", type=Path, required=True, help="folder of trials, ranking and overlay")
    for parser_of in (launch, tune):
        parser_of.add_argument("--site", required=True, help="a folder of site_configs/, or a path to a site.yaml")
        parser_of.add_argument("--nodes", type=int, default=1)
        parser_of.add_argument("--ranks-per-node", type=int, help="default: the site's node.ranks")
        parser_of.add_argument("argv", nargs="+", metavar="-- COMMAND", help="the command, passed untouched")
    add_sites(commands)
    add_watching(commands)
    return parser


def add_sites(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`site show`, `site check` and `site new`."""
    site = commands.add_parser("site", help="facts of a site").add_subparsers(dest="action", required=True)
    show = site.add_parser("show", help="print what is known of a site")
    check = site.add_parser("check", help="compare a site's profile with the machine, on one of its login nodes")
    for parser in (show, check):
        parser.add_argument("site", help="a folder of site_configs/, or a path to a site.yaml")
    new = site.add_parser("new", help="write a profile for a Slurm cluster, on one of its login nodes")
    new.add_argument("name", help="of the new folder in site_configs/")
    new.add_argument("--partition", help="whose nodes it describes (default: the cluster's default one)")


def add_watching(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`status`, `logs` and `cancel`, run in the folder where Snakemake runs."""
    status = commands.add_parser("status", help="every run: step, loss, rate, time left, last save, why it waits")
    status.add_argument("folders", nargs="*", type=Path, default=[Path("results")], help="default: results")
    status.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    logs = commands.add_parser("logs", help="print the training log of a run")
    logs.add_argument("run", help="a run directory, or the name of a run below results")
    logs.add_argument("--rank", type=int, help="what this rank said, instead")
    logs.add_argument("-f", "--follow", action="store_true", help="and what is added to it, until Ctrl-C")
    cancel = commands.add_parser("cancel", help="end the training jobs of some runs; they save first")
    cancel.add_argument("runs", nargs="+", metavar="run", help="a run directory, or the name of a run below results")
    for parser in (status, cancel):
        parser.add_argument(
            "--folder", type=Path, default=Path(".snakemake/submitit"), help="of the executor: %(default)s"
        )


def run_launch(arguments: argparse.Namespace) -> int:
    import os

    from jobs import hostfile, launcher

    site, (nodes, ranks) = load_site(arguments.site), launch_size(arguments)
    hosts: list[str] = []
    if arguments.hostfile:
        hosts, ranks = hostfile.size_by(arguments.hostfile, site.launcher, nodes, ranks)
    if arguments.image:
        site = with_image(site, arguments.image)
    if arguments.overlay:
        site = with_overlay(site, arguments.overlay)
    if arguments.dry_run:
        folder = Path("LAUNCH_FOLDER")
        hosts = hosts or launcher.stand_ins(site, nodes, os.environ)
        launch = launcher.plan_launch(site, arguments.argv, nodes, ranks, folder, os.environ, hosts)
        print(launcher.describe(site, launcher.with_logs(launch, arguments.run_dir), os.environ))
        return 0
    return launcher.run(site, arguments.argv, nodes, ranks, arguments.run_dir, hosts)


def run_tune(arguments: argparse.Namespace) -> int:
    from jobs.tuning import Sweep

    size = launch_size(arguments)
    site, folder = load_site(arguments.site), arguments.output
    return Sweep(site, tuple(arguments.argv), *size, arguments.rounds, folder).run()


def launch_size(arguments: argparse.Namespace) -> tuple[int, int | None]:
    """Nodes, and ranks on each if that was given."""
    for option in ("nodes", "ranks_per_node"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    return arguments.nodes, arguments.ranks_per_node


def run_site(arguments: argparse.Namespace) -> int:
    return {"show": show_site, "check": check_site, "new": new_site}[arguments.action](arguments)


def show_site(arguments: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(asdict(load_site(arguments.site)), sort_keys=False), end="")
    return 0


def check_site(arguments: argparse.Namespace) -> int:
    """1 where something differs."""
    from jobs import site_check

    findings = site_check.check(load_site(arguments.site), find_site(arguments.site).parent)
    print("\n".join(map(str, findings)))
    return 1 if any(finding.agrees is False for finding in findings) else 0


def new_site(arguments: argparse.Namespace) -> int:
    from jobs import machine, site_new

    folder = site_new.write_profile(arguments.name, machine.read_machine(), arguments.partition)
    print(f"{folder}: written; see {folder / 'README.md'} for what is yours to fill in")
    return 0


def show_status(arguments: argparse.Namespace) -> int:
    import json

    from jobs import watch

    rows = watch.overview(arguments.folders, arguments.folder)
    if arguments.json:
        print(json.dumps([watch.record(row) for row in rows], indent=1))
        return 0
    from rich.console import Console
    from rich.table import Column, Table

    heading, *body = watch.table(rows)
    columns = [Column(word, overflow="fold") for word in heading]  # in a narrow terminal too nothing is cut off
    table = Table(*columns, box=None, pad_edge=False)
    for cells in body:
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else 400  # a file or a pipe has no edge to break lines at
    Console(width=width, highlight=False, markup=False).print(table)
    return 0


def show_logs(arguments: argparse.Namespace) -> int:
    from jobs import watch

    try:
        run = watch.find_run(arguments.run, Path("results"))
        for text in watch.log_text(run, arguments.follow, arguments.rank):
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        pass
    return 0


def cancel_runs(arguments: argparse.Namespace) -> int:
    from jobs import watch

    runs = [watch.find_run(name, Path("results")) for name in arguments.runs]
    for job in watch.cancel(runs, arguments.folder):
        print(f"{watch.run_of(job)}: asked {job.scheduler} to end job {job.job_id}")
    return 0


COMMANDS = {
    "launch": run_launch,
    "tune": run_tune,
    "site": run_site,
    "status": show_status,
    "logs": show_logs,
    "cancel": cancel_runs,
}


def main() -> int:
    """Returns the exit code: that of the ranks for `launch`; 2 when the user's input is wrong."""
    arguments = build_parser().parse_args()
    try:
        code = COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"jobs: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `jobs logs RUN | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still wants to write
        return 1


if __name__ == "__main__":
    sys.exit(main())
