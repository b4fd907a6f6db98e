"""What flash-attn is called with, and that it is called where it can compute what is asked for and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kernels.attention import flash, sdpa
from kernels.cases import CASES, Case
from neox.__main__ import main
from tests.kernels import fake_flash_attn
from tests.kernels.test_cases import exact, run
from tests.train.launch import write_config

ATTENTION = [case for case in CASES if case.operation == "attention"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn)
    fake_flash_attn.calls.clear()
    return fake_flash_attn.calls


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.label)
def test_calls_compute_what_the_reference_does(case: Case, fake: list[str]) -> None:
    arguments = case.arguments(torch.bfloat16)
    q, k, _, bias, _, _, documents, _, rows = arguments
    for mine, truth in zip(run(flash.attention, arguments), exact(case, torch.bfloat16), strict=True):
        assert mine.shape == truth.shape
        assert float((mine - truth).abs().max()) <= 2e-2 * max(1.0, float(truth.abs().max()))
    is_continued = documents is not None and q.shape != k.shape[:1] + q.shape[1:2] + k.shape[2:]
    if rows is not None or is_continued or (bias is not None and bias.dim() == 3):
        assert fake == []
    else:
        assert fake == ["flash_attn_func" if documents is None else "flash_attn_varlen_func"]


def test_single_precision_and_wide_heads_are_left_to_pytorch(fake: list[str]) -> None:
    flash.attention(*ATTENTION[0].arguments(torch.float32))
    x = torch.randn(1, 1, 4, 264, dtype=torch.bfloat16)
    flash.attention(x, x, x, None, None, None, None, 0.0, None)
    assert fake == []


def test_a_cap_is_left_to_pytorch_on_amd_gpus(fake: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's C++ for them (csrc/flash_attn_ck/mha_fwd.cpp) has no name for its argument `softcap`."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    capped = next(case for case in ATTENTION if case.label == "a cap").arguments(torch.bfloat16)
    flash.attention(*capped)
    assert fake == []
    flash.attention(*ATTENTION[0].arguments(torch.bfloat16))
    assert fake == ["flash_attn_func"]


@pytest.mark.parametrize(("label", "is_grouped"), [("documents", False), ("groups of three queries", True)])
def test_no_groups_go_with_a_mask_on_a_gpu(label: str, is_grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PyTorch's kernels there the one that takes a mask takes no groups (check_batch_size_and_num_heads_dense in
    ATen/native/transformers/cuda/sdp_utils.cpp); the one that takes both writes all scores out."""
    seen: list[tuple[int, bool]] = []

    def see(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, enable_gqa: bool, **_: object) -> torch.Tensor:
        seen.append((k.shape[1] == v.shape[1] == q.shape[1], enable_gqa))
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", see)
    case = next(case for case in ATTENTION if case.label == label)
    sdpa.attention(*case.arguments(torch.bfloat16, "meta"))  # as on a GPU: not on the host
    sdpa.attention(*case.arguments(torch.bfloat16))
    assert seen == [(not is_grouped, is_grouped), (False, True)]


def test_what_documents_are_cut_at_is_known_before_they_go_to_a_gpu() -> None:
    """It is not known of the meta device, where nothing can be read, either."""
    documents = next(case for case in ATTENTION if case.label == "documents").arguments(torch.float32)[6]
    moved = documents.to(torch.device("meta"))
    assert moved.longest == documents.longest == 9
    assert moved.bounds.is_meta and moved.bounds.shape == documents.bounds.shape


def test_it_is_there_with_a_gpu_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not flash.is_available("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not flash.is_available("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert flash.is_available("cuda") and not flash.is_available("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have flash-attn")
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.precision=bf16"], "train.attention = flash: not to be had on this cpu; auto takes sdpa here"),
        ([], "train.attention = flash cannot do train.precision = fp32; auto takes PyTorch's operator for that"),
        (["train.precision=bf16", "model.positions=t5"], "train.attention = flash cannot do model.positions = t5; "),
        (["train.precision=bf16", "model.attention_dropout=0.1"], "cannot do model.attention_dropout = 0.1; "),
    ],
)
def test_flash_where_it_cannot_be_is_refused(
    overrides: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--run-dir", str(tmp_path / "run"), str(write_config(tmp_path)), "train.attention=flash"]
    assert main([*arguments, *overrides]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
