"""`python -m jobs.node ARGUMENTS NODE`: the ranks of one node, for launchers that start one process on each."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from jobs.ranks import decode, failed_file
from jobs.shell import signal_on_parent_death, start

POLL_S = 0.1


def main(node: int, num_nodes: int, num_ranks: int, folder: Path, wrapper: list[str]) -> int:
    """Starts the wrapper of every rank and waits for all; 1 if one of them was killed.

    When the connection goes, sshd ends, and with it this process and its ranks: that is a failure to the other nodes.
    """
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ends.append(number))
    signal_on_parent_death(signal.SIGTERM)
    place = {"WORLD_SIZE": str(num_nodes * num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    ranks = []
    for local_rank in range(num_ranks):
        place |= {"RANK": str(node * num_ranks + local_rank), "LOCAL_RANK": str(local_rank)}
        ranks.append(start([sys.executable, *wrapper], {**os.environ, **place}))
    while any(rank.poll() is None for rank in ranks):
        if ends or any(rank.returncode for rank in ranks):
            failed_file(folder).touch()  # a wrapper that was killed could not say so
        time.sleep(POLL_S)
    return int(any(rank.returncode for rank in ranks))


if __name__ == "__main__":
    num_nodes, num_ranks, folder, *wrapper = decode(sys.argv[1:2])
    sys.exit(main(int(sys.argv[2]), int(num_nodes), int(num_ranks), Path(folder), wrapper))
