"""A run that was saved at one layout goes on at any other with the losses it would have had, through the real store.

Dropout is on, and attention keeps documents apart.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.store import Store
from tests.distributed import run_ranks
from tests.train.launch import VOCAB, steps_of, write_config

SAVED, STEPS, END = 6, 12, 7
OVERRIDES = ["model.num_layers=4", f"train.steps={STEPS}", f"checkpoint.interval={SAVED}", "checkpoint.steps=[]"]
OVERRIDES += ["train.micro_batch_size=1", "train.valid_interval=0", "log.tensorboard=false"]
OVERRIDES += ["model.hidden_dropout=0.1", "model.attention_dropout=0.1", "data.mask_documents=true"]
OVERRIDES += ["data.reset_positions=true", "data.mask_eod=true"]
MOVES = {
    "dp2 pp2": {"dp": 2, "tp": 1, "pp": 2},
    "tp2 dp2": {"dp": 2, "tp": 2, "pp": 1},
    "pp4": {"dp": 1, "tp": 1, "pp": 4},
    "dp4": {"dp": 4, "tp": 1, "pp": 1},
    "1 rank": {"dp": 1, "tp": 1, "pp": 1},
}


def train_all(config: Path, names: list[str]) -> None:
    """Trains "whole" at dp2 × pp2, or goes on from its checkpoint of SAVED at the layouts `names`, on these ranks."""
    from neox.config.derive import resolve
    from neox.config.load import load_config
    from neox.data.parts import plan_parts
    from neox.parallel.engine import Engine
    from neox.train.directory import RunDirectory
    from neox.train.loop import train
    from neox.train.stop import StopRequest

    Engine.close = lambda engine: None  # type: ignore[method-assign]  # the next run needs the process group
    for name in names:
        layout = MOVES.get(name, MOVES["dp2 pp2"])
        tokenizer = f"data.tokenizer={config.parent / 'vocab.json'}"
        overrides = [*OVERRIDES, tokenizer, *(f"parallel.{axis}={size}" for axis, size in layout.items())]
        cfg = resolve(load_config([config], overrides), math.prod(layout.values()))
        run = RunDirectory(config.parent / name)
        if name in MOVES and os.environ["RANK"] == "0":
            source = Store(config.parent / "whole" / "checkpoints").path(SAVED)
            shutil.copytree(source, run.store.path(SAVED))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        assert train(cfg, run, plan_parts(cfg, run.saved_state(run.check(cfg))), StopRequest()) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a run directory per layout, and "whole"."""
    config = write_config(tmp_path_factory.mktemp("moves"))
    vocabulary = {"<|endoftext|>": END, "last": VOCAB - 1}
    (config.parent / "vocab.json").write_text(json.dumps(vocabulary))
    run_ranks(train_all, 4, config, ["whole", *(name for name in MOVES if name != "1 rank")])
    run_ranks(train_all, 1, config, ["1 rank"])
    return config.parent


@pytest.mark.parametrize("name", MOVES)
def test_losses_after_a_move_are_the_uninterrupted_ones(root: Path, name: str) -> None:
    whole, moved = ({r["step"]: r["loss"] for r in steps_of(root / run)} for run in ("whole", name))
    assert list(moved) == list(range(SAVED + 1, STEPS + 1)) and len(whole) == STEPS
    exact = name == "dp2 pp2"
    assert moved == {step: whole[step] if exact else pytest.approx(whole[step], abs=1e-6) for step in moved}


def test_same_layout_ends_with_the_same_bits(root: Path) -> None:
    final = [Store(root / run / "checkpoints").path(STEPS) for run in ("whole", "dp2 pp2")]
    whole, moved = (TensorReader(path) for path in final)
    assert whole.manifest.tensors() == moved.manifest.tensors()
    assert all(torch.equal(whole.read(*key), moved.read(*key)) for key in whole.manifest.tensors())
