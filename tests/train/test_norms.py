"""Norms of a run's tensors against those of its checkpoint, whole tensors that know no layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neox.checkpoint.reshard import TensorReader
from tests.train.launch import Launch, records, write_config

LAYOUTS = {"dp2": (), "tp2": ("parallel.tp=2",), "pp2": ("parallel.pp=2", "model.tie_embeddings=true")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories by layout, of 5 steps on 2 ranks."""
    config, folder = write_config(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs")
    common = (config, "train.steps=5", "train.valid_interval=0", "log.tensorboard=false", "log.state_norms_interval=5")
    launches = {name: Launch(folder / name, *common, *LAYOUTS[name], world_size=2) for name in LAYOUTS}
    for launch in launches.values():
        assert launch.wait() == [0, 0], launch.output
    return {name: launch.run_dir for name, launch in launches.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_are_those_of_the_whole_tensors(runs: dict[str, Path], layout: str) -> None:
    measured = [record for record in records(runs[layout]) if "norms" in record]
    assert [record["step"] for record in measured] == [5]
    norms, reader = measured[0]["norms"], TensorReader(runs[layout] / "checkpoints" / "step_00000005")
    saved = set(reader.manifest.tensors())
    assert set(norms) == {f"{kind}/{name}" for kind, name in saved}
    for kind, name in saved:
        expected = float(torch.as_tensor(reader.read(kind, name)).double().norm())
        assert norms[f"{kind}/{name}"] == pytest.approx(expected, rel=1e-9), name
    assert norms["exp_avg/embed.weight"] > 0
