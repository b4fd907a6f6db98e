"""`neox train` whose second rank hangs in step 5, and whose first step and validation are slow: `HOW ARGUMENTS…`."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from neox.__main__ import main
from neox.parallel.engine import Engine

SLOW_S, FIRST_STEP, HANGING_STEP = 3.0, 1, 5


def hang(how: str) -> None:
    """Until killed: stopped, as a whole machine may be, or asleep in one call."""
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)


def make_slow(how: str) -> None:
    """Patches the engine."""
    train_step, eval_loss = Engine.train_step, Engine.eval_loss
    steps = iter(range(1, 100))

    def slow_or_hanging_step(self: Engine, *arguments: Any) -> Any:
        step = next(steps)
        if step == FIRST_STEP:
            time.sleep(SLOW_S)
        if step == HANGING_STEP and self.rank == 1:
            hang(how)
        return train_step(self, *arguments)

    def slow_validation(self: Engine, *arguments: Any) -> float:
        time.sleep(SLOW_S)
        return eval_loss(self, *arguments)

    Engine.train_step, Engine.eval_loss = slow_or_hanging_step, slow_validation  # type: ignore[method-assign]


if __name__ == "__main__":
    make_slow(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
