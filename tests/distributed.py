"""Runs a function on several ranks of one gloo process group, each a process of its own on this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def _rank_main(
    function: Callable[..., Any], environment: dict[str, str], arguments: tuple[Any, ...], results: Any
) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    rank = int(environment["RANK"])
    try:
        results.put((rank, True, function(*arguments)))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = 240) -> list[Any]:
    """What `function(*arguments)` returned on each rank, in order of rank.

    The function and all it takes and returns must be picklable; it reads RANK, WORLD_SIZE, … as under a launcher.

    Raises:
        AssertionError: a rank raised (its traceback is the message), died or took longer than `timeout_s`.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    processes = [
        context.Process(target=_rank_main, args=(function, environment, arguments, results), daemon=True)
        for environment in environments
    ]
    for process in processes:
        process.start()
    try:
        return _collect(processes, results, time.monotonic() + timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(processes: list[Any], results: Any, deadline: float) -> list[Any]:
    returned: dict[int, Any] = {}
    while len(returned) < len(processes):
        try:
            rank, is_good, value = results.get(timeout=1)
        except queue.Empty:
            dead = [rank for rank, p in enumerate(processes) if p.exitcode not in (None, 0) and rank not in returned]
            assert not dead, f"rank {dead[0]} died with exit code {processes[dead[0]].exitcode}"
            assert time.monotonic() < deadline, f"only ranks {sorted(returned)} of {len(processes)} answered in time"
            continue
        assert is_good, f"rank {rank} raised:\n{value}"
        returned[rank] = value
    return [returned[rank] for rank in range(len(processes))]
