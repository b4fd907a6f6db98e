"""The engine in a process of its own, without a launcher; and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neox.config.errors import UserError
from neox.parallel import groups
from neox.parallel.module import check_precision
from tests.parallel.training import Case

SCRIPT = """
from tests.parallel.training import STEPS, Case, run_case
assert len(run_case(Case("1 rank"))["losses"]) == STEPS
"""


def test_one_process_needs_no_launcher_and_says_nothing() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in groups.VARIABLES}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in groups.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not"):
        groups.initialize()


def test_a_rank_that_is_shown_one_gpu_is_told_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in groups.VARIABLES:
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"LOCAL_RANK = 3, but this rank sees 1 GPU; .* must be 0"):
        groups.initialize()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do fp16")
def test_fp16_needs_a_gpu() -> None:
    config = Case("", precision="fp16").config()
    with pytest.raises(UserError, match=r"train\.precision = fp16 needs a GPU"):
        check_precision(config)


def test_tied_fp16_across_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = Case("", precision="fp16", pp=2).config()
    check_precision(config)
    tied = dataclasses.replace(config, model=dataclasses.replace(config.model, tie_embeddings=True))
    with pytest.raises(UserError, match=r"tie_embeddings and parallel\.pp > 1"):
        check_precision(tied)
