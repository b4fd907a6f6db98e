"""`python -m jobs.ranks`: runs around each rank: says its place, passes signals on, writes down how it ended."""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from jobs import mpi
from jobs.binding import SEPARATOR, bind
from jobs.errors import UserError
from jobs.scheduler import SCHEDULERS
from jobs.shell import Process, drain, exit_code, signal_on_parent_death, start, tee
from jobs.spec import Launch
from jobs.warning import RESTART_VARIABLE, SAVED

POLL_S = 0.1
TEARDOWN_S = 5
"""How long a rank may outlive one that failed. srun ends it too, but after KillWait, by default 30 s; slurmctld waits
for that 10 s (MessageTimeout), says it again a minute later, and so ends the same step of the job's next allocation."""
FIRST_PORT, NUM_PORTS = 20000, 12000
"""Below those that Linux gives to outgoing connections, from 32768."""
RESTART_STRIDE = 997
"""Between the ports of two allocations of a job: the next ports are those of the next jobs."""
ENCODED = "base64="
FOLDER_VARIABLE = "JOBS_LAUNCH_FOLDER"
"""Where `jobs launch` was started, for ranks whose launcher starts them elsewhere."""


def wrapper_argv(launch: Launch, ranks_from: str, signals_by_file: bool = False, is_encoded: bool = False) -> list[str]:
    """The command line of this wrapper around a launch's command.

    `is_encoded`: as one word of letters, digits, `-`, `_` and `=`, for launchers that would read something into others.
    """
    options = ["--from", ranks_from, "--folder", str(launch.folder)]
    options += ["--port", str(launch.port)] if launch.port and ranks_from in SCHEDULERS else []
    options += ["--device-choice", launch.device_choice] if launch.device_choice else []
    options += ["--cores", SEPARATOR.join(launch.rank_cores)] if launch.rank_cores else []
    options += ["--signals-by-file"] if signals_by_file else []
    options += ["--rank-logs", str(launch.logs)] if launch.logs else []
    words = [*options, "--", *launch.command]
    return [launch.python or sys.executable, "-m", "jobs.ranks", *([encode(words)] if is_encoded else words)]


def encode(words: Sequence[str]) -> str:
    """Words as one that no shell and no template changes."""
    return ENCODED + base64.urlsafe_b64encode(json.dumps(words).encode()).decode()


def decode(words: Sequence[str]) -> list[str]:
    """What `encode` was given, or the words themselves."""
    if len(words) != 1 or not words[0].startswith(ENCODED):
        return list(words)
    return list(json.loads(base64.urlsafe_b64decode(words[0].removeprefix(ENCODED))))


def code_file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:05d}.code"


def log_file(folder: Path, rank: int) -> Path:
    """What one rank says, in all allocations so far."""
    return folder / f"rank_{rank:05d}.log"


def signal_file(folder: Path) -> Path:
    """Names of signals for all ranks, one a line, appended by `jobs launch`."""
    return folder / "signals"


def started_file(folder: Path) -> Path:
    return folder / "started"


def failed_file(folder: Path) -> Path:
    """There from the moment a rank has failed, for the wrappers of the others."""
    return folder / "failed"


def environment_file(folder: Path) -> Path:
    return folder / "environment.json"


def write_environment(launch: Launch, environ: Mapping[str, str]) -> None:
    """Leaves the ranks' environment in a file, private to the user: which variables reach other nodes differs between
    launchers, and values would show on their command lines.
    """
    master = {"MASTER_ADDR": launch.hosts[0], "MASTER_PORT": str(launch.port), FOLDER_VARIABLE: str(Path.cwd())}
    descriptor = os.open(environment_file(launch.folder), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({**environ, **master}, file)


def agent_environment(launched: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The launch's environment, with what the node's agent (ours, torchrun's or DeepSpeed's) says of this rank."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE")
    said = {key: value for key, value in environ.items() if key in names or key.startswith(("TORCHELASTIC_", "GROUP_"))}
    return {"LOCAL_WORLD_SIZE": said.get("LOCAL_SIZE", ""), **environ, **launched, **said}


def rank_environment(ranks_from: str, environ: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and MASTER_ADDR, the step's first host, from the scheduler's
    variables. torchrun has set them already.
    """
    if ranks_from == "torchrun":
        return {}
    scheduler = SCHEDULERS[ranks_from]
    words = {ours: environ.get(theirs, "") for ours, theirs in scheduler.environment.items()}
    return {
        "RANK": words["rank"],
        "WORLD_SIZE": words["world_size"],
        "LOCAL_RANK": words["local_rank"],
        "LOCAL_WORLD_SIZE": words["tasks_per_node"].split("(")[0].split(",")[0],  # `2(x4)`: 2 on each of 4 nodes
        "MASTER_ADDR": scheduler.hosts(words.get("step_nodes") or words["nodes"])[0],
    }


def free_port() -> int:
    """One that is free on this host now, and that the kernel gives no connection: ranks take it seconds later."""
    for port in random.sample(range(FIRST_PORT, FIRST_PORT + NUM_PORTS), NUM_PORTS):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise OSError(f"no port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS} is free")


def is_free(port: int) -> bool:
    """Whether a process of this host could listen on it."""
    try:
        with socket.create_server(("", port)):
            return True
    except OSError as error:
        return error.errno != errno.EADDRINUSE


def port_of(job_id: str, environ: Mapping[str, str]) -> int:
    """Another one in each allocation of the job: a copy believed dead may still hold that of the one before."""
    return FIRST_PORT + (int(job_id) + RESTART_STRIDE * int(environ.get(RESTART_VARIABLE, 0))) % NUM_PORTS


def one_device(choice: str, local_rank: str) -> dict[str, str]:
    """Variables of a rank that sees one GPU, whose number is then 0 and which frameworks take LOCAL_RANK for."""
    return {"LOCAL_RANK": "0"} | ({} if choice == "scheduler" else {choice: local_rank})


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal at this moment, by the SigIgn mask of Linux's /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


class Rank:
    """One rank's process, and the signals on their way to it."""

    def __init__(self, process: Process, folder: Path, has_agent: bool, signals_by_file: bool) -> None:
        self.process, self.folder, self.has_agent = process, folder, has_agent
        self.signals_by_file = signals_by_file or has_agent
        self.num_delivered = 0
        self.is_told_to_end = False
        self.deadline_s = float("inf")
        self.pending: list[signal.Signals] = []
        for received in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(received, self.on_signal)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # INT is the first that all processes of a job get which LSF ends; the command itself ignores it.
        self.pending.append(signal.SIGTERM if number == signal.SIGINT else signal.Signals(number))
        self.is_told_to_end |= number == signal.SIGTERM
        # Signals from `jobs launch` come by file, so TERM itself means that the agent lost another rank: this one waits
        # in a collective that can never end.
        if self.has_agent and number == signal.SIGTERM:
            self.deadline_s = time.monotonic() + TEARDOWN_S

    def deliver(self) -> None:
        """Passes on what `jobs launch` has written since the last look."""
        with contextlib.suppress(FileNotFoundError):
            names = signal_file(self.folder).read_text().split()
            self.pending += [signal.Signals[name] for name in names[self.num_delivered :]]
            self.num_delivered = len(names)

    def send_pending(self) -> None:
        """A warning waits until the command has a handler for it: while it still imports it would be lost."""
        for number in list(self.pending):  # a handler may append meanwhile
            if self._send(number):
                self.pending.remove(number)

    def _send(self, number: signal.Signals) -> bool:
        if number in (signal.SIGUSR1, signal.SIGUSR2) and ignores(self.process.pid, number):
            return False
        self.process.send_signal(number)
        return True

    def watch_others(self) -> None:
        """Once a rank has failed the others would wait in a collective for ever, and not every launcher ends them."""
        if self.deadline_s == float("inf") and failed_file(self.folder).exists():
            self.deadline_s = time.monotonic() + TEARDOWN_S

    def wait(self) -> int:
        while (code := self.process.poll()) is None:
            if self.signals_by_file:
                self.deliver()
            if self.signals_by_file or self.is_told_to_end:  # srun tells all; until then shared files are left in peace
                self.watch_others()
            self.send_pending()
            if time.monotonic() > self.deadline_s:
                self.process.kill()
            time.sleep(POLL_S)
        return exit_code(code)


READERS = {"mpi": mpi.rank_environment, "agent": agent_environment}
"""For launchers whose ranks have not the environment of `jobs launch`."""


def _arguments() -> argparse.Namespace:
    """What `wrapper_argv` wrote."""
    parser = argparse.ArgumentParser(prog="python -m jobs.ranks", description=__doc__)
    parser.add_argument("--from", dest="ranks_from", required=True, choices=["torchrun", "agent", "mpi", *SCHEDULERS])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", help="MASTER_PORT, where the launcher does not set it")
    parser.add_argument("--device-choice", help="scheduler, or the variable that shows one GPU")
    parser.add_argument("--cores", help="of every local rank, as 0-3:4-7")
    parser.add_argument("--signals-by-file", action="store_true", help="the launcher passes no signals on")
    parser.add_argument("--rank-logs", type=Path, help="folder for what each rank says")
    parser.add_argument("command", nargs="+")
    return parser.parse_args(decode(sys.argv[1:]))


def main() -> int:
    arguments = _arguments()
    if arguments.ranks_from in READERS:
        launched = json.loads(environment_file(arguments.folder).read_text())
        environ = READERS[arguments.ranks_from](launched, os.environ)
    else:
        environ = {**os.environ, **rank_environment(arguments.ranks_from, os.environ)}
    rank = int(environ["RANK"])
    has_agent = arguments.ranks_from in ("torchrun", "agent")
    if arguments.port:
        environ["MASTER_PORT"] = arguments.port
    if arguments.cores:
        bind(arguments.cores.split(SEPARATOR)[int(environ["LOCAL_RANK"])])
    if arguments.device_choice:
        environ |= one_device(arguments.device_choice, environ["LOCAL_RANK"])
    try:
        cwd = environ.pop(FOLDER_VARIABLE, None)  # not for launches inside this one
        log = tee(log_file(arguments.rank_logs, rank)) if arguments.rank_logs else None
        output = log.stdin if log else None
        folder = Path(cwd) if cwd else None
        # Of its own session, so that a signal to the step's process group arrives once: through this wrapper.
        process = start(arguments.command, environ, folder, new_session=True, stdout=output, stderr=output)
    except OSError as error:  # of the command, of the folder, of too many processes
        print(f"jobs: error: {error.filename or arguments.command[0]}: {error.strerror}", file=sys.stderr)
        code_file(arguments.folder, rank).write_text("127")
        return 0 if has_agent else 127
    running = Rank(process, arguments.folder, has_agent, arguments.signals_by_file)
    if has_agent:
        signal_on_parent_death(signal.SIGTERM)  # a killed agent leaves its ranks behind; slurmstepd does not
    if rank == 0:
        started_file(arguments.folder).touch()
    code = running.wait()
    code_file(arguments.folder, rank).write_text(str(code))
    if code not in (0, SAVED):
        failed_file(arguments.folder).touch()
    if log:  # only now: what the rank leaves behind may hold its output, and the order of ends tells which was first
        drain(log, TEARDOWN_S)
    # torchrun would bury what the rank said under a page of its own, and needs no code: `jobs launch` reads the files.
    # Other launchers would take 85 for a failure and kill the ranks that are still saving.
    return 0 if has_agent or code == SAVED else code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"jobs: error: {error}")
