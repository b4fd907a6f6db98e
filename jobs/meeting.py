"""The nodes of a launch meet before its ranks do: reach the master, compare clocks, pass data to the next one.

Plain TCP, on the address and port that the ranks will use, so that it needs no MPI and no torch.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass

MESSAGE = bytes(1 << 23)
"""8 MB: 7 ms on 10 Gb/s."""
RETRY_S = 0.05


@dataclass
class Meeting:
    """What one node saw of the others."""

    clock_offset_s: float = 0.0
    """The master's clock less ours, to half a round trip."""
    link_s: float | None = None
    """How long MESSAGE took to the next node, its answer included."""
    next_rank: int | None = None
    problem: str = ""


def meet(rank: int, world_size: int, host: str, port: int, limit_s: float) -> Meeting:
    """Meets the other nodes, one process each, in at most `limit_s`; never raises, what went wrong is in `problem`."""
    deadline_s = time.monotonic() + limit_s
    seen = Meeting()
    with socket.create_server(("", 0)) as inbox:
        taking = threading.Thread(target=_take_message, args=(inbox, limit_s), daemon=True)
        taking.start()
        try:
            if rank == 0:
                addresses = _receive_all(world_size, port, inbox.getsockname()[1], (time.monotonic() + deadline_s) / 2)
            else:
                addresses = _report(rank, host, port, inbox.getsockname()[1], deadline_s, seen)
        except (OSError, ValueError) as error:
            seen.problem = f"the master {host}:{port} cannot be {'opened' if rank == 0 else 'reached'}: {error}"
            return seen
        present = sorted(addresses)
        seen.next_rank = present[(present.index(rank) + 1) % len(present)]
        if seen.next_rank != rank:
            _pass_message(addresses[seen.next_rank], host, deadline_s, seen)
            taking.join(max(0.0, deadline_s - time.monotonic()))  # the one before us may still be sending
    return seen


def _receive_all(world_size: int, port: int, own_port: int, deadline_s: float) -> dict[int, tuple[str, int]]:
    """The master's part: takes every node's address, answers with the time, then with all addresses."""
    addresses: dict[int, tuple[str, int]] = {0: ("", own_port)}
    guests = []
    with socket.create_server(("", port)) as server:
        while len(addresses) < world_size and (left_s := deadline_s - time.monotonic()) > 0:
            server.settimeout(left_s)
            try:
                guest, (guest_host, _) = server.accept()
                guest.settimeout(left_s)
                said = json.loads(guest.makefile("rb").readline())
                guest.sendall(json.dumps(time.time()).encode() + b"\n")
            except (OSError, ValueError):
                continue  # whoever it was shows as missing
            addresses[int(said["rank"])] = (guest_host, int(said["port"]))
            guests.append(guest)
        listed = json.dumps(addresses).encode() + b"\n"
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.sendall(listed)
                guest.recv(1)  # the guest closes first: no connection lingers on the port that the ranks want
            guest.close()
    return addresses


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


def _pass_message(where: tuple[str, int], master: str, deadline_s: float, seen: Meeting) -> None:
    host, port = where[0] or master, where[1]
    try:
        with _connect(host, port, deadline_s) as connection:
            began = time.monotonic()
            connection.sendall(MESSAGE)
            connection.recv(1)
            seen.link_s = time.monotonic() - began
    except OSError as error:
        seen.problem = f"node {seen.next_rank} cannot be reached at {host}:{port}: {error}"


def _take_message(inbox: socket.socket, limit_s: float) -> None:
    with contextlib.suppress(OSError):
        inbox.settimeout(limit_s)
        sender, _ = inbox.accept()
        sender.settimeout(limit_s)
        left = len(MESSAGE)
        while left and (part := sender.recv(1 << 20)):
            left -= len(part)
        sender.sendall(b"1")
        sender.close()
