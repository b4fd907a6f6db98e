"""The nodes of a launch meet before its ranks do: reach the master, compare clocks, and all pass data on at once.

Plain TCP, on the address and port that the ranks will use, so that it needs no MPI and no torch.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MESSAGE = bytes(1 << 24)
"""16 MB: 13 ms on 10 Gb/s, 130 ms where a link has fallen back to 1 Gb/s."""
DISTANCES = (1, 2)
"""Every node sends to the next one and to the one after it: of a slow link the slow end is the one whose others are."""
REPEATS, ENOUGH_S = 3, 1.0
"""A link's fastest message counts, for nodes may be shared; one that takes this long is not repeated."""
RETRY_S = 0.05


@dataclass
class Meeting:
    """What one node saw of the others."""

    clock_offset_s: float = 0.0
    """The master's clock less ours, to half a round trip."""
    links: dict[int, float] = field(default_factory=dict)
    """Seconds of MESSAGE to each of the nodes that it was sent to, the answer included; inf where it did not arrive."""
    problem: str = ""


def meet(rank: int, world_size: int, host: str, port: int, limit_s: float) -> Meeting:
    """Meets the other nodes, one process each, in at most `limit_s`; never raises, what went wrong is in `problem`."""
    deadline_s = time.monotonic() + limit_s
    seen = Meeting()
    with socket.create_server(("", 0)) as inbox:
        taken = threading.Semaphore(0)
        threading.Thread(target=_take_messages, args=(inbox, limit_s, taken.release), daemon=True).start()
        try:
            if rank == 0:
                addresses = _receive_all(world_size, port, inbox.getsockname()[1], (time.monotonic() + deadline_s) / 2)
            else:
                addresses = _report(rank, host, port, inbox.getsockname()[1], deadline_s, seen)
        except (OSError, ValueError) as error:
            seen.problem = f"the master {host}:{port} cannot be {'opened' if rank == 0 else 'reached'}: {error}"
            return seen
        present = sorted(addresses)
        others = {present[(present.index(rank) + distance) % len(present)] for distance in DISTANCES} - {rank}
        for number, other in enumerate(others):  # one that is silent leaves the others their share of the time
            share_s = (deadline_s - time.monotonic()) / (len(others) - number)
            their_host, their_port = addresses[other]
            seen.links[other] = _pass_message(their_host or host, their_port, time.monotonic() + share_s)
        for _ in seen.links:  # as many come to us, and may still be on their way
            taken.acquire(timeout=max(0.0, deadline_s - time.monotonic()))
    return seen


def _receive_all(world_size: int, port: int, own_port: int, deadline_s: float) -> dict[int, tuple[str, int]]:
    """The master's part: takes every node's address, answers with the time, then with all addresses.

    Each guest has a thread: of a thousand nodes some are late, some fall silent, and others knock at ports, too.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # usual are 1024, and every guest has a connection
    table = _Table({0: ("", own_port)}, world_size)
    with socket.create_server(("", port), backlog=world_size) as server:
        while not table.is_full.wait(0) and (left_s := deadline_s - time.monotonic()) > 0:
            server.settimeout(min(left_s, RETRY_S))
            with contextlib.suppress(OSError):
                guest, (host, _) = server.accept()
                guest.settimeout(left_s)
                threading.Thread(target=table.seat, args=(guest, host), daemon=True).start()
        addresses = table.close()
        for _ in range(len(addresses) - 1):
            table.left.acquire(timeout=max(0.0, deadline_s - time.monotonic()))
    return addresses


class _Table:
    """Where nodes sit down until all are there, or until the master waits no longer."""

    def __init__(self, addresses: dict[int, tuple[str, int]], size: int) -> None:
        self.addresses, self.size = addresses, size
        self.lock, self.is_full, self.is_closed = threading.Lock(), threading.Event(), threading.Event()
        self.left = threading.Semaphore(0)
        """Released by each guest who has gone with all addresses."""

    def seat(self, guest: socket.socket, host: str) -> None:
        """Hears one guest and tells it all; whoever does not speak, or comes too late, shows as missing."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError), guest:
            said = json.loads(guest.makefile("rb").readline())
            rank, address = int(said["rank"]), (host, int(said["port"]))
            guest.sendall(json.dumps(time.time()).encode() + b"\n")
            with self.lock:
                if self.is_closed.is_set():
                    return
                self.addresses[rank] = address
                if len(self.addresses) == self.size:
                    self.is_full.set()
            self.is_closed.wait()
            guest.sendall(json.dumps(self.addresses).encode() + b"\n")
            guest.recv(1)  # the guest closes first: no connection lingers on the port that the ranks want
            self.left.release()

    def close(self) -> dict[int, tuple[str, int]]:
        with self.lock:
            self.is_closed.set()
        return self.addresses


def _report(
    rank: int, host: str, port: int, own_port: int, deadline_s: float, seen: Meeting
) -> dict[int, tuple[str, int]]:
    """Every other node's part: tells the master its address and compares clocks; returns all addresses."""
    master = _connect(host, port, deadline_s)
    with master, master.makefile("rb") as answers:
        began = time.time()
        master.sendall(json.dumps({"rank": rank, "port": own_port}).encode() + b"\n")
        theirs = float(json.loads(answers.readline()))
        seen.clock_offset_s = theirs - (began + time.time()) / 2
        return {int(key): (where[0], int(where[1])) for key, where in json.loads(answers.readline()).items()}


def _connect(host: str, port: int, deadline_s: float) -> socket.socket:
    """Tries until the deadline: the other side may not have begun to listen. Raises OSError."""
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            connection = socket.create_connection((host, port), timeout=max(left_s, 0.1))
            connection.settimeout(max(left_s, 0.1))
            return connection
        except socket.gaierror:
            raise
        except OSError:
            if left_s < RETRY_S:
                raise
            time.sleep(RETRY_S)


def _pass_message(host: str, port: int, deadline_s: float) -> float:
    """Seconds of the fastest of some messages; inf if none arrives."""
    fastest_s = float("inf")
    with contextlib.suppress(OSError), _connect(host, port, deadline_s) as connection:
        first = time.monotonic()
        for _ in range(REPEATS):
            began = time.monotonic()
            connection.sendall(MESSAGE)
            if not connection.recv(1):
                break
            fastest_s = min(fastest_s, time.monotonic() - began)
            if time.monotonic() > first + ENOUGH_S:
                break
    return fastest_s


def _take_messages(inbox: socket.socket, limit_s: float, done: Callable[[], None]) -> None:
    """Answers everyone who sends, each for himself; `done` is called for each who has sent all."""

    def take(sender: socket.socket) -> None:
        with contextlib.suppress(OSError), sender:
            sender.settimeout(limit_s)
            left = len(MESSAGE)
            while part := sender.recv(min(left, 1 << 20)):
                left -= len(part)
                if not left:
                    sender.sendall(b"1")
                    left = len(MESSAGE)
        done()

    with contextlib.suppress(OSError):
        inbox.settimeout(limit_s)
        while True:
            threading.Thread(target=take, args=inbox.accept()[:1], daemon=True).start()
