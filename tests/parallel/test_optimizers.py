"""Every optimizer through the engine, at dp2 and tp2, against a single process with an independent implementation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, get_args, get_type_hints

import pytest
import torch

from neox.config.optimizers import OPTIMIZERS, REFUSED
from neox.config.schema import OptimConfig
from neox.parallel.optimizer import BUILDERS
from tests.distributed import run_ranks
from tests.parallel.training import CLIP, NEOX, SAVE_STEP, Case, Run, assemble, plain_run, run_cases

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


@dataclasses.dataclass(frozen=True)
class Subject:
    """An optimizer as configured here, and the same made by someone else; `rate` scales the rates of the test.

    Where a moment is as small as its rounding, another order of summation may turn the step around, of Lion, which
    steps by signs, fully: the share `turned` of all elements may differ, and for Lion `loss_error` is larger.
    """

    optim: OptimConfig
    reference: Callable[[Groups], torch.optim.Optimizer]
    rate: float = 1.0
    loss_error: float = 1e-5
    turned: float = 0.0


def configured(name: str, **keys: Any) -> OptimConfig:
    return OptimConfig(name=name, weight_decay=0.1, grad_clip=CLIP, **keys)  # type: ignore[arg-type]


SUBJECTS = {
    "adam": Subject(
        configured("adam"), lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.95), foreach=False), turned=1e-3
    ),
    "lion": Subject(configured("lion"), PaperLion, rate=0.3, loss_error=1e-4, turned=0.01),
    "sgd": Subject(configured("sgd"), lambda groups: torch.optim.SGD(groups, foreach=False), rate=50),
    "nesterov": Subject(
        configured("sgd", momentum=0.9, nesterov=True),
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False),
        rate=20,
    ),
}
LAYOUTS = {"dp2": (2, 1), "tp2": (1, 2)}
RESUMED = (("dp2", "dp2"), ("tp2", "tp2"), ("dp2", "tp2"))
"""Layout, and the layout that it goes on from."""


@cache
def reference(name: str) -> Run:
    torch.set_num_threads(1)
    return plain_run(NEOX, build=SUBJECTS[name].reference, rate=SUBJECTS[name].rate)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Name of the case → what each rank recorded; each layout saves, and goes on from its own and from the other's."""
    folder = tmp_path_factory.mktemp("pieces")
    cases = []
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
    by_rank = run_ranks(run_cases, 2, cases)
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


def test_every_name_has_a_rule_and_a_builder() -> None:
    names = set(get_args(get_type_hints(OptimConfig)["name"]))
    assert names == set(OPTIMIZERS) | set(REFUSED)
    assert set(BUILDERS) == set(OPTIMIZERS)
