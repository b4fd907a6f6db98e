"""GPT-NeoX's learning-rate curves: numbers that its own classes printed, to the bit, and its formulas as documented."""

from __future__ import annotations

import math

import pytest

from neox.config.schema import OptimConfig
from neox.train.neox_schedule import neox_learning_rate

PYTHIA = OptimConfig(lr=1e-3, min_lr=1e-4, schedule="cosine", warmup=0.01, decay_steps=143000)
# Printed by AnnealingLR of tag v1.0 and of commit ea7aefd8 for Pythia-70M's schedule, and for warm-up 10 of 100 steps.
PYTHIA_V1 = {
    **{0: 0.0, 1: 6.993006993006994e-07, 1430: 0.001, 1431: 0.0009999999998793387},
    **{72000: 0.0005102149576965548, 114000: 0.00010763072662622775, 142999: 0.0001},
}
PYTHIA_V2 = {
    **{0: 6.993006993006994e-07, 1: 6.993006993006994e-07, 1430: 0.001, 1431: 0.0009999999998892},
    **{72000: 0.0005521469798410077, 114000: 0.00019001093796017704, 142999: 0.00010000000011080002},
}
OTHERS = {
    ("neox_v1", "linear"): {0: 0.0, 7: 0.00041999999999999996, 55: 0.00032999999999999994, 150: 0.00011999999999999999},
    ("neox_v1", "exponential"): {
        0: 0.0,
        55: 0.00043925480021565045,
        90: 0.0003446500847440983,
        150: 0.0003446500847440983,
    },
    ("neox_v1", "constant"): {0: 0.0, 7: 0.00041999999999999996, 10: 0.0006, 150: 0.0006},
    ("neox_v2", "linear"): {0: 5.9999999999999995e-05, 55: 0.0003, 90: 6.666666666666666e-05, 99: 6e-05, 150: 6e-05},
    ("neox_v2", "exponential"): {0: 5.9999999999999995e-05, 55: 0.00042429529157236276, 150: 0.00020416523780418053},
    ("neox_v2", "constant"): {0: 5.9999999999999995e-05, 7: 0.00041999999999999996, 10: 0.0006, 150: 0.0006},
}


@pytest.mark.parametrize(("compat", "printed"), [("neox_v1", PYTHIA_V1), ("neox_v2", PYTHIA_V2)])
def test_pythias_curve_to_the_bit(compat, printed):
    assert {n: neox_learning_rate(n, PYTHIA, compat) for n in printed} == printed


@pytest.mark.parametrize(("mode", "printed"), OTHERS.items())
def test_other_shapes_to_the_bit(mode, printed):
    compat, schedule = mode
    cfg = OptimConfig(lr=6e-4, min_lr=6e-5, schedule=schedule, warmup=0.1, decay_steps=100)
    assert {n: neox_learning_rate(n, cfg, compat) for n in printed} == printed


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.013, 0.3])
def test_formulas(schedule, warmup):
    """Written from the description: v1.0 decays over all of D and stops W short of it, HEAD over what is left of D."""
    lr, low, end = 5e-4, 2e-5, 300
    cfg = OptimConfig(lr=lr, min_lr=low, schedule=schedule, warmup=warmup, decay_steps=end)
    w = warmup * end
    shapes = {
        "linear": lambda x, floor: lr * (1 - x),
        "cosine": lambda x, floor: floor + (lr - floor) * (1 + math.cos(math.pi * x)) / 2,
        "exponential": lambda x, floor: lr * math.exp(-0.693 * x),
        "constant": lambda x, floor: lr,
    }
    for n in range(1, end):
        first, second = neox_learning_rate(n, cfg, "neox_v1"), neox_learning_rate(n, cfg, "neox_v2")
        if n <= w:
            assert first == second == pytest.approx(lr * n / w, rel=1e-12)
            continue
        assert first == pytest.approx(max(shapes[schedule]((min(n, end - w) - w) / end, 0.0), low), rel=1e-12)
        assert second == pytest.approx(max(shapes[schedule]((n - w) / (end - w), low), low), rel=1e-12)
