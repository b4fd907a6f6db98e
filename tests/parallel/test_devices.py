"""Training as on GPUs: nothing is on the wrong side, and the host does not wait while micro-batches are under way."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.distributed import run_ranks
from tests.parallel.training import ALIBI, DROPPED, LEARNING_RATES, STEPS, WHOLE_BATCH, Case, micro_batches

CASES = [
    Case("dp2, optimizer on the host", dp=2, zero=2, offload="optimizer", precision="bf16"),
    Case("dp2, stage 3", dp=2, zero=3, precision="bf16"),
    Case("tp2, sequences sharded", tp=2, sequence=True, model=ALIBI, precision="bf16"),
    Case("pp2, dropout and documents", pp=2, model=DROPPED, precision="bf16", recompute="full"),
]
MAY_WAIT = ("neox/parallel/feed.py", "neox/parallel/engine.py", "neox/parallel/whole.py train_batch")
"""Where all micro-batches are loaded before the first, and where loss and norm are read after the last."""


def train(cases: list[Case]) -> list[dict[str, Any]]:
    """Some steps, a validation, a save and a load of each case, on a GPU that is pretended."""
    from tests.parallel.pretended_gpu import pretend

    watch = pretend()
    from neox.checkpoint.staging import Staging
    from neox.parallel.engine import Engine
    from neox.parallel.topology import Topology
    from neox.train.determinism import make_deterministic
    from neox.train.noise import square

    make_deterministic(7)
    # With it PyTorch's attention on GPUs takes the quicker, irreproducible way backward, and only says so.
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    found = []
    for case in cases:
        watch.faults.clear()
        engine = Engine(case.config(), Topology(case.dp, case.tp, case.pp))
        share = len(WHOLE_BATCH) // case.dp
        rows = WHOLE_BATCH[engine.dp_index * share : (engine.dp_index + 1) * share]
        losses = []
        for step in range(3):
            batches = micro_batches(case.model, step, rows, case.size)
            watch.waits.clear()
            losses.append(engine.train_step(iter(batches), LEARNING_RATES[step]).loss)
            waits = list(watch.waits)
        saved = {(piece.kind, piece.name): piece for piece in Staging().copy(engine.pieces())}
        engine.load_pieces(Copies(saved))
        engine.train_step(iter(batches), 1e-3, lambda loss: False, lambda piece: [square(piece.tensor)].clear())
        engine.eval_loss(iter(micro_batches(case.model, STEPS, rows, case.size)), share // case.size)
        found.append({"losses": losses, "faults": list(watch.faults), "waits": waits})
    return found


class Copies:
    """Serves what was saved; what another rank saved, from this rank's own."""

    def __init__(self, saved: dict[tuple[str, str], Any]) -> None:
        self.saved = saved

    def read_piece(self, piece: Any) -> Any:
        return self.saved.get((piece.kind, piece.name), piece).tensor


def test_everything_is_where_a_gpu_needs_it() -> None:
    for rank in run_ranks(train, 2, CASES):
        for case, found in zip(CASES, rank, strict=True):
            assert not found["faults"], (case.name, found["faults"])
            assert all(math.isfinite(loss) for loss in found["losses"]) and found["losses"][2] < 5.2
            if case.pp == 1:  # DeepSpeed's pipeline copies each micro-batch as it comes
                assert {wait for wait in found["waits"] if not wait.startswith(MAY_WAIT)} == set(), case.name
