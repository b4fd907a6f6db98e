"""Launches in containers, for every runtime; and what `jobs launch --dry-run` prints. UPDATE_GOLDEN=1 rewrites."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.container import PREFIXES, Container, contain
from jobs.errors import UserError
from jobs.hostfile import hostfile_text
from jobs.launch import LAUNCHERS
from jobs.launcher import describe, launch_environment, plan_launch
from jobs.site import load_site, with_image
from jobs.spec import Launch
from tests.jobs.test_scheduler import NASTY, assert_golden

ALLOCATION = {
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[07-08]",
    "SLURM_JOB_ID": "4711",
    "SUBMITIT_LOCAL_JOB_ID": "12",
    "LSB_JOBID": "4711",
    "LSB_MCPU_HOSTS": "batch5 1 h49n16 42 h49n18 42",
}
LAUNCH = Launch(("train", NASTY), nodes=2, ranks_per_node=4, cpus_per_rank=7, folder=Path("folder"), hosts=("a", "b"))


@pytest.mark.parametrize("runtime", [*PREFIXES, "pyxis"])
def test_line_in_a_container(runtime: str) -> None:
    container = Container(runtime, "/images/a b.sif", ("/lustre:/lustre",), ("--option", NASTY))
    launch = contain(LAUNCH, "srun", container, Path("/work dir"), ["NCCL_DEBUG", "OMP_NUM_THREADS"])
    assert_golden(f"container_{runtime}.txt", "\n".join(map(repr, LAUNCHERS["srun"].argv(launch))) + "\n")


def test_wrong_containers_are_refused() -> None:
    with pytest.raises(UserError, match="pyxis is part of srun; the launcher is openmpi"):
        contain(LAUNCH, "openmpi", Container("pyxis", "x"), Path("/"), [])
    with pytest.raises(UserError, match="--image x: site slurm has no `container`"):
        with_image(load_site("slurm"), "x")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_dry_run_of_each_launcher(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact line and environment, the master's address included."""
    monkeypatch.setattr("os.uname", lambda: type("Uname", (), {"nodename": "login1"}))
    scheduler = {"jsrun": "lsf", "torchrun": "local"}.get(launcher, "slurm")
    site = replace(load_site("slurm"), scheduler=scheduler, launcher=launcher)
    nodes = 1 if launcher == "torchrun" else 2
    launch = plan_launch(site, ["neox", "train", NASTY], nodes, 2, Path("LAUNCH_FOLDER"), ALLOCATION)
    assert_golden(f"dry_run_{launcher}.txt", describe(site, launch, ALLOCATION) + "\n")


def test_hostfile_of_deepspeed() -> None:
    assert hostfile_text(LAUNCH) == "a slots=4\nb slots=4\n"


def test_a_site_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[2] / "site_configs" / "slurm" / "site.yaml"
    container = "container: {runtime: apptainer, image: torch.sif, args: [--rocm], source: test}\n"
    (tmp_path / "site.yaml").write_text(source.read_text() + container)
    monkeypatch.chdir(tmp_path)
    site = with_image(load_site(str(tmp_path)), "other.sif")
    launch = plan_launch(site, ["neox", "train"], 2, 2, Path("folder"), ALLOCATION)
    prefix = ("apptainer", "exec", f"--pwd={tmp_path}", "--rocm", "other.sif")
    assert launch.command == (*prefix, "neox", "train")
    variables = launch_environment(site, launch, {"APPTAINER_BIND": "/opt/cray"})
    assert variables["APPTAINER_BIND"] == f"/opt/cray,{tmp_path}:{tmp_path}", "the mounts of a module stay"
