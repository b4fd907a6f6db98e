"""`neox plan`: parameters, memory and cost of a run, before anything is queued."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neox.config.schema import Config

HELP = "print layout, memory, step time and node-hours of a run before it is queued"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the configuration and the machine's shape and speed."""
    parser.add_argument("config", nargs="+", metavar="FILE|key=value", help="configuration, merged left to right")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="ranks in all (default 1)")
    parser.add_argument("--ranks-per-node", type=int, default=8, metavar="N", help="ranks on a node (default 8)")
    parser.add_argument("--rank-tflops", type=float, metavar="T", help="peak of one rank in 10¹² FLOP/s; adds the cost")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached (default 0.4)")


def run(args: argparse.Namespace) -> int:
    """Prints the plan, one quantity a line."""
    from neox.config.derive import num_parameters, resolve
    from neox.config.flops import flops_per_token
    from neox.config.load import load_config, parse_arguments
    from neox.planner.memory import memory_per_rank
    from neox.planner.time import cost

    config = resolve(load_config(*parse_arguments(args.config)), args.world_size)
    parallel, train, memory = config.parallel, config.train, memory_per_rank(config)
    rows = [
        ("parameters", f"{num_parameters(config.model):,}"),
        ("layout", f"dp {parallel.dp} × tp {parallel.tp} × pp {parallel.pp} = {args.world_size} ranks"),
        ("batch", f"{train.global_batch_size} = {train.micro_batch_size} × {train.grad_accum} × {parallel.dp} samples"),
        *warmup_rows(config),
        ("FLOPs per token", f"{flops_per_token(config.model):,}"),
        ("memory per rank", f"{memory.total / 2**30:.2f} GiB"),
    ]
    parts = ("weights", "gradients", "optimizer", "activations", "buffers")
    rows += [(f"  {part}", f"{getattr(memory, part) / 2**30:.2f} GiB") for part in parts]
    rows.append(("host memory", f"{memory.host / 2**30:.2f} GiB more per rank: a checkpoint, and what is offloaded"))
    if args.rank_tflops:
        total = cost(config, args.world_size, args.ranks_per_node, args.rank_tflops, args.mfu)
        rows += [
            ("tokens", f"{total.tokens:,}"),
            ("step time", f"{total.step_s:.3f} s at MFU {args.mfu}"),
            ("wall time", f"{total.wall_h:.2f} h"),
            ("node-hours", f"{total.node_hours:.1f}"),
        ]
    print("\n".join(f"{name:<18}{value}" for name, value in rows))
    return 0


def warmup_rows(config: Config) -> list[tuple[str, str]]:
    """How many steps and tokens the warm-up of batch and length takes; nothing where there is none."""
    from neox.config.warmup import phases

    *before, last = phases(config)
    if not before:
        return []
    num_steps = sum(steps for steps, _, _ in before)
    tokens = sum(steps * samples * length for steps, samples, length in before)
    _, samples, length = before[0]
    until = f"{last[1]} samples of {last[2]} tokens"
    return [("warm-up", f"{samples} samples of {length} to {until} in {num_steps:,} steps, {tokens:,} tokens")]
