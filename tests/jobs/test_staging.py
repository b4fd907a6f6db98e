"""The environment of the ranks is unpacked on the node once, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from jobs.errors import UserError
from jobs.staging import Stage, broadcast, broadcast_argv, unpack, unpack_argv

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
    archive, folder = pack(tmp_path, "one"), tmp_path / "disk" / "env"
    stage = f"\nstage: {{archive: {archive}, folder: $DISK/env, source: test}}\n"
    (tmp_path / "site.yaml").write_text(SITE.read_text() + stage)
    environ = {**os.environ, "DISK": str(tmp_path / "disk")}
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
        broadcast(Stage("/nowhere.tar", "/x"), "torchrun")
    with pytest.raises(UserError, match=r"\$NO_SUCH: not set here"):
        Stage("$NO_SUCH/env.tar", "/x").expanded()


def test_the_commands_are_those_of_the_manuals(tmp_path: Path) -> None:
    """sbcast(1), and OLCF's page sbcast_conda; unsquashfs(1)."""
    stage = Stage("/lustre/env.sqsh", "/mnt/bb/me/env")
    assert broadcast_argv(stage, "srun") == ["sbcast", "--force", "--preserve", stage.archive, "/mnt/bb/me/env.archive"]
    assert broadcast_argv(stage, "jsrun") is None
    assert unpack_argv(Path(stage.archive), stage.copy, Path("/e"))[-3:] == ["-dest", "/e", "/mnt/bb/me/env.archive"]
    with pytest.raises(UserError, match=r"must end in one of .sqsh"):
        unpack_argv(Path("env.rar"), Path("/c"), Path("/e"))
