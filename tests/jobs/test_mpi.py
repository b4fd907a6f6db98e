"""Ranks under MPI's own launchers, run for real with Debian's Open MPI and MPICH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import mpi
from jobs.errors import UserError
from jobs.launch import LAUNCHERS
from jobs.ranks import environment_file, write_environment
from jobs.spec import Launch
from tests.jobs.test_launch import SAVER, wait_for
from tests.jobs.test_scheduler import assert_golden

LOCAL = Path(__file__).parents[2] / "site_configs" / "local" / "site.yaml"
PROGRAMS = {"openmpi": "mpirun.openmpi", "hydra": "mpiexec.hydra"}
# Debian's Open MPI refuses root, whose test machines have nobody else.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
CORES = (max(os.sched_getaffinity(0)), min(os.sched_getaffinity(0)))
"""Of the two ranks: in an order that no launcher would choose."""
INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed"))
    for name, program in PROGRAMS.items()
]


def start(folder: Path, launcher: str, *command: str) -> subprocess.Popen[str]:
    site = folder / "somewhere" / "site.yaml"
    site.parent.mkdir()
    data = yaml.safe_load(LOCAL.read_text()) | {"launcher": launcher}
    data["node"]["rank_cores"] = [str(core) for core in CORES]
    site.write_text(yaml.safe_dump(data))
    (folder / "bin").mkdir()
    if launcher == "openmpi":  # beside MPICH, mpirun may be either
        (folder / "bin" / "mpirun").symlink_to(str(shutil.which(PROGRAMS[launcher])))
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "launch", "--site", str(site), "--ranks-per-node", "2", "--", *command],
        cwd=folder,
        env={**os.environ, **AS_ROOT, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SECRET": "a b\n$c"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_launch_line_of_several_nodes(name: str) -> None:
    launch = Launch(("train",), 2, 8, 7, Path("folder"), extra=("--tag", "a b"), hosts=("n1", "n2"))
    assert_golden(f"{name}_nodes.txt", "\n".join(map(repr, LAUNCHERS[name].argv(launch))) + "\n")


def test_binding_of_the_site_replaces_ours() -> None:
    argv = LAUNCHERS["openmpi"].argv(Launch(("t",), 1, 1, 1, Path(), extra=("--bind-to", "core"), hosts=("n",)))
    assert argv.count("--bind-to") == 1 and "none" not in argv


@pytest.mark.parametrize("name", INSTALLED)
def test_ranks_know_their_place_and_cores_and_share_the_environment(tmp_path: Path, name: str) -> None:
    # One write: ranks run unbuffered, and the pieces of a print would mix with another rank's.
    seen = 'str(os.environ["SECRET"] == "a b\\n$c"), *map(str, os.sched_getaffinity(0))'
    values = seen + ', *map(os.environ.get, "{}".split())'
    line = f'import os; print(" ".join([{values}]) + "\\n", end="")'
    words = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS"
    process = start(tmp_path, name, sys.executable, "-c", line.format(words))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, yaml.safe_load(LOCAL.read_text())["node"]["cores"] // 2))
    host = os.uname().nodename
    assert sorted(output.splitlines()) == sorted(
        f"True {CORES[rank]} {rank} 2 {rank} 2 {host} {threads}" for rank in (0, 1)
    )


@pytest.mark.parametrize("name", INSTALLED)
def test_failed_rank_ends_the_others(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, name, "bash", "-c", "[ $RANK = 1 ] && exit 3; exec sleep 300")
    process.communicate(timeout=60)
    assert process.returncode == 3


@pytest.mark.parametrize("name", INSTALLED)
def test_the_first_rank_that_has_saved_does_not_end_the_others(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, name, "bash", "-c", "[ $RANK = 1 ] && exit 85; sleep 3; touch saved; exit 85")
    process.communicate(timeout=60)
    assert process.returncode == 85 and (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", INSTALLED)
def test_warned_ranks_save(tmp_path: Path, name: str) -> None:
    """Rank 0 is done a second before rank 1: its end must not cost rank 1 its save."""
    process = start(tmp_path, name, sys.executable, "-c", SAVER)
    wait_for(lambda: (tmp_path / "ready_0").exists() and (tmp_path / "ready_1").exists())
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == 85 and (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()


def test_families_are_told_apart() -> None:
    both = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
    mvapich = {f"MV2_COMM_WORLD_{word}": value for word, value in zip(("RANK", "SIZE"), ("6", "8"), strict=True)}
    mvapich |= {"MV2_COMM_WORLD_LOCAL_RANK": "2", "MV2_COMM_WORLD_LOCAL_SIZE": "4"}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert mpi.place(both) == dict(zip(names, ("5", "8", "1", "4"), strict=True))
    assert mpi.place(both | mvapich) == dict(zip(names, ("6", "8", "2", "4"), strict=True))
    with pytest.raises(UserError, match="no rank of an MPI launcher"):
        mpi.place({"PMI_RANK": "0"})


def test_environment_is_private_and_written_once(tmp_path: Path) -> None:
    write_environment(Launch(("t",), 1, 1, 1, tmp_path, hosts=("n1",), port=20003), {"SECRET": "x"})
    assert environment_file(tmp_path).stat().st_mode & 0o077 == 0
    launched = json.loads(environment_file(tmp_path).read_text())
    ours = {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "SECRET": "old"}
    environ = mpi.rank_environment(launched, ours)
    assert (environ["SECRET"], environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("x", "n1", "20003")
