"""Ranks on two hosts over a real sshd of our own: pdsh, torchrun on each, DeepSpeed's launcher."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.errors import UserError
from jobs.hostfile import hosts_of, size_by
from jobs.launch import LAUNCHERS
from jobs.ranks import free_port
from jobs.segments import lost_node
from jobs.spec import Launch
from jobs.watch import log_text
from tests.jobs.test_launch import is_alive, wait_for
from tests.jobs.test_scheduler import NASTY, assert_golden

LOCAL = Path(__file__).parents[2] / "site_configs" / "local" / "site.yaml"
HOSTS = ("127.0.1.1", "127.0.1.2")
WORD = f"{NASTY} 100%n %h {{{{id}}}}"
has_sshd = pytest.mark.skipif(
    not (shutil.which("pdsh") and Path("/usr/sbin/sshd").exists()), reason="pdsh and sshd are not installed"
)


@pytest.fixture(scope="module")
def ssh_config() -> Iterator[Path]:
    """A client configuration for a sshd that listens on HOSTS, with keys of its own."""
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    port = free_port()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    listen = "".join(f"ListenAddress {host}:{port}\n" for host in HOSTS)
    files = f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nPidFile {folder}/pid\n"
    (folder / "sshd_config").write_text(f"{listen}{files}UsePAM no\nStrictModes no\nPermitRootLogin yes\n")
    client = f"Host *\n Port {port}\n IdentityFile {folder}/user\n StrictHostKeyChecking no\n LogLevel ERROR\n"
    (folder / "config").write_text(f"{client} UserKnownHostsFile /dev/null\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    wait_for((folder / "pid").exists)
    yield folder / "config"
    sshd.terminate()
    sshd.wait()
    shutil.rmtree(folder)


def start(
    folder: Path, launcher: str, ssh_config: Path, *command: str, hosts: tuple[str, str] = HOSTS
) -> subprocess.Popen[str]:
    site = folder / "here" / "site.yaml"
    site.parent.mkdir()
    site.write_text(yaml.safe_dump(yaml.safe_load(LOCAL.read_text()) | {"launcher": launcher}))
    (folder / "a $b").mkdir()
    (folder / "hosts").write_text("".join(f"{host} slots=2\n" for host in hosts))
    options = ["--site", str(site), "--hostfile", str(folder / "hosts"), "--nodes", "2", "--ranks-per-node", "2"]
    options += ["--run-dir", str(folder / "run")]
    ours = {"PDSH_SSH_ARGS_APPEND": f"-F {ssh_config}", "SECRET": NASTY, "NCCL_X": "$(touch y)", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "launch", *options, "--", *command],
        cwd=folder / "a $b",
        env={**os.environ, **ours},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


PAYLOAD = """
import os, signal, sys, time
rank = os.environ["RANK"]
place = [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "NCCL_X")]
open("args_" + rank, "w").write("\\n".join([sys.argv[1], os.environ["SECRET"], *place]))
print("rank", rank, "runs")
def end(*_):
    time.sleep(float(rank) / 2); open("saved_" + rank, "w"); print("rank", rank, "saved"); sys.exit(85)
signal.signal(signal.SIGUSR2, end)
open("ready_" + rank, "w").write(str(os.getpid()))
while True: time.sleep(0.1)
"""


def is_ready(folder: Path) -> bool:
    return all((folder / f"ready_{rank}").exists() and is_alive(folder / f"ready_{rank}") for rank in range(4))


def end_all_around(launch: int) -> None:
    """As LSF does, which sends INT, then TERM, to every process of a job that it ends."""
    around = [str(launch)]
    for pid in around:
        around += subprocess.run(["pgrep", "--parent", pid], capture_output=True, text=True).stdout.split()
    for name in ("INT", "TERM"):
        subprocess.run(["kill", f"-{name}", *around[1:]], check=True)


@has_sshd
@pytest.mark.parametrize(
    "launcher", ["pdsh", *(pytest.param(name, marks=pytest.mark.soak) for name in ("torchrun", "deepspeed"))]
)
def test_ranks_know_their_place_and_save_when_warned(tmp_path: Path, ssh_config: Path, launcher: str) -> None:
    folder = tmp_path / "a $b"
    process = start(tmp_path, launcher, ssh_config, sys.executable, "-c", PAYLOAD, WORD)
    wait_for(lambda: is_ready(folder) or process.poll() is not None, 90)
    process.send_signal(signal.SIGUSR2)
    if launcher != "deepspeed":  # which ends its ranks itself
        end_all_around(process.pid)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85, errors
    assert (folder / "args_3").read_text() == f"{WORD}\n{NASTY}\n4\n1\n2\n{HOSTS[0]}\n$(touch y)"
    for rank in range(4):
        assert "".join(log_text(tmp_path / "run", False, rank)) == f"rank {rank} runs\nrank {rank} saved\n"
    made = {f"{name}_{rank}" for name in ("args", "ready", "saved") for rank in range(4)}
    assert {path.name for path in folder.iterdir()} == made, "and nothing that a shell was told in between"


@has_sshd
@pytest.mark.parametrize("victim", ["rank", "launch"])
def test_nothing_outlives_a_killed_rank_or_launch(tmp_path: Path, ssh_config: Path, victim: str) -> None:
    folder = tmp_path / "a $b"
    process = start(tmp_path, "pdsh", ssh_config, sys.executable, "-c", PAYLOAD, WORD)
    wait_for(lambda: is_ready(folder))
    os.kill(process.pid if victim == "launch" else int((folder / "ready_3").read_text()), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert ("rank 3 was killed by SIGKILL" in errors) == (victim == "rank") and process.returncode not in (0, 85)
    wait_for(lambda: not any(is_alive(folder / f"ready_{rank}") for rank in range(4)))


@has_sshd
def test_exit_code_of_the_first_that_fails(tmp_path: Path, ssh_config: Path) -> None:
    process = start(tmp_path, "pdsh", ssh_config, "bash", "-c", "[ $RANK = 2 ] && exit 3; exec sleep 300")
    process.communicate(timeout=60)
    assert process.returncode == 3


@has_sshd
def test_a_node_that_is_not_reached_ends_the_launch(tmp_path: Path, ssh_config: Path) -> None:
    """The ranks of the other would wait for it."""
    process = start(tmp_path, "pdsh", ssh_config, "sleep", "300", hosts=(HOSTS[0], "127.0.1.9"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 85) and "127.0.1.9: ssh exited with exit code 255" in errors
    (tmp_path / "run" / "logs" / "train.log").write_text(errors)
    assert lost_node(tmp_path / "run", 0) == "127.0.1.9: ssh exited with exit code 255"


def test_lines() -> None:
    launch = Launch(("train", WORD), 2, 8, 7, Path("a b%"), extra=("-t", "30"), hosts=("n1", "n2"), port=20003)
    lines = {name: LAUNCHERS[name].argv(launch) for name in ("pdsh", "torchrun", "deepspeed")}
    assert_golden("ssh.txt", "".join(f"{name}\n" + "".join(f"{w!r}\n" for w in line) for name, line in lines.items()))


def test_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\nn1 slots=8\n\nn2 slots=8  # slow\n")
    assert hosts_of(file) == {"n1": 8, "n2": 8}
    assert size_by(file, "pdsh", 2, None) == (["n1", "n2"], 8) and size_by(file, "pdsh", 2, 4)[1] == 4
    for launcher, said in {"srun": "srun takes no hosts", "torchrun": "one node of torchrun is this machine"}.items():
        with pytest.raises(UserError, match=said):
            size_by(file, launcher, 1, None)
    file.write_text("n1 slots=8\nn2 slots=4\n")
    assert size_by(file, "pdsh", 1, None)[1] == 8
    with pytest.raises(UserError, match=r"slots differ \(4 to 8\): give --ranks-per-node"):
        size_by(file, "pdsh", 2, None)
    with pytest.raises(UserError, match="no-such: No such file or directory"):
        hosts_of(tmp_path / "no-such")
    for wrong in ("n1 slots=8\nn1 slots=8\n", "n1\nn1 slots=x\n", "ok slots=1\nn1 8\n"):
        file.write_text(wrong)
        with pytest.raises(UserError, match=r"hosts:[12]: .*: must be `HOST slots=N`, each host once"):
            hosts_of(file)
