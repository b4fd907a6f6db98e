"""Runs a function on several ranks of one gloo process group, each a process of its own on this machine.

Ranks are forked from one process that has loaded torch, DeepSpeed and neox: importing them takes each rank seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.ranks import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


def enter(environment: dict[str, str]) -> None:
    """Makes this process, whose environment is that of the first test that forked one, one of `environment`."""
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)


def _rank_main(
    function: Callable[..., Any], environment: dict[str, str], arguments: tuple[Any, ...], results: Any
) -> None:
    enter(environment)
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
    results = CONTEXT.Queue()
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    processes = [
        CONTEXT.Process(target=_rank_main, args=(function, environment, arguments, results), daemon=True)
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


class Forked:
    """`main(arguments)` as a process of `environment`, its output in a file: what of `subprocess.Popen` tests need."""

    def __init__(
        self, main: Callable[[list[str]], int], arguments: list[str], environment: dict[str, str], output: Path
    ) -> None:
        self._process = CONTEXT.Process(target=_command_main, args=(main, arguments, environment, output), daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the number of the signal that ended it, or None as long as it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def wait(self, timeout: float) -> int | None:
        """The exit code, waited for; None if it still runs after `timeout` seconds."""
        self._process.join(timeout)
        return self._process.exitcode


def _command_main(
    main: Callable[[list[str]], int], arguments: list[str], environment: dict[str, str], output: Path
) -> None:
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    enter(environment)
    raise SystemExit(main(arguments))
