"""Trainings that meet a bad weight or bad data, on every rank of a process group that is used again and again."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.derive import resolve
from neox.config.load import load_config
from neox.config.schema import Config
from neox.data.indexed import IndexedWriter
from neox.data.parts import plan_parts
from neox.parallel.engine import Engine
from neox.parallel.topology import Topology
from neox.train.determinism import make_deterministic
from neox.train.directory import RunDirectory
from neox.train.run import begin
from neox.train.stop import StopRequest
from tests.train.launch import VOCAB, records

RARE = VOCAB - 1
"""A token that one short document has, once, and no other."""


@dataclass(frozen=True)
class Case:
    """One run; `copy` is a run directory to go on from, up to `copy_step`."""

    name: str
    overrides: tuple[str, ...]
    poison: bool = False
    copy: Path | None = None
    copy_step: int = 0


def write_rare(prefix: Path) -> Path:
    """Documents of strided tokens; one holds RARE."""
    generator = np.random.default_rng(3)
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for number in range(60):
            size, first, stride = generator.integers([20, 0, 1], [90, VOCAB, 4])
            tokens = (first + stride * np.arange(size)) % (VOCAB - 1)
            if number == 20:
                tokens[5] = RARE
            writer.add_items(tokens.astype(np.uint16), np.array([size]))
    return prefix


def write_noisy(prefix: Path) -> Path:
    """Documents that repeat the same two tokens, and one of noise."""
    generator = np.random.default_rng(3)
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for number in range(60):
            tokens = generator.integers(0, VOCAB, 24) if number == 30 else np.tile([3, 4], 40)
            writer.add_items(tokens.astype(np.uint16), np.array([len(tokens)]))
    return prefix


def run_cases(cases: list[Case], config: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What each case ended with, on this rank."""
    return {case.name: _run(case, config, folder / case.name) for case in cases}


def _run(case: Case, config: Path, run_dir: Path) -> dict[str, Any]:
    cfg = resolve(load_config([config], list(case.overrides)), 2)
    run = RunDirectory(run_dir)
    make_deterministic(cfg.train.seed)
    assert cfg.parallel.dp is not None
    engine = Engine(cfg, Topology(cfg.parallel.dp, cfg.parallel.tp, cfg.parallel.pp))
    if case.poison:
        poison(engine, cfg)
    if engine.rank == 0 and case.copy is not None:
        shutil.copytree(case.copy, run_dir)
        for step in run.store.steps():
            if step > case.copy_step:
                shutil.rmtree(run.store.path(step))
    engine.barrier()
    loop = begin(cfg, run, plan_parts(cfg, run.saved_state(run.store.latest())), engine)
    code = loop.run_steps(StopRequest())
    engine.barrier()
    batches = {step: loop.inputs.train.step(8 * (step - 1)) for step in range(1, 41)}
    return {
        "code": code,
        "saves_in_between": loop.passing.is_on,
        "records": records(run_dir),
        "updates": engine.optimizer_scalars()["step"],
        "samples": loop.samples,
        "bad_steps": [step for step, pairs in batches.items() if any(RARE in tokens for tokens, *_ in pairs)],
        "watch": loop.watch.state(),
    }


def poison(engine: Engine, cfg: Config) -> None:
    """One exponent bit of RARE's embedding flips: a weight of about 1e37, whose square is not finite."""
    first = RARE * cfg.model.hidden_size
    for piece in engine.pieces():
        if piece.kind == "weight" and piece.name == "embed.weight" and piece.start <= first < piece.start + piece.numel:
            piece.tensor[first - piece.start] = math.copysign(1e37, 1)
    engine._partition.update_model()
