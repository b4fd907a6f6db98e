"""`neox train`: trains a model, or goes on from its latest checkpoint."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "train a model in a run directory, going on from its latest checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run directory, the configuration and the deadline."""
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="everything of the run is kept here")
    parser.add_argument("config", nargs="+", metavar="FILE|key=value", help="configuration, merged left to right")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="then save and exit with 85")


def run(args: argparse.Namespace) -> int:
    """Exit codes: 0 finished; 85 state saved, run again (SIGUSR1, SIGUSR2, SIGTERM or --stop-after).

    What the user got wrong is found before torch is loaded and before anything is written.
    """
    from neox.checkpoint.mirror import copy_all, mirror_of
    from neox.checkpoint.start import starting_point
    from neox.config.derive import resolve
    from neox.config.errors import UserError
    from neox.config.load import load_config, parse_arguments
    from neox.data.parts import plan_parts
    from neox.train.directory import RunDirectory
    from neox.train.stop import StopRequest
    from neox.train.tracker import check_tracker

    stop = StopRequest(args.stop_after)
    files, overrides = parse_arguments(args.config)
    config = resolve(load_config(files, overrides), world_size())
    if config.data.path is None and not config.data.train_paths:
        raise UserError("data.path or data.train_paths is required: the prefix of PREFIX.bin and PREFIX.idx")
    check_tracker(config.log)
    directory = RunDirectory(args.run_dir)
    step = directory.check(config)
    if step is not None and step >= config.train.steps:
        if os.environ.get("RANK", "0") == "0":
            if not directory.summary.is_file():
                directory.write_summary()
            if target := mirror_of(config.checkpoint, directory.folder):
                copy_all(directory.store, target, config.checkpoint)
            print(f"finished already: step {step} of {config.train.steps}; {directory.summary}")
        return 0
    if step is None:
        starting_point(config)
    parts = plan_parts(config, directory.saved_state(step))
    from neox.train.kernels import chosen_attention
    from neox.train.run import train

    with chosen_attention(config.train):
        return train(config, directory, parts, stop, files, overrides)


def world_size() -> int:
    """How many ranks the launcher started."""
    from neox.config.errors import UserError

    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or text == "0":
        raise UserError(f"environment: WORLD_SIZE = {text!r} must be a positive number of ranks")
    return int(text)
