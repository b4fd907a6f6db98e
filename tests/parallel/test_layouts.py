"""Every layout trains as one device does: losses, gradients and norms, through the real engine on gloo."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from neox.config.schema import ModelConfig
from neox.model.gpt import piece_names
from neox.parallel.feed import Feed
from neox.parallel.groups import TensorGroup
from neox.parallel.pipeline import StageLayer
from neox.parallel.whole import WholeModel
from tests.distributed import run_ranks
from tests.parallel.training import (
    ALIBI,
    BARE,
    DROPPED,
    GEMMA,
    GLOBAL_BATCH,
    LEARNED,
    LLAMA,
    MULTI_QUERY,
    NEOX,
    NOISE_STEPS,
    RELATIVE,
    SAVE_STEP,
    TIED,
    Case,
    Run,
    assemble,
    plain_run,
    run_cases,
    run_overflow,
)

TWO_RANKS = [
    Case("dp2", dp=2, save="dp2"),
    Case("pp2", pp=2, save="pp2"),
    Case("tp2", tp=2, save="tp2"),
    Case("pp2 uniform", pp=2, partition="uniform", recompute="selective"),
    Case("pp2 tied", pp=2, model=TIED, save="pp2 tied"),
    Case("tp2 tied", tp=2, model=TIED, load="pp2 tied"),
    Case("tp2 llama", tp=2, model=LLAMA),
    Case("dp2 again", dp=2, load="dp2"),
    Case("dp2 zero2 offload", dp=2, zero=2, offload="optimizer"),
    Case("dp2 zero2 from tp2", dp=2, zero=2, load="tp2"),
    Case("dp2 zero3", dp=2, zero=3, save="dp2 zero3"),
    Case("dp2 zero3 again", dp=2, zero=3, load="dp2 zero3"),
    Case("dp2 zero3 offload tied", dp=2, zero=3, offload="parameters", model=TIED),
    Case("tp2 from pp2", tp=2, load="pp2"),
    Case("pp2 from dp2 zero3", pp=2, load="dp2 zero3"),
    Case("tp2 bf16", tp=2, precision="bf16", save="tp2 bf16"),
    Case("tp2 bf16 again", tp=2, precision="bf16", load="tp2 bf16"),
    Case("dp2 zero2 bf16", dp=2, zero=2, precision="bf16"),
    Case("dp2 zero2 offload bf16", dp=2, zero=2, offload="optimizer", precision="bf16"),
    Case("dp2 zero3 bf16 from tp2", dp=2, zero=3, precision="bf16", load="tp2 bf16"),
    Case("pp2 tied bf16", pp=2, model=TIED, precision="bf16"),
    Case("pp2 fp16", pp=2, precision="fp16", save="pp2 fp16"),
    Case("tp2 gemma", tp=2, model=GEMMA),
    Case("tp2 alibi", tp=2, model=ALIBI),
    Case("tp2 mqa", tp=2, model=MULTI_QUERY, save="tp2 mqa"),
    Case("tp2 t5", tp=2, model=RELATIVE),
    Case("tp2 sequence", tp=2, sequence=True, save="tp2 sequence"),
    Case("tp2 sequence again", tp=2, sequence=True, load="tp2 sequence"),
    Case("tp2 sequence gemma", tp=2, sequence=True, model=GEMMA, recompute="selective"),
    Case("tp2 sequence alibi", tp=2, sequence=True, model=ALIBI, recompute="full"),
    Case("tp2 sequence mqa", tp=2, sequence=True, model=MULTI_QUERY, recompute="selective"),
    Case("tp2 sequence learned", tp=2, sequence=True, model=LEARNED),
    Case("tp2 sequence bf16", tp=2, sequence=True, precision="bf16"),
    Case("pp2 t5", pp=2, model=RELATIVE),
    Case("pp2 learned", pp=2, model=LEARNED),
    Case("tp2 sequence bare", tp=2, sequence=True, model=BARE),
    Case("pp2 fp16 again", pp=2, precision="fp16", load="pp2 fp16"),
    Case("tp2 fp16 from pp2", tp=2, precision="fp16", load="pp2 fp16"),
    Case("pp2 dropped", pp=2, model=DROPPED, recompute="selective", save="pp2 dropped"),
    Case("pp2 dropped again", pp=2, model=DROPPED, recompute="selective", load="pp2 dropped"),
    Case("tp2 dropped from pp2", tp=2, model=DROPPED, load="pp2 dropped"),
    Case("tp2 sequence dropped from pp2", tp=2, sequence=True, model=DROPPED, load="pp2 dropped"),
    Case("dp2 dropped, one by one", dp=2, model=DROPPED, micro_batch=1),
    Case("tp2 dropped bf16", tp=2, model=DROPPED, precision="bf16"),
    Case("pp2 dropped bf16", pp=2, model=DROPPED, precision="bf16"),
    Case("dp2 zero3 dropped", dp=2, zero=3, model=DROPPED, micro_batch=1),
]
FOUR_RANKS = [
    Case("dp2 pp2", dp=2, pp=2, save="dp2 pp2"),
    Case("tp2 pp2", tp=2, pp=2, save="tp2 pp2"),
    Case("dp2 tp2 zero2 from pp2", dp=2, tp=2, zero=2, load="pp2"),
    Case("dp2 tp2", dp=2, tp=2),
    Case("dp2 tp2 zero3", dp=2, tp=2, zero=3, recompute="selective"),
    Case("dp2 pp2 from tp2 pp2", dp=2, pp=2, load="tp2 pp2"),
    Case("tp2 pp2 again", tp=2, pp=2, load="tp2 pp2"),
    Case("tp2 pp2 tied", tp=2, pp=2, model=TIED),
    Case("pp4 llama", pp=4, model=LLAMA),
    Case("tp2 pp2 gemma", tp=2, pp=2, model=GEMMA),
    Case("tp2 pp2 learned", tp=2, pp=2, model=LEARNED),
    Case("pp4 dropped", pp=4, model=DROPPED, recompute="full"),
    Case("tp4 mqa", tp=4, model=MULTI_QUERY, load="tp2 mqa"),
    Case("tp4 two kv heads", tp=4, model=GEMMA, save="tp4 two kv heads"),
    Case("dp2 tp2 zero3 from tp4", dp=2, tp=2, zero=3, sequence=True, model=GEMMA, load="tp4 two kv heads"),
    Case("tp4 sequence alibi", tp=4, sequence=True, model=ALIBI),
    Case(
        "tp2 pp2 sequence tied",
        partition="type:transformer|mlp",
        tp=2,
        pp=2,
        sequence=True,
        model=TIED,
        recompute="selective",
    ),
    Case("dp2 pp2 bf16", dp=2, pp=2, precision="bf16"),
]
EIGHT_RANKS = [
    Case("dp2 tp2 pp2", dp=2, tp=2, pp=2, recompute="full"),
    Case("dp2 tp2 pp2 dropped", dp=2, tp=2, pp=2, sequence=True, model=DROPPED),
]
ONE_RANK = [
    Case("1 rank"),
    Case("1 rank dropped, four by four", model=DROPPED, micro_batch=4),
    Case("1 rank from tp2 pp2", load="tp2 pp2"),
    Case("1 rank bf16", precision="bf16"),
]
CASES = [*TWO_RANKS, *FOUR_RANKS, *EIGHT_RANKS, *ONE_RANK]
FP32 = [case.name for case in CASES if case.precision == "fp32"]
HALF = [case.name for case in CASES if case.precision != "fp32"]
WHOLE = [case.name for case in CASES if case.load is None]


@cache
def reference(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Run:
    torch.set_num_threads(1)
    return plain_run(model, dtype)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Name of the case → what each rank recorded. One launch per world size: starting a rank takes seconds."""
    folder = tmp_path_factory.mktemp("pieces")
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for world_size, cases in ((2, TWO_RANKS), (4, FOUR_RANKS), (8, EIGHT_RANKS), (1, ONE_RANK)):
        placed = [_with_folder(case, folder) for case in cases]
        by_rank = run_ranks(run_cases, world_size, placed, timeout_s=900)
        outcomes |= {case.name: [outs[i] for outs in by_rank] for i, case in enumerate(cases)}
    return outcomes


def _with_folder(case: Case, folder: Path) -> Case:
    load = None if case.load is None else str(folder / f"{case.load}.npz")
    save = None if case.save is None else str(folder / f"{case.save}.npz")
    return dataclasses.replace(case, load=load, save=save)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def pieces_of(ranks: list[dict[str, Any]], moment: str) -> dict[tuple[str, str], torch.Tensor]:
    return assemble([piece for rank in ranks for piece in rank[moment]])


def largest_difference(got: list[float], want: list[float]) -> float:
    assert len(got) == len(want)
    return max(abs(a - b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_every_rank_reports_the_same(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    first, *others = outcomes[name]
    for other in others:
        assert other["losses"] == first["losses"]
        assert other["grad_norms"] == first["grad_norms"]
        assert other["valid_loss"] == first["valid_loss"]


@pytest.mark.parametrize("name", FP32)
def test_losses_equal_plain_pytorch(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    case, out = case_of(name), outcomes[name][0]
    want = reference(case.model)
    start = 0 if case.load is None else SAVE_STEP
    assert largest_difference(out["losses"], want.losses[start:]) < 1e-5
    assert largest_difference(out["grad_norms"], want.grad_norms[start:]) < 2e-5
    assert abs(out["valid_loss"] - want.valid_loss) < 1e-5


@pytest.mark.parametrize("name", [name for name in FP32 if name in WHOLE])
def test_gradients_and_weights_equal_plain_pytorch(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    """After one step the first moment is a tenth of the clipped gradient, so this compares every gradient.

    Weights are compared where there is a gradient: the key's bias has none but rounding, which Adam blows up.
    """
    want = reference(case_of(name).model)
    for moment, state, allowed in (("first", want.first, 1e-5), ("saved", want.saved, 5e-5)):
        got = pieces_of(outcomes[name], moment)
        assert set(got) == set(state)
        for (kind, logical), tensor in state.items():
            difference = (got[kind, logical] - tensor).abs()
            if kind == "weight":
                difference = difference[state["exp_avg_sq", logical].sqrt() > 1e-6]
            assert float(difference.max()) <= allowed * float(tensor.abs().max()), (moment, kind, logical)


@pytest.mark.parametrize("name", FP32)
def test_gradients_of_every_tensor_and_their_noise_equal_plain_pytorch(
    outcomes: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """At each step, before clipping. The noise from the variance between the batches of a window, in plain statistics.

    The key's bias has no gradient but rounding, and what rounding leaves of zeros is not compared.
    """
    case, out = case_of(name), outcomes[name]
    start = 0 if case.load is None else SAVE_STEP
    want = reference(case.model).gradients[start:]
    for (norms, zeros), gradients in zip(out[0]["gradients"], want, strict=True):
        assert set(norms) == {f"gradient/{logical}" for logical in gradients}
        for logical, gradient in gradients.items():
            assert norms[f"gradient/{logical}"] == pytest.approx(float(gradient.norm()), rel=2e-4, abs=1e-6), logical
        assert zeros["embed.weight"] == pytest.approx(float((gradients["embed.weight"] == 0).double().mean()))
    rows = torch.stack([torch.cat([g.double().flatten() for g in each.values()]) for each in want])
    for rank in out:
        assert compare_noise(rank["noise"], rows)


def compare_noise(noise: list[dict[str, float] | None], gradients: torch.Tensor) -> bool:
    """Whether the findings of each step are those of the windows of `gradients` [steps, parameters] so far."""
    weights, parts = [], []
    for first in range(0, len(gradients), NOISE_STEPS):
        window = gradients[first : first + NOISE_STEPS]
        variance = float(window.var(dim=0).sum())  # of a batch's gradient
        parts.append((GLOBAL_BATCH * variance, float(window.mean(0).square().sum()) - variance / NOISE_STEPS))
        weights = [0.99 * weight for weight in weights] + [1.0]
        found = noise[first + NOISE_STEPS - 1]
        assert found is not None and noise[first : first + NOISE_STEPS - 1] == [None] * (NOISE_STEPS - 1)
        want = (torch.tensor(weights) @ torch.tensor(parts) / sum(weights)).tolist()
        assert [found["gradient_variance"], found["gradient_square"]] == pytest.approx(want, rel=1e-4)
        scale = want[0] / want[1] if want[1] > 0 else math.inf
        assert found["noise_scale"] == pytest.approx(scale, rel=1e-3)
    return True


@pytest.mark.parametrize("name", WHOLE)
def test_initial_pieces_are_the_initial_weights_and_zero_moments(
    outcomes: dict[str, list[dict[str, Any]]], name: str
) -> None:
    got = pieces_of(outcomes[name], "initial")
    want = pieces_of(outcomes["1 rank"], "initial") if case_of(name).model == NEOX else None
    for (kind, logical), tensor in got.items():
        if kind != "weight":
            assert not tensor.any()
        elif want is not None and case_of(name).precision == "fp32":
            assert torch.equal(tensor, want[kind, logical])


@pytest.mark.parametrize("name", HALF)
def test_16_bits_equal_plain_16_bits_with_fp32_masters(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Within rounding: tensor parallelism sums partial products in 16 bits in another order."""
    case, out = case_of(name), outcomes[name][0]
    start = 0 if case.load is None else SAVE_STEP
    dtype, allowed = (torch.bfloat16, 5e-3) if case.precision == "bf16" else (torch.float16, 6e-4)
    want = reference(case.model, dtype)
    assert largest_difference(out["losses"], want.losses[start:]) < allowed
    assert largest_difference(out["grad_norms"], want.grad_norms[start:]) < 3 * allowed
    together = [math.hypot(*norms.values()) for norms, _ in out["gradients"]]
    assert together == pytest.approx(out["grad_norms"], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in HALF if case_of(name).model != DROPPED])
def test_micro_batches_and_replicas_are_summed_in_fp32(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Summed or sent in 16 bits, gradients are 2e-3 (bf16) or 3e-4 (fp16) away; the losses above do not show it."""
    assert max(out["sum_error"] for out in outcomes[name]) < 1e-6


def test_bf16_keeps_fp32_masters(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    masters = pieces_of(outcomes["tp2 bf16"], "saved")
    weight = masters["weight", "layers.0.mlp.up.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize(
    ("again", "whole"),
    [
        ("dp2 again", "dp2"),
        ("dp2 zero3 again", "dp2 zero3"),
        ("tp2 pp2 again", "tp2 pp2"),
        ("tp2 bf16 again", "tp2 bf16"),
        ("pp2 fp16 again", "pp2 fp16"),
        ("pp2 dropped again", "pp2 dropped"),
    ],
)
def test_resuming_in_the_same_layout_is_exact(
    outcomes: dict[str, list[dict[str, Any]]], again: str, whole: str
) -> None:
    assert outcomes[again][0]["losses"] == outcomes[whole][0]["losses"][SAVE_STEP:]
    assert outcomes[again][0]["grad_norms"] == outcomes[whole][0]["grad_norms"][SAVE_STEP:]
    got, want = pieces_of(outcomes[again], "final"), pieces_of(outcomes[whole], "final")
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_zero3_keeps_no_matrix_whole_between_steps(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    masters = {name: tensor for (kind, name), tensor in reference(NEOX).saved.items() if kind == "weight"}
    vectors = sum(tensor.numel() for tensor in masters.values() if tensor.dim() == 1)
    assert [out["resident"] for out in outcomes["dp2 zero3"]] == [vectors, vectors]
    assert outcomes["dp2"][0]["resident"] == sum(tensor.numel() for tensor in masters.values())


def test_no_rank_ever_has_more_of_the_model_than_its_part(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    """Parameters in memory when the model is built."""
    whole = outcomes["1 rank"][0]["built"]
    assert [out["built"] for name in ("dp2 zero3", "dp2 tp2 zero3") for out in outcomes[name]] == [0] * 6
    assert all(out["built"] < 0.55 * whole for name in ("tp2", "pp2") for out in outcomes[name])
    assert all(out["built"] < 0.3 * whole for out in outcomes["tp2 pp2"])


def test_each_layer_is_finished_before_the_next_is_made() -> None:
    """So that ZeRO-3 deals out a layer at a time."""
    made, counts, cfg = [], [], Case("1 rank").config()
    with mock.patch("neox.parallel.whole.StageLayer", wraps=StageLayer) as layers:
        layers.side_effect = lambda *arguments: made.append(arguments[0]) or mock.DEFAULT
        WholeModel(cfg, TensorGroup(), Feed(cfg), finish=lambda layer: counts.append(len(made)))
    assert counts == [1, 2, 3, 4, 5, 6, 7] and made == piece_names(cfg.model)


def test_fp32_weights_are_their_own_masters(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("dp2", "pp2", "dp2 tp2", "1 rank"):
        assert outcomes[name][0]["masters_apart"] == 0, name
    assert outcomes["dp2 zero2 offload"][0]["masters_apart"] > 0


def test_the_optimizer_counts_its_steps(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    assert outcomes["dp2"][1]["scalars"] == {"step": SAVE_STEP}


def test_an_fp16_overflow_skips_the_step_and_lowers_the_scale() -> None:
    """With a hysteresis of two, the second overflow halves the scale."""
    out = run_ranks(run_overflow, 1, Case("overflow", precision="fp16"))[0]
    assert out["grad_norms"][:2] == [math.inf, math.inf] and 0 < out["grad_norms"][2] < 10
    assert out["scales"][:2] == [2.0**40, 2.0**39]
    assert out["steps"] == [0, 0, 1]
    initial, _, skipped, stepped = (assemble(pieces) for pieces in out["pieces"])
    assert all(torch.equal(initial[key], skipped[key]) for key in initial)
    assert not torch.equal(initial["weight", "embed.weight"], stepped["weight", "embed.weight"])


@pytest.mark.parametrize("name", ["dp2", "tp2 pp2"])
def test_ranks_agree(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    for out in outcomes[name]:
        assert out["broadcast"] == {"from": 0}
        assert (out["any_of_last"], out["any_of_none"]) == (True, False)


def test_only_the_outer_stages_read_data(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    assert [out["reads_data"] for out in outcomes["pp4 llama"]] == [True, False, False, True]
    assert all(out["reads_data"] for out in outcomes["pp4 dropped"])


def test_the_loss_falls() -> None:
    losses = reference(NEOX).losses
    assert losses[-1] < losses[0] - 0.5
