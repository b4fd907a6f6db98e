"""The environment of the ranks is unpacked on the node once, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from jobs import warning
from jobs.errors import UserError
from jobs.staging import Stage, broadcast_argv, require, unpack, unpack_argv

SITE = Path(__file__).parents[2] / "site_configs" / "local" / "site.yaml"


def pack(folder: Path, said: str) -> Path:
    """An archive of an environment: a python3, which is ours, and a program that says who it is."""
    programs = folder / "env" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "trainer").write_text(f"#!/bin/sh\necho {said}\n")
    for file in programs.iterdir():
        file.chmod(0o755)
    with tarfile.open(folder / "env.tar.gz", "w:gz") as archive:
        archive.add(folder / "env", ".")
    return folder / "env.tar.gz"


def test_ranks_run_what_was_staged(tmp_path: Path) -> None:
    """By `jobs launch` of a site with `stage`: unpacked once, and again when it was packed anew."""
    pack(tmp_path, "one")
    count = "len(glob(os.environ.get('JOBS_ALLOCATION', '') + '/launch_*'))"  # a warning now is not for who stages
    conda_unpack = f"from glob import glob; import os; raise SystemExit({count})"
    (tmp_path / "env" / "bin" / "conda-unpack").write_text(conda_unpack)
    archive, folder = pack(tmp_path, "one"), tmp_path / "disk" / "env"
    stage = f"\nstage: {{archive: {archive}, folder: $DISK/env, source: test}}\n"
    (tmp_path / "site.yaml").write_text(SITE.read_text() + stage)
    environ = {**os.environ, "DISK": str(tmp_path / "disk"), "JOBS_ALLOCATION": str(tmp_path / "notes")}
    command = [sys.executable, "-m", "jobs", "launch", "--site", str(tmp_path / "site.yaml"), "--ranks-per-node", "1"]

    done = subprocess.run([*command, "--", "trainer"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "one\n"), done.stderr
    (folder / "bin" / "trainer").write_text("as it was left")
    unpack(Stage(str(archive), str(folder)))
    assert (folder / "bin" / "trainer").read_text() == "as it was left"
    pack(tmp_path, "two")
    unpack(Stage(str(archive), str(folder)))
    assert "two" in (folder / "bin" / "trainer").read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["env", "env.lock"]


def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    archive = pack(tmp_path, "one")
    os.truncate(archive, 40)
    with pytest.raises(UserError, match=r"env\.tar\.gz"):
        unpack(Stage(str(archive), str(tmp_path / "disk" / "env")))
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["env.lock"]
    with pytest.raises(UserError, match="no such file"):
        require(Stage("/nowhere.tar", "/x"))
    for word in ("$NO_SUCH", "${NO_SUCH}"):
        with pytest.raises(UserError, match=f"{re.escape(word)}: not set here"):
            Stage(f"{word}/env.tar", "/x").expanded()


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="squashfs-tools are not installed")
def test_a_squashfs_file_is_unpacked(tmp_path: Path) -> None:
    pack(tmp_path, "one")
    archive, folder = tmp_path / "env.sqsh", tmp_path / "disk" / "env"
    subprocess.run(["mksquashfs", str(tmp_path / "env"), str(archive), "-quiet", "-no-progress"], check=True)
    unpack(Stage(str(archive), str(folder)))
    assert subprocess.run([folder / "bin" / "trainer"], capture_output=True, text=True).stdout == "one\n"
    archive.write_bytes(b"x" * 4096)
    with pytest.raises(UserError, match=r"env\.sqsh: FATAL ERROR"):
        unpack(Stage(str(archive), str(folder)))
    assert not folder.exists()


def test_a_node_that_cannot_be_made_ready_is_avoided(tmp_path: Path) -> None:
    """Its disk is full, say: no rank starts, the job goes on without it, and the run's segments say why."""
    archive, notes = pack(tmp_path, "one"), tmp_path / "notes"
    (tmp_path / "disk").write_text("no folder")
    stage = f"\nstage: {{archive: {archive}, folder: {tmp_path}/disk/env, source: test}}\n"
    (tmp_path / "site.yaml").write_text(SITE.read_text() + stage)
    command = [sys.executable, "-m", "jobs", "launch", "--site", "site.yaml", "--run-dir", "run", "--", "trainer"]
    environ = {**os.environ, "JOBS_ALLOCATION": str(notes)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    said = f"{socket.gethostname()}: [Errno 17] File exists: '{tmp_path}/disk'"
    assert (done.returncode, done.stderr) == (warning.UNHEALTHY, f"jobs: error: node {said}\n")
    assert warning.read_outcome(notes) == warning.UNHEALTHY and warning.launches(notes) == []
    assert warning.excluded(notes, 4) == [socket.gethostname()]
    line = json.loads((tmp_path / "run" / "segments.jsonl").read_text())
    assert (line["kind"], line["cause"]) == ("unfit nodes", f"unfit nodes: {said}")


def test_what_was_broadcast_is_taken_away_and_conda_unpack_must_do_its_work(tmp_path: Path) -> None:
    archive = pack(tmp_path, "one")
    stage = Stage(str(archive), str(tmp_path / "disk" / "env"))
    for _ in range(2):  # the second time all is there already
        stage.copy.parent.mkdir(exist_ok=True)
        shutil.copy(archive, stage.copy)
        unpack(stage)
        assert not stage.copy.exists() and Path(stage.folder).is_dir()
    (tmp_path / "env" / "bin" / "conda-unpack").write_text("raise SystemExit('no prefix here')")
    pack(tmp_path, "two")
    with pytest.raises(UserError, match="no prefix here"):
        unpack(stage)
    assert not Path(stage.folder).exists()


def test_the_commands_are_those_of_the_manuals(tmp_path: Path) -> None:
    """sbcast(1), and OLCF's page sbcast_conda; unsquashfs(1)."""
    stage = Stage("/lustre/env.sqsh", "/mnt/bb/me/env")
    assert broadcast_argv(stage, "srun") == ["sbcast", "--force", "--preserve", stage.archive, "/mnt/bb/me/env.archive"]
    assert broadcast_argv(stage, "jsrun") is None
    assert unpack_argv(Path(stage.archive), stage.copy, Path("/e"))[-3:] == ["-dest", "/e", "/mnt/bb/me/env.archive"]
    with pytest.raises(UserError, match=r"must end in one of .sqsh"):
        unpack_argv(Path("env.rar"), Path("/c"), Path("/e"))
