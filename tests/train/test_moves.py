"""A run that was saved at one layout goes on at any other with the losses it would have had, through the real store.

Dropout is on, and attention keeps documents apart.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.store import Store
from tests.distributed import run_ranks
from tests.train.launch import VOCAB, steps_of, write_config

SAVED, LATER, STEPS, END = 6, 9, 12, 7
OVERRIDES = ["model.num_layers=4", f"train.steps={STEPS}", "checkpoint.interval=3", "checkpoint.steps=[]"]
OVERRIDES += ["train.micro_batch_size=1", "train.valid_interval=0", "log.tensorboard=false"]
OVERRIDES += ["model.hidden_dropout=0.1", "model.attention_dropout=0.1", "data.mask_documents=true"]
OVERRIDES += ["data.reset_positions=true", "data.mask_eod=true"]


@dataclass(frozen=True)
class Move:
    """A run at a layout, which goes on from the checkpoint of step `saved` of the run `origin`."""

    dp: int
    tp: int
    pp: int
    zero_stage: int = 1
    origin: str = "whole"
    saved: int = SAVED

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp

    def overrides(self) -> list[str]:
        return [f"parallel.{axis}={getattr(self, axis)}" for axis in ("dp", "tp", "pp", "zero_stage")]


WHOLE = Move(dp=2, tp=1, pp=2)
MOVES = {
    "dp2 pp2": WHOLE,
    "tp2 dp2": Move(dp=2, tp=2, pp=1),
    "pp4": Move(dp=1, tp=1, pp=4),
    "dp4": Move(dp=4, tp=1, pp=1, zero_stage=2),
    "zero3 dp2": Move(dp=2, tp=1, pp=1, zero_stage=3),
    "1 rank": Move(dp=1, tp=1, pp=1),
    "1 rank from zero3": Move(dp=1, tp=1, pp=1, origin="zero3 dp2", saved=LATER),
}


def train_all(config: Path, names: list[str]) -> None:
    """Trains "whole" at dp2 × pp2 from the beginning, and the moves of these names, on these ranks."""
    from neox.config.derive import resolve
    from neox.config.load import load_config
    from neox.data.parts import plan_parts
    from neox.parallel.engine import Engine
    from neox.train.directory import RunDirectory
    from neox.train.run import train
    from neox.train.stop import StopRequest

    Engine.close = lambda engine: None  # type: ignore[method-assign]  # the next run needs the process group
    for name in names:
        move = MOVES.get(name, WHOLE)
        tokenizer = f"data.tokenizer={config.parent / 'vocab.json'}"
        cfg = resolve(load_config([config], [*OVERRIDES, tokenizer, *move.overrides()]), move.world_size)
        run = RunDirectory(config.parent / name)
        if name in MOVES and os.environ["RANK"] == "0":
            source = Store(config.parent / move.origin / "checkpoints").path(move.saved)
            shutil.copytree(source, run.store.path(move.saved))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        assert train(cfg, run, plan_parts(cfg, run.saved_state(run.check(cfg))), StopRequest()) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a run directory per layout, and "whole"."""
    config = write_config(tmp_path_factory.mktemp("moves"))
    vocabulary = {"<|endoftext|>": END, "last": VOCAB - 1}
    (config.parent / "vocab.json").write_text(json.dumps(vocabulary))
    for world_size in (4, 2, 1):
        moves = [name for name, move in MOVES.items() if move.world_size == world_size]
        run_ranks(train_all, world_size, config, ["whole", *moves] if world_size == 4 else moves)
    return config.parent


@pytest.mark.parametrize("name", MOVES)
def test_losses_after_a_move_are_the_uninterrupted_ones(root: Path, name: str) -> None:
    whole, moved = ({r["step"]: r["loss"] for r in steps_of(root / run)} for run in ("whole", name))
    assert list(moved) == list(range(MOVES[name].saved + 1, STEPS + 1)) and len(whole) == STEPS
    exact = name == "dp2 pp2"
    assert moved == {step: whole[step] if exact else pytest.approx(whole[step], abs=1e-6) for step in moved}


def test_same_layout_ends_with_the_same_bits(root: Path) -> None:
    final = [Store(root / run / "checkpoints").path(STEPS) for run in ("whole", "dp2 pp2")]
    whole, moved = (TensorReader(path) for path in final)
    assert whole.manifest.tensors() == moved.manifest.tensors()
    assert all(torch.equal(whole.read(*key), moved.read(*key)) for key in whole.manifest.tensors())
