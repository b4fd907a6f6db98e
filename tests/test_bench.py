"""`neox bench`: the messages of a step by arithmetic, and their times on real ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neox.bench.messages import Message, curve, parse_message, step_messages
from neox.config.derive import resolve
from neox.config.errors import UserError
from neox.config.load import from_dict
from neox.config.schema import Config

LOCAL = Path(__file__).parents[1] / "site_configs" / "local"
SHAPE = {"num_layers": 6, "hidden_size": 64, "num_heads": 4, "seq_length": 128, "vocab_size": 512}
EVERY = [f"{operation}:world:4096" for operation in ("all_gather", "reduce_scatter", "all_to_all", "send_recv")]


def config(world_size: int, precision: str = "bf16", **parallel: object) -> Config:
    train = {"micro_batch_size": 2, "grad_accum": 3, "precision": precision}
    return resolve(from_dict({"model": SHAPE, "train": train, "parallel": parallel}), world_size)


def test_messages_of_a_step() -> None:
    activations = 2 * 128 * 64 * 2  # samples × tokens × hidden × bytes
    found = step_messages(config(8, dp=2, tp=2, pp=2))
    reduced, gathered, tensor, pipe = found
    assert (reduced.operation, reduced.axis, reduced.count) == ("all_reduce", "data", 1)
    assert reduced.num_bytes == 2 * gathered.num_bytes  # fp32 gradients, bf16 weights
    assert tensor == Message("all_reduce", "tensor", activations, (1 + 2) * 3 * 3)  # 3 blocks, 3 micro-batches
    assert pipe == Message("send_recv", "pipe", activations, 2 * 3)
    assert step_messages(config(1)) == []
    shared = step_messages(config(2, tp=2, sequence_parallel=True))
    assert [(m.operation, m.count) for m in shared] == [("all_gather", 5 * 18), ("reduce_scatter", 3 * 18)]
    zero_3 = step_messages(config(2, dp=2, zero_stage=3))
    assert [(m.operation, m.count) for m in zero_3] == [("reduce_scatter", 3), ("all_gather", 6)]


def test_curve_reaches_the_largest_of_each_kind() -> None:
    sizes = [m.num_bytes for m in curve([parse_message("all_reduce:data:5000"), parse_message("all_reduce:data:9:2")])]
    assert sizes == [1024, 4096, 5000]


@pytest.mark.parametrize("text", ["all_reduce:data", "reduce:data:8", "all_reduce:rows:8", "all_reduce:data:0"])
def test_wrong_message_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must be OPERATION:AXIS:BYTES"):
        parse_message(text)


@pytest.mark.parametrize(
    ("site", "backend", "program"), [("site.yaml", "torch", "bash"), ("openmpi.yaml", "mpi", "mpirun.openmpi")]
)
def test_every_operation_is_timed_on_two_ranks(tmp_path: Path, site: str, backend: str, program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").symlink_to(shutil.which(program) or "")  # beside MPICH, mpirun may be either
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": SHAPE, "train": {"micro_batch_size": 1}}))
    messages = [word for text in [*EVERY, "all_reduce:tensor:65536:5"] for word in ("--message", text)]
    bench = ["neox", "bench", "model.yaml", "parallel.tp=2", "train.grad_accum=1", "--backend", backend, *messages]
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "launch", "--site", LOCAL / site, "--", *bench, "--output", "times.json"],
        cwd=tmp_path,
        env={**os.environ, **allowed, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    times = json.loads((tmp_path / "times.json").read_text())
    rows = {(row["operation"], row["axis"]): row for row in times["messages"]}
    assert len(rows) == 5 and all(row["seconds"] > 0 for row in rows.values())
    assert times["step_s"] == pytest.approx(sum(row["seconds"] * row["count"] for row in rows.values()))
