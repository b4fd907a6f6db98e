"""`neox checkpoint`: what people and programs are told of checkpoints, intact and damaged."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch

from neox.__main__ import main
from neox.checkpoint.compare import distance
from neox.checkpoint.store import Store
from tests.checkpoint.pieces import SHAPES, full_tensors, save_at


@pytest.fixture
def run_dir(tmp_path):
    """A run directory: step 1 and 2 of the same tensors, by other layouts; step 3 with one value changed."""
    store, full = Store(tmp_path / "run" / "checkpoints"), full_tensors(7)
    save_at(store, 1, full, tp=2, dp=2)
    save_at(store, 2, full)
    full["weight", "embed.weight"][3, 1] += 0.5
    save_at(store, 3, full, dp=3)
    return tmp_path / "run"


def call(capsys, *arguments):
    code = main(["checkpoint", *map(str, arguments)])
    return code, capsys.readouterr()


def test_inspect_shows_the_latest_of_a_run(run_dir, capsys):
    code, out = call(capsys, "inspect", run_dir)
    assert code == 0
    assert re.search(r"^step +3$", out.out, re.M) and re.search(r"^parameters +181$", out.out, re.M)
    assert re.search(r"^embed\.weight +12 × 5 +exp_avg, weight$", out.out, re.M)
    code, out = call(capsys, "inspect", run_dir / "checkpoints" / "step_00000001", "--json")
    found = json.loads(out.out)
    assert (found["step"], len(found["files"])) == (1, 4)
    assert {tensor["name"]: tuple(tensor["shape"]) for tensor in found["tensors"]} == SHAPES


def test_inspect_vouches_for_no_file_that_was_cut(run_dir, capsys):
    file = run_dir / "checkpoints" / "step_00000003" / "rank_00001.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    code, out = call(capsys, "inspect", run_dir)
    damage = f"{file} is damaged: {size - 1} bytes, the manifest says {size}"
    assert (code, out.out, out.err) == (2, "", f"neox: error: {damage}\n")


def test_diff_is_of_values_whatever_the_layout(run_dir, capsys):
    one, two, three = (run_dir / "checkpoints" / f"step_0000000{step}" for step in (1, 2, 3))
    code, out = call(capsys, "diff", one, two)
    assert code == 0 and "8 of 8 tensors are equal" in out.out
    code, out = call(capsys, "diff", two, run_dir)
    relative = 0.5 / float(full_tensors(7)["weight", "embed.weight"].norm())
    assert code == 1 and re.search(rf"^embed\.weight +weight +5\.000e-01 +{relative:.3e}$", out.out, re.M)
    assert "7 of 8 tensors are equal" in out.out
    code, out = call(capsys, "diff", one, three, "--json")
    found = {(one["kind"], one["name"]): one for one in json.loads(out.out)}
    assert code == 1 and len(found) == 8
    assert [key for key, one in found.items() if one["max_abs"]] == [("weight", "embed.weight")]
    assert found["weight", "embed.weight"]["relative"] == pytest.approx(relative)


def test_diff_names_what_is_missing_or_has_another_shape(run_dir, tmp_path, capsys):
    full = full_tensors(7)
    del full["exp_avg", "deep.weight"]
    full["weight", "final_norm.weight"] = torch.ones(6)
    other = save_at(Store(tmp_path / "other"), 1, full)
    code, out = call(capsys, "diff", run_dir / "checkpoints" / "step_00000001", other)
    assert code == 1 and "6 of 8 tensors are equal" in out.out
    assert re.search(r"^deep\.weight +exp_avg +3 × 4 × 5 +missing$", out.out, re.M)
    assert re.search(r"^final_norm\.weight +weight +5 +6$", out.out, re.M)


def test_distance_of_special_values():
    nan, zero = torch.tensor([1.0, float("nan")]), torch.zeros(2)
    assert distance(nan, nan.clone()) == (0, 0) and distance(nan, zero)[0] != 0
    assert distance(zero, torch.tensor([0.0, 2.0])) == (2.0, float("inf"))


def test_verify_names_every_damaged_file_of_a_run(run_dir, capsys):
    code, out = call(capsys, "verify", run_dir)
    assert code == 0 and out.out.count(" intact\n") == 3
    folder = run_dir / "checkpoints" / "step_00000001"
    file = folder / "rank_00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 128
    file.write_bytes(data)
    (folder / "rank_00003.safetensors").unlink()
    code, out = call(capsys, "verify", run_dir)
    assert code == 1 and out.out.count(" intact\n") == 2
    assert f"{file} is damaged: its sha256 is not the manifest's\n" in out.out
    assert f"{folder}/rank_00003.safetensors is missing from the checkpoint" in out.out
    code, out = call(capsys, "verify", folder, "--json")
    found = json.loads(out.out)[str(folder)]
    assert code == 1 and [name for name, damage in found.items() if damage] == [file.name, "rank_00003.safetensors"]
    assert call(capsys, "verify", run_dir / "checkpoints" / "step_00000002")[0] == 0


def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys):
    for action in ("inspect", "verify"):
        code, out = call(capsys, action, tmp_path)
        assert (
            code == 2
            and out.err == f"neox: error: {tmp_path} is neither a checkpoint nor a run directory that holds one\n"
        )
