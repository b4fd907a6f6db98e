"""Fencing: the newest start of a run alone may write its checkpoints; a copy believed dead is refused; no torch.

A start first takes the token, then removes every folder that is being written, and only then looks for the latest
checkpoint. A copy from before writes to a folder of its own token and checks the token right before its rename, so
its commit either came before that look, or finds another token, or finds its folder gone.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import socket

from neox.checkpoint.store import Store, flush

NAME = ".generation.json"


class FencedError(OSError):
    """A later start of the same run has taken its checkpoints over; this one must write nothing more."""


def claim(store: Store) -> str:
    """Makes this start the one that writes the store's checkpoints, and returns its token; one process does it.

    Ends the claims, and removes the half-written checkpoints, of all starts before it.
    """
    store.folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    owner = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "started": _now()}
    temporary = store.folder / f".tmp-{token}.json"
    temporary.write_text(json.dumps(owner) + "\n", encoding="utf-8")
    flush(temporary)
    temporary.replace(store.folder / NAME)
    flush(store.folder)
    store.remove_leftovers()
    return token


def check(store: Store) -> None:
    """FencedError, which says who, unless the claim that the store was made with still stands."""
    try:
        owner = json.loads((store.folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        owner = {"token": None}
    if owner["token"] != store.token:
        who = "process {pid} on {host}, started {started},".format_map(owner) if owner["token"] else "someone"
        raise FencedError(f"{who} has taken this run over; this copy of it writes nothing more")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
