"""`python -m jobs.tether FOLDER COMMAND...`: a launcher over ssh, whose ranks learn when it fails or is left alone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from jobs.ranks import failed_file
from jobs.shell import exit_code, signal_on_parent_death, start

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK")
"""And PDSH_*. DeepSpeed's launcher puts others on a remote shell's line, unquoted; ranks read theirs from a file."""
POLL_S, LAST_WORDS_S, LAST_LINES_S = 0.1, 30.0, 1.0
_NODE_ENDED = re.compile(rb"^pdsh@\S+: \S+: ssh exited with exit code ")
"""Said of a node that is not reached, or is lost: pdsh goes on with the others, whose ranks would wait for ever."""


def main(folder: Path, command: list[str]) -> int:
    """Runs the command to its end; returns its exit code.

    TERM ends nothing: a scheduler that ends a job (LSF) sends it to every process, while the ranks save.
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PDSH_")}
    parent = os.getppid()
    signal_on_parent_death(0)  # the kernel would have ended us too soon
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said, errors = os.pipe()
    with os.fdopen(errors, "wb") as stream:
        # Elsewhere, for the folder's name goes on that line too.
        process = start(command, kept, cwd=Path("/"), new_session=True, stderr=stream, is_deaf=True)
    listener = threading.Thread(target=_pass_on, args=(said, folder), daemon=True)
    listener.start()
    deadline_s = float("inf")
    while (code := process.poll()) is None:
        if os.getppid() != parent and deadline_s == float("inf"):
            failed_file(folder).touch()  # upon which every rank is ended, wherever it is
            deadline_s = time.monotonic() + LAST_WORDS_S
        if time.monotonic() > deadline_s:
            process.kill()
        time.sleep(POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # connections that outlive it
    listener.join(LAST_LINES_S)
    return exit_code(code)


def _pass_on(said: int, folder: Path) -> None:
    """Copies what the launcher and the ranks say to our own stderr."""
    with os.fdopen(said, "rb") as lines:
        for line in lines:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            if _NODE_ENDED.search(line):
                failed_file(folder).touch()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
