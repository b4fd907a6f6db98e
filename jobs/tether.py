"""`python -m jobs.tether FOLDER COMMAND...`: a launcher over ssh, whose ranks learn when `jobs launch` is killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from jobs.ranks import failed_file
from jobs.shell import exit_code, signal_on_parent_death, start

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK")
"""And PDSH_*. DeepSpeed's launcher puts others on a remote shell's line, unquoted; ranks read theirs from a file."""
POLL_S, LAST_WORDS_S = 0.1, 30.0


def main(folder: Path, command: list[str]) -> int:
    """Runs the command to its end; returns its exit code.

    TERM ends nothing: a scheduler that ends a job (LSF) sends it to every process, while the ranks save.
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PDSH_")}
    parent = os.getppid()
    signal_on_parent_death(0)  # the kernel would have ended us too soon
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = start(command, kept, cwd=Path("/"), is_deaf=True)  # the folder's name goes on that line too
    deadline_s = float("inf")
    while (code := process.poll()) is None:
        if os.getppid() != parent and deadline_s == float("inf"):
            failed_file(folder).touch()  # upon which every rank is ended, wherever it is
            deadline_s = time.monotonic() + LAST_WORDS_S
        if time.monotonic() > deadline_s:
            process.kill()
        time.sleep(POLL_S)
    return exit_code(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
