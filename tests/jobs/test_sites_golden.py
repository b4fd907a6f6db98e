"""Real sites: the submit line, batch script and launch line of a two-node job. UPDATE_GOLDEN=1 rewrites the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import binding
from jobs.errors import UserError
from jobs.launch import LAUNCHERS
from jobs.launcher import place, plan_launch
from jobs.ranks import one_device
from jobs.resources import job_spec
from jobs.scheduler import SCHEDULERS
from jobs.site import find_site, load_site
from jobs.site_check import default_resources
from jobs.spec import JobSpec
from tests.jobs.test_scheduler import assert_golden

ALLOCATION = {
    "SLURM_JOB_NUM_NODES": "2",
    "LSB_MCPU_HOSTS": "batch5 1 h49n16 42 h49n18 42",
}


@pytest.mark.parametrize("name", ["frontier", "lumi", "aws", "aws_hyperpod", "summit"])
def test_lines_of_a_site(name: str) -> None:
    site = load_site(name)
    profile = default_resources(find_site(name).with_name("config.yaml"))
    resources = {**profile, "nodes": 2, "tasks_per_node": site.ranks, "runtime": 60, "mem_mb": 9000}
    spec = job_spec("train", {**resources, "slurm_account": "PRJ123"}, site.cores // site.ranks, site)
    batch = SCHEDULERS[site.scheduler].batch
    assert batch is not None
    launch = plan_launch(site, ["neox", "train"], 2, None, Path("folder"), ALLOCATION)
    lines = [*batch.submit(spec, Path("job.sh")), "", *LAUNCHERS[site.launcher].argv(launch)]
    assert_golden(f"site_{name}.txt", "\n".join(lines) + "\n\n" + batch.script(spec))


@pytest.mark.parametrize("scheduler", ["slurm", "lsf"])
def test_setup_lines_come_between_the_exports_and_the_command(scheduler: str) -> None:
    spec = JobSpec(name="x", env={"A": "1"}, setup=("module load rocm", "export B=$A"), command=("train",))
    batch = SCHEDULERS[scheduler].batch
    assert batch is not None
    assert batch.script(spec) == "#!/bin/bash\nexport A=1\nmodule load rocm\nexport B=$A\nexec train\n"


def test_setup_may_load_modules(tmp_path: Path) -> None:
    """Batch shells read no profile: the first line of setup brings `module`."""
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text('module() { export LOADED="$LOADED $2"; }\n')
    setup = ('source "$MODULESHOME/init/bash"', "module load rocm", "module load rccl")
    spec = JobSpec(name="x", setup=setup, command=("bash", "-c", "echo $LOADED"))
    batch = SCHEDULERS["slurm"].batch
    assert batch is not None
    (tmp_path / "job.sh").write_text(batch.script(spec))
    argv = ["env", "-i", f"MODULESHOME={tmp_path}", "/bin/bash", str(tmp_path / "job.sh")]
    assert subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout == "rocm rccl\n"


def test_runtime_is_cut_to_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    frontier = load_site("frontier")
    spec = job_spec("train", {"nodes": 4, "runtime": 240}, 1, frontier)
    assert (spec.partition, spec.runtime_min) == ("batch", 120)
    assert "runtime=240 becomes 120 minutes: the most of batch at 4 nodes" in capsys.readouterr().err
    assert job_spec("train", {"nodes": 92, "runtime": 240}, 1, frontier).runtime_min == 240
    extended = {"nodes": 4, "runtime": 240, "slurm_partition": "extended"}
    assert job_spec("train", extended, 1, frontier).runtime_min == 240
    unknown = job_spec("train", {"runtime": 9999, "slurm_partition": "new"}, 1, frontier)
    assert (unknown.partition, unknown.runtime_min) == ("new", 9999)
    with pytest.raises(UserError, match="nodes=65: site frontier takes extended 1 to 64"):
        job_spec("train", {"nodes": 65, "slurm_partition": "extended"}, 1, frontier)


def test_walltime_goes_by_bins() -> None:
    queues = {nodes: load_site("frontier").queue_for(nodes) for nodes in (91, 92, 184, 9473)}
    assert {nodes: queue and queue.walltime_max_min for nodes, queue in queues.items()} == {
        91: 120,
        92: 360,
        184: 720,
        9473: None,
    }
    extended = load_site("frontier").queue_for(64, "extended")
    assert extended is not None and extended.walltime_max_min == 1440


def test_cores_are_those_of_the_sites_documentation() -> None:
    """LUMI's masks as in its guide (lumig-job), Frontier's binding as in "Process and Thread Mapping"."""
    assert binding.masks(load_site("lumi").rank_cores) == (
        "fe000000000000,fe00000000000000,fe0000,fe000000,fe,fe00,fe00000000,fe0000000000"
    )
    by_gcd = dict(zip((4, 5, 2, 3, 6, 7, 0, 1), load_site("frontier").rank_cores, strict=True))
    assert [by_gcd[gcd] for gcd in range(8)] == list(load_site("lumi").rank_cores), "the same node"
    domains = ("000000ff,ffff0000,00ffffff", "ffffff00,0000ffff,ff000000")  # aws-ofi-nccl, topology/p4d-24xl-topo.xml
    of_ranks = [int(domains[rank // 4].replace(",", ""), 16) for rank in range(8)]
    assert binding.masks(load_site("aws").rank_cores) == ",".join(f"{mask:x}" for mask in of_ranks)


def test_it_is_said_that_other_ranks_than_the_sites_are_not_bound() -> None:
    launches = [plan_launch(load_site("lumi"), ["train"], 1, ranks, Path(), ALLOCATION) for ranks in (8, 4)]
    said = [next(line for line in place(load_site("lumi"), launch) if "rank" in line) for launch in launches]
    assert said[0].startswith("# cores of local ranks: 49-55 ")
    assert said[1] == "# ranks are not bound: node.rank_cores of site lumi is for 8 of them on a node"


def test_cores_are_of_full_nodes_only() -> None:
    site = load_site("lumi")
    lines = [LAUNCHERS["srun"].argv(plan_launch(site, ["x"], 2, ranks, Path("folder"), ALLOCATION)) for ranks in (8, 4)]
    assert [any(word.startswith("--cpu-bind=") for word in line) for line in lines] == [True, False]
    assert ["--cores" in line for line in lines] == [True, False] and "--cpus-per-task=14" in lines[1]


def test_rank_that_sees_one_device() -> None:
    assert one_device("scheduler", "3") == {"LOCAL_RANK": "0"}
    assert one_device("ROCR_VISIBLE_DEVICES", "3") == {"LOCAL_RANK": "0", "ROCR_VISIBLE_DEVICES": "3"}


def test_wrapper_sets_the_device(tmp_path: Path) -> None:
    options = ["--from", "torchrun", "--folder", str(tmp_path), "--device-choice", "CUDA_VISIBLE_DEVICES"]
    options += ["--cores", "x:x:x:99999"]
    command = ["bash", "-c", "echo $RANK $LOCAL_RANK $CUDA_VISIBLE_DEVICES"]
    environ = {**os.environ, "RANK": "5", "LOCAL_RANK": "3"}
    argv = [sys.executable, "-m", "jobs.ranks", *options, "--", *command]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30)
    assert done.stdout == "5 0 3\n"
    assert done.stderr == "jobs: not bound: this node gives us none of cores 99999\n"
