"""GPT-NeoX's faults, refused by name where its behaviour is asked for, and not there where it is not."""

from __future__ import annotations

import pytest

from neox.config.derive import resolve
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import Config

MODEL = ["model.num_layers=1", "model.hidden_size=8", "model.num_heads=2", "model.rotary_pct=0.5", "model.vocab_size=9"]


def config(*overrides: str) -> Config:
    return resolve(load_config([], [*MODEL, "train.steps=100", *overrides]), 1)


WRONG = [
    ("neox_v1", ["optim.warmup=0.51"], "optim.warmup = 0.51: above 0.5 GPT-NeoX 1.0 stops rising early and then jumps"),
    ("neox_v2", ["optim.warmup=0.005"], "optim.warmup = 0.005: 0.5 of a step, .* 2 times lr"),
    ("neox_v2", ["optim.decay_steps=99"], "optim.decay_steps = 99: GPT-NeoX's cosine rises again after it"),
    ("neox_v2", ["model.init=orthogonal"], "model.init or model.output_init = orthogonal: GPT-NeoX raises an error"),
    ("neox_v1", ["optim.schedule=wsd"], "optim.schedule = wsd: GPT-NeoX has linear, cosine, exponential, constant"),
    ("neox_v2", ["optim.schedule=infinite", "optim.constant_lr=1e-4"], "optim.schedule = infinite: GPT-NeoX has"),
]


@pytest.mark.parametrize(("compat", "overrides", "message"), WRONG)
def test_faults_are_refused_by_name(compat: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^compat = {compat}: {message}.*set compat=none$"):
        config(f"compat={compat}", *overrides)
    assert config(*overrides).compat == "none"


@pytest.mark.parametrize(
    ("compat", "overrides"),
    [
        ("neox_v1", ["optim.warmup=0.5", "model.init=orthogonal"]),
        ("neox_v1", ["optim.warmup=0.005"]),
        ("neox_v1", ["optim.decay_steps=80"]),
        ("neox_v2", ["optim.warmup=0.9"]),
        ("neox_v2", ["optim.warmup=0.0"]),
        ("neox_v2", ["optim.warmup=0.01"]),
        ("neox_v2", ["optim.decay_steps=80", "optim.schedule=linear", "optim.warmup=0.1"]),
    ],
)
def test_what_is_sane_is_taken(compat: str, overrides: list[str]) -> None:
    assert config(f"compat={compat}", *overrides).compat == compat
