"""Processes that encode side by side: started, given batches, and what they make of them in the order these came."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from neox.allocator import give_back_freed_memory
from neox.data.encoder import EncodedBatch, Encoder
from neox.data.formats.contract import Batch, Span
from neox.data.long import LONG, Piece

PR_SET_PDEATHSIG = 1
_encoder: Encoder


@contextmanager
def encoders(encoder: Encoder, workers: int) -> Iterator[Executor]:
    """That many processes with an encoder each; for one worker it is this process, which works when asked.

    ChildProcessError when one of them is killed.
    """
    give_back_freed_memory()
    if workers == 1:
        _start(encoder)
        yield _Here()
        return
    pool = ProcessPoolExecutor(workers, get_context(_start_method()), _start_worker, (encoder,))
    try:
        # Started before any file is: being stopped half-way through the start then leaves none.
        pool.submit(os.getpid).result()
        yield pool
    except BrokenProcessPool:
        why = "one of --workers was killed, perhaps because memory ran out: take fewer, or more memory"
        raise ChildProcessError(errno.ECHILD, why) from None
    finally:
        pool.shutdown(cancel_futures=True)


def prove(pool: Executor, spans: Sequence[Span]) -> Future[None]:
    """Has one process compare the engine with the reference, while the others begin; UnequalError is its outcome."""
    return pool.submit(_prove, spans)


def in_order(pool: Executor, source: Iterable[Batch | Piece], ahead: int) -> Iterator[tuple[Batch, EncodedBatch]]:
    """Encode batches, at most `ahead` of them waiting, and give both back in the order they came.

    Of those with a record that is long, and cannot be divided, one waits at a time: each is held many times over.
    """
    waiting: deque[tuple[Batch, Future[EncodedBatch]]] = deque()
    for work in source:
        is_long = isinstance(work, Batch) and len(work.records[-1]) >= LONG
        while waiting and (len(waiting) > ahead or is_long):
            batch, done = waiting.popleft()
            yield batch, done.result()
        waiting.append(_submitted(pool, work))
        del work
    while waiting:
        batch, done = waiting.popleft()
        yield batch, done.result()


def _submitted(pool: Executor, work: Batch | Piece) -> tuple[Batch, Future[EncodedBatch]]:
    """Where it is from, all that is still of use of it here, and what will come of it."""
    if isinstance(work, Piece):
        return work.batch, pool.submit(_encode_piece, work.text, work.is_first, work.is_last)
    return replace(work, records=[]), pool.submit(_encode, work.span.format, work.records)


def _start_method() -> str:
    """A fork has what its parent loaded, in no time. Not beside MPI, whose network card writes to memory by address."""
    return "fork" if sys.platform == "linux" and "mpi4py.MPI" not in sys.modules else "spawn"


def _start_worker(encoder: Encoder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal all processes get it: the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler removes files that are the parent's
    if sys.platform == "linux":  # nobody else would end it where the parent is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    give_back_freed_memory()
    _start(encoder)


def _start(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder


def _prove(spans: Sequence[Span]) -> None:
    _encoder.prove(spans)


def _encode(name: str, records: Sequence[bytes]) -> EncodedBatch:
    return _encoder.encode(name, records)


def _encode_piece(text: str, is_first: bool, is_last: bool) -> EncodedBatch:
    return _encoder.encode_piece(text, is_first, is_last)


class _Here(Executor):
    """Does what is submitted at once, in this process."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done
