"""`neox bench`: times the collectives of a training step on the ranks that run it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neox.bench.measure import Carrier
    from neox.parallel.topology import Topology

HELP = "time the collectives that a training step issues, on the ranks of a launch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the configuration, which gives layout and sizes, and what carries the messages."""
    parser.add_argument("config", nargs="+", metavar="FILE|key=value", help="configuration, merged left to right")
    parser.add_argument(
        "--backend", choices=["torch", "mpi"], default="torch", help="torch.distributed, or MPI by mpi4py"
    )
    parser.add_argument(
        "--message",
        action="append",
        default=[],
        metavar="OPERATION:AXIS:BYTES[:COUNT]",
        help="time these instead of the step's own, e.g. all_to_all:world:1048576:8",
    )
    parser.add_argument("--curve", action="store_true", help="time smaller sizes of the same messages too")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the times as JSON instead of printing them")


def run(args: argparse.Namespace) -> int:
    """Prints a table on the first rank."""
    from neox.bench.measure import measure
    from neox.bench.messages import curve, parse_message, step_messages
    from neox.commands.train import world_size
    from neox.config.derive import resolve
    from neox.config.errors import UserError
    from neox.config.load import load_config, parse_arguments
    from neox.data.durable import write_json
    from neox.parallel.topology import Topology

    config = resolve(load_config(*parse_arguments(args.config)), world_size())
    messages = [parse_message(text) for text in args.message] or step_messages(config)
    if not messages:
        raise UserError("one rank sends no messages: start more with `jobs launch`, or name some with --message")
    parallel = config.parallel
    assert parallel.dp is not None
    carrier = make_carrier(args.backend, Topology(parallel.dp, parallel.tp, parallel.pp))
    times = measure(carrier, curve(messages) if args.curve else messages)
    carrier.close()
    if carrier.rank == 0 and args.output:
        write_json(args.output, times)
    elif carrier.rank == 0:
        print(table(times), flush=True)
    return 0


def make_carrier(backend: str, topology: Topology) -> Carrier:
    """What carries the messages. Raises UserError without an MPI library, or with another number of ranks."""
    from neox.config.errors import UserError

    if backend == "torch":
        from neox.bench.distributed import DistributedCarrier

        return DistributedCarrier(topology)
    try:
        from neox.bench.mpi import MpiCarrier
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--backend mpi: mpi4py cannot load the MPI library of these ranks: {error}") from None
    return MpiCarrier(topology)


def table(times: dict[str, Any]) -> str:
    """One row per message: time, and the rate of the bytes that one rank gives."""
    lines = [f"{'operation':<16}{'group':<8}{'bytes':>14}{'a step':>8}{'ms':>12}{'GB/s':>9}"]
    for row in times["messages"]:
        rate = row["num_bytes"] / row["seconds"] / 1e9
        lines.append(
            f"{row['operation']:<16}{row['axis']:<8}{row['num_bytes']:>14,}{row['count']:>8}"
            f"{1e3 * row['seconds']:>12.3f}{rate:>9.3f}"
        )
    return "\n".join([*lines, f"in a step: {1e3 * times['step_s']:.1f} ms"])
