"""What the test jobs run as ranks: print their place, count with saves, or fail."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
RANK = int(os.environ["RANK"])


def place(output: Path) -> None:
    line = " ".join([socket.gethostname(), *(os.environ[word] for word in WORDS)])
    with output.open("a") as file:
        file.write(line + "\n")


def count(output: Path, num_steps: int, again: str) -> None:
    """Every step of 0.2 s appends to a trace; state is saved only when warned, so lost work would show.

    The last step waits while there is a file OUTPUT.hold: what is to happen to a job finds it running.
    """
    warned: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: warned.append(number))
    Path(f"{output}.up_{RANK}").write_text(os.environ["JOBS_RESTART_COUNT"])
    state = Path(f"{output}.state_{RANK}")
    step = int(state.read_text()) if state.exists() else 0
    while step < num_steps:
        time.sleep(0.2)
        if step + 1 < num_steps or not Path(f"{output}.hold").exists():
            step += 1
            with Path(f"{output}.trace_{RANK}").open("a") as file:
                file.write(f"{step}\n")
            print("step", step, flush=True)
        if warned or (again == "again" and step == 3):
            state.write_text(str(step))
            time.sleep(0.3 * RANK)  # ranks do not end at the same time
            sys.exit(85)
    if RANK == 0:
        output.write_text(f"{step}\n")


def fail(output: Path) -> None:
    if RANK == 1:
        sys.exit("neox: error: model.hidden_size: 65 is not divisible by model.num_heads (2)")
    time.sleep(300)


if __name__ == "__main__":
    {"place": place, "count": count, "fail": fail}[sys.argv[1]](
        Path(sys.argv[2]), *(int(word) if word.isdigit() else word for word in sys.argv[3:])
    )
