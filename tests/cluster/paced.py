"""`neox` that takes a second for a step while there is no file `hurry`, and says in `fenced` that it was fenced."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from neox.__main__ import main
from neox.checkpoint import generation
from neox.checkpoint.store import Store
from neox.parallel.engine import Engine

PACE_S, HURRY, FENCED = 1.0, "hurry", "fenced"


def make_slow() -> None:
    """What is to happen to a run must find it running, on whatever machine."""
    train_step = Engine.train_step

    def slow_step(self: Engine, *arguments: Any, **options: Any) -> Any:
        time.sleep(0 if Path(HURRY).exists() else PACE_S)
        return train_step(self, *arguments, **options)

    Engine.train_step = slow_step  # type: ignore[method-assign]


def make_outspoken() -> None:
    """A copy that lost its srun has no log any more to say it in."""
    check = generation.check

    def told_check(store: Store) -> None:
        try:
            check(store)
        except generation.FencedError as error:
            with Path(FENCED).open("a") as file:
                file.write(f"{os.getpid()}: {error}\n")
            raise

    generation.check = told_check


if __name__ == "__main__":
    make_slow()
    make_outspoken()
    sys.exit(main())
