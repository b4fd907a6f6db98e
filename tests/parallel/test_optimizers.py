"""Every optimizer through the engine, at dp2 and tp2, against a single process with an independent implementation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, get_args, get_type_hints
from unittest import mock

import pytest
import torch

from neox.config.optimizers import OPTIMIZERS, REFUSED, WHOLE
from neox.config.schema import ModelConfig, OptimConfig
from neox.parallel import adamw8bit
from neox.parallel.adamw8bit import Quantized, values
from neox.parallel.optimizer import BUILDERS, create_state, split
from tests.distributed import run_ranks
from tests.parallel.training import (
    CLIP,
    NEOX,
    SAVE_STEP,
    TIED,
    Case,
    Run,
    assemble,
    plain_adamw,
    plain_run,
    run_cases,
)

Groups = list[dict[str, Any]]


class PaperLion(torch.optim.Optimizer):
    """Program 1 of the paper, one tensor at a time."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                c = 0.9 * m + (1 - 0.9) * p.grad
                p -= group["lr"] * (torch.sign(c) + group["weight_decay"] * p)
                self.state[p]["exp_avg"] = 0.99 * m + (1 - 0.99) * p.grad


class TorchMuon:
    """PyTorch's Muon for the matrices and its AdamW for the rest; Muon iterates in bf16, here in fp32."""

    def __init__(self, groups: Groups, factor: float = 1.0, scale: str = "match_rms_adamw") -> None:
        self._factor = factor
        named = {name: p for group in groups for name, p in zip(group["names"], group["params"], strict=True)}
        matrices = {n for n, p in named.items() if n.startswith("layers.") and p.dim() == 2}
        self._muon = torch.optim.Muon(
            [named[name] for name in matrices], weight_decay=0.1, momentum=0.95, adjust_lr_fn=scale
        )
        for group in groups:
            names = [name for name in group.pop("names") if name not in matrices]
            group["params"] = [named[name] for name in names]
        self._adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
        self.param_groups = self._adamw.param_groups

    @property
    def state(self) -> dict[Any, Any]:
        return {**self._muon.state, **self._adamw.state}

    def step(self) -> None:
        self._muon.param_groups[0]["lr"] = self.param_groups[0]["lr"] * self._factor
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            self._muon.step()
        self._adamw.step()


def transformers_adafactor(groups: Groups) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=1.0, relative_step=False, scale_parameter=True)


@dataclasses.dataclass(frozen=True)
class Subject:
    """An optimizer as configured here, and the same made by someone else; `rate` scales the rates of the test.

    Where a moment is as small as its rounding, another order of summation may turn the step around, of Lion, which
    steps by signs, fully: the share `turned` of all elements may differ, and for Lion `loss_error` is larger. Moments
    of 8 bits are rounded in every step, at another layout in other blocks: of them the losses are compared alone.
    """

    optim: OptimConfig
    reference: Callable[[Groups], Any]
    rate: float = 1.0
    loss_error: float = 1e-5
    turned: float = 0.0


def configured(name: str, **keys: Any) -> OptimConfig:
    return OptimConfig(name=name, weight_decay=0.1, grad_clip=CLIP, **keys)  # type: ignore[arg-type]


SUBJECTS = {
    "adam": Subject(
        configured("adam"), lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.95), foreach=False), turned=1e-3
    ),
    "adamw8bit": Subject(configured("adamw8bit"), plain_adamw, loss_error=0.01, turned=1.0),
    "lion": Subject(configured("lion"), PaperLion, rate=0.3, loss_error=1e-4, turned=0.01),
    "sgd": Subject(configured("sgd"), lambda groups: torch.optim.SGD(groups, foreach=False), rate=70),
    "nesterov": Subject(
        configured("sgd", momentum=0.9, nesterov=True),
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False),
        rate=20,
    ),
    "adafactor": Subject(configured("adafactor"), transformers_adafactor, rate=25),
    "muon": Subject(configured("muon"), TorchMuon, rate=2, turned=1e-4),
    "muon original": Subject(
        configured("muon", matrix_lr=1.2e-2, muon_scale="original"),
        functools.partial(TorchMuon, factor=20, scale="original"),
        turned=1e-4,
    ),
}
LAYOUTS = {"dp2": (2, 1), "tp2": (1, 2)}
RESUMED = (("dp2", "dp2"), ("dp2", "tp2"))
"""Layout, and the layout that it goes on from."""


ODD = dataclasses.replace(NEOX, num_layers=3)
"""With two ranks, the border of their partitions cuts through a matrix; with four layers, it lies between two."""
OTHERS = [
    Case(f"{name} {list(options)}", **options, optim=SUBJECTS[name].optim, rate=SUBJECTS[name].rate)  # type: ignore[arg-type]
    for name, options in (
        ("muon", {"tp": 2, "precision": "bf16"}),
        ("adafactor", {"tp": 2, "precision": "bf16"}),
        ("muon", {"dp": 2, "model": ODD}),
        ("adafactor", {"dp": 2, "model": ODD}),
        ("muon", {"dp": 2, "zero": 2}),
        ("adafactor", {"dp": 2, "zero": 2}),
        ("muon", {"tp": 2, "sequence": True}),
        ("adafactor", {"tp": 2, "sequence": True}),
        ("lion", {"dp": 2, "zero": 3}),
        ("adamw8bit", {"dp": 2, "zero": 3}),
        ("adamw8bit", {"dp": 2, "zero": 2, "offload": "optimizer"}),
        ("nesterov", {"dp": 2, "zero": 3}),
    )
]


@cache
def reference(name: str, model: ModelConfig = NEOX) -> Run:
    torch.set_num_threads(1)
    return plain_run(model, build=SUBJECTS[name].reference, rate=SUBJECTS[name].rate)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Name of the case → what each rank recorded; each layout saves, and goes on from its own and from the other's."""
    folder = tmp_path_factory.mktemp("pieces")
    cases: list[Case] = []
    for name, subject in SUBJECTS.items():
        case = Case(name, optim=subject.optim, rate=subject.rate)
        for layout, origin in (*((layout, None) for layout in LAYOUTS), *RESUMED):
            placed = dataclasses.replace(case, dp=LAYOUTS[layout][0], tp=LAYOUTS[layout][1])
            if origin is None:
                save = str(folder / f"{name} {layout}.npz")
                cases.append(dataclasses.replace(placed, name=f"{name} {layout}", save=save))
            else:
                load = str(folder / f"{name} {origin}.npz")
                cases.append(dataclasses.replace(placed, name=f"{name} {layout} from {origin}", load=load))
    cases += OTHERS
    by_rank = run_ranks(run_cases, 2, cases, timeout_s=600)
    return {case.name: [outs[i] for outs in by_rank] for i, case in enumerate(cases)}


def largest_difference(got: list[float], want: list[float]) -> float:
    assert len(got) == len(want)
    return max(abs(a - b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_it_trains_as_its_reference_does(outcomes: dict[str, list[dict[str, Any]]], name: str, layout: str) -> None:
    want, (out, other) = reference(name), outcomes[f"{name} {layout}"]
    assert out["losses"] == other["losses"]
    assert want.losses[-1] < want.losses[0] - 0.3
    allowed = SUBJECTS[name].loss_error
    assert largest_difference(out["losses"], want.losses) < allowed
    assert largest_difference(out["grad_norms"], want.grad_norms) < 2 * allowed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_its_state_is_that_of_the_reference(outcomes: dict[str, list[dict[str, Any]]], name: str, layout: str) -> None:
    """After one step and after SAVE_STEP; without qkv.bias: the key's has no gradient but rounding."""
    for moment, state, allowed in (("first", reference(name).first, 1e-5), ("saved", reference(name).saved, 5e-5)):
        got = assemble([piece for rank in outcomes[f"{name} {layout}"] for piece in rank[moment]])
        assert set(got) == set(state)
        num_off = 0
        for (kind, logical), tensor in state.items():
            is_off = (got[kind, logical] - tensor).abs() > allowed * tensor.abs().max()
            num_off += 0 if logical.endswith("qkv.bias") else int(is_off.sum())
        assert num_off <= SUBJECTS[name].turned * sum(tensor.numel() for tensor in state.values()), moment


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_goes_on_as_if_it_had_not_stopped(outcomes: dict[str, list[dict[str, Any]]], name: str) -> None:
    for layout, origin in RESUMED:
        whole, again = outcomes[f"{name} {layout}"], outcomes[f"{name} {layout} from {origin}"]
        if origin != layout:
            want = whole[0]["losses"][SAVE_STEP:]
            assert largest_difference(again[0]["losses"], want) < SUBJECTS[name].loss_error
            continue
        assert again[0]["losses"] == whole[0]["losses"][SAVE_STEP:]
        got, kept = (assemble([piece for rank in ranks for piece in rank["final"]]) for ranks in (again, whole))
        assert all(torch.equal(got[key], kept[key]) for key in kept)


def test_whole_tensors_are_put_together_from_parts_and_shards_and_stages() -> None:
    """On four ranks; tied embeddings are on both stages."""
    cases = [
        Case(name, dp=2, tp=tp, pp=pp, model=model, optim=SUBJECTS[name].optim, rate=SUBJECTS[name].rate)
        for name, (tp, pp, model) in itertools.product(WHOLE, ((2, 1, NEOX), (1, 2, TIED)))
    ]
    for case, out in zip(cases, run_ranks(run_cases, 4, cases)[0], strict=True):
        assert largest_difference(out["losses"], reference(case.name, case.model).losses) < 1e-5, case


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_precisions_and_partitions_change_nothing_else(outcomes: dict[str, list[dict[str, Any]]], case: Case) -> None:
    """In bf16 the matrices are made orthogonal in bf16 too, as the whole of PyTorch's Muon does it."""
    name = case.name.split()[0]
    allowed = SUBJECTS[name].loss_error if case.precision == "fp32" else 0.05
    assert largest_difference(outcomes[case.name][0]["losses"], reference(name, case.model).losses) < allowed


@pytest.mark.parametrize("is_signed", [True, False])
def test_quantized_numbers_are_the_nearest_of_their_block_and_stay(is_signed: bool) -> None:
    """At a length that no block divides, over many orders of magnitude and with a block of zeros."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 3, 1000)
    x[256:512] = 0
    x = x if is_signed else x.square()
    allowed = values(is_signed, x.device)
    assert len(allowed) == 256 and bool((allowed.diff() > 0).all())
    nearest = []
    for block in x.split(256):
        scale = block.abs().max().clamp(min=1e-38)
        nearest.append(allowed[(block[:, None] / scale - allowed).abs().argmin(1)] * scale)
    held = Quantized(1000, is_signed, x.device)
    assert not held.read(0, 1000).any()
    held.write(0, x)
    got = held.read(0, 1000)
    assert torch.equal(got, torch.cat(nearest))
    assert torch.equal(held.read(300, 555), got[300:855])
    held.write(768, torch.ones(232))
    held.write(768, got[768:])
    held.write(0, held.read(0, 512))
    assert torch.equal(held.read(0, 1000), got)


def test_subnormal_blocks_are_zeros_at_once() -> None:
    """And do not become smaller with every load, as they would where their scale cannot be divided by."""
    x = torch.cat([torch.full((256,), 1e-39), torch.full((256,), 1e-37)])
    held = Quantized(512, False, x.device)
    for _ in range(3):
        held.write(0, x)
        x = held.read(0, 512)
        assert not x[:256].any() and torch.equal(x[256:], torch.full((256,), 1e-37))


@pytest.mark.parametrize("chunk", [512, 1 << 22])
def test_eight_bit_steps_are_adamw_between_roundings(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Of a group with quantized moments, and of one without; a whole tensor at a time or a part."""
    monkeypatch.setattr(adamw8bit, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(1000, generator=generator).requires_grad_() for _ in range(2)]
    groups = [
        {"params": [w], "names": ["w"], "weight_decay": d, "is_matrix": d > 0}
        for w, d in zip(weights, (0.1, 0.0), strict=True)
    ]
    optimizer = adamw8bit.AdamW8bit(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    create_state(optimizer, configured("adamw8bit"))
    same = [weight.detach().clone().requires_grad_() for weight in weights]
    plain = torch.optim.AdamW(
        [{"params": [same[0]], "weight_decay": 0.1}, {"params": [same[1]], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    for _ in range(4):
        for ours, theirs in zip(weights, same, strict=True):
            ours.grad = torch.randn(1000, generator=generator)
            theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
        for kind, is_signed in (("exp_avg", True), ("exp_avg_sq", False)):
            rounded = Quantized(1000, is_signed, weights[0].device)
            rounded.write(0, plain.state[same[0]][kind])
            plain.state[same[0]][kind].copy_(rounded.read(0, 1000))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, same, strict=True))


def test_every_name_has_a_rule_and_a_builder() -> None:
    names = set(get_args(get_type_hints(OptimConfig)["name"]))
    assert names == set(OPTIMIZERS) | set(REFUSED)
    assert set(BUILDERS) == set(OPTIMIZERS)


def test_a_group_is_split_in_its_order_between_tensors() -> None:
    sizes = {"a": 3, "b": 2, "c": 9, "d": 1, "e": 4}
    group = {"params": [torch.empty(n) for n in sizes.values()], "names": list(sizes), "rate": 2.0}
    parts = split(group, 5)
    assert [part["names"] for part in parts] == [["a", "b"], ["c"], ["d", "e"]]
    assert [[len(p) for p in part["params"]] for part in parts] == [[3, 2], [9], [1, 4]]
    assert all(part["rate"] == 2.0 for part in parts)
    assert split(group, math.inf) == [group]
    assert split({"params": [], "names": []}, 5) == [{"params": [], "names": []}]
