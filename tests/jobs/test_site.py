"""site.yaml files: ours are valid, wrong ones stop with one line; resources become a JobSpec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import UserError
from jobs.launcher import launch_environment, plan_launch
from jobs.resources import job_spec
from jobs.site import load_site

ROOT = Path(__file__).parents[2]
SITES = sorted(file.parent.name for file in (ROOT / "site_configs").glob("*/site.yaml"))


@pytest.mark.parametrize("name", SITES)
def test_shipped_sites_are_valid(name: str) -> None:
    assert load_site(name).name == name


def changed(tmp_path: Path, key: str, value: Any) -> str:
    data = yaml.safe_load((ROOT / "site_configs" / "local" / "site.yaml").read_text())
    *parents, last = key.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    if value is None:
        del target[last]
    else:
        target[last] = value
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(data))
    return str(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("launchers", "srun", r"launchers: unknown key; did you mean launcher"),
        ("node.rank", 2, r"node\.rank: unknown key; did you mean ranks"),
        ("node.ranks", 0, r"node\.ranks: 0 is less than the minimum of 1"),
        ("node.ranks", "two", r"node\.ranks: 'two' is not of type 'integer'"),
        ("node.rank_cores", ["0-3"], r"node\.rank_cores: must be 2 items, one for each of node\.ranks"),
        ("node.rank_cores", ["0-3", "4-"], r"node\.rank_cores\.1: '4-' does not match"),
        ("scheduler", "slrum", r"scheduler: 'slrum' is not one of slurm, local, lsf"),
        ("has_launch_node", True, r"launcher: 'torchrun' is not one of jsrun"),
        ("requeue.max_idle", None, r"requeue\.max_idle: missing"),
        ("grace_s", 600, r"grace_s: 600 must be less than signal_delay_s \(60\)"),
    ],
)
def test_wrong_site_is_one_line_with_file_and_key(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_site(changed(tmp_path, key, value))
    assert "\n" not in str(caught.value) and "site.yaml" in str(caught.value)


def test_broken_yaml_and_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"site\.yaml: .*line 1"):
        load_site(str(tmp_path))
    with pytest.raises(UserError, match=r"known: .*local.*slurm"):
        load_site("slrum")


def test_ranks_are_told_their_peak() -> None:
    told = []
    for name in ("frontier", "local"):
        site = load_site(name)
        environ = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1"}
        launch = plan_launch(site, ["train"], 1, None, Path(), environ)
        told.append(launch_environment(site, launch, {}).get("NEOX_RANK_TFLOPS"))
    assert told == ["bf16=191.5 fp16=191.5", None]


def test_local_ranks_keep_the_memory_they_free() -> None:
    code = """
import resource
faults = []
for _ in range(3):
    bytearray(1 << 26)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, **load_site("local").environment}
    assert int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) < 16


def test_local_ranks_use_the_place_of_a_freed_tensor_again() -> None:
    """Eight of 1 MiB, replaced one after the other, aligned to 64 bytes as PyTorch's are, stay within nine MiB."""
    code = """
import ctypes
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 1 << 20
tensors = [libc.aligned_alloc(64, size) for _ in range(8)]
seen = [*tensors]
for i in range(32):
    libc.free(tensors[i % 8])
    tensors[i % 8] = libc.aligned_alloc(64, size)
    seen.append(tensors[i % 8])
print((max(seen) - min(seen)) // size)
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, **load_site("local").environment}
    assert int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) <= 8


def test_resources_become_a_job_spec() -> None:
    resources = {
        "nodes": 2,
        "tasks_per_node": 2,
        "mem_mb": 2048,
        "runtime": 30,
        "slurm_account": "ml",
        "partition": "batch",
    }
    resources |= {"slurm_extra": "--constraint='a b'", "disk_mb": 5, "tmpdir": "/tmp"}
    spec = job_spec("train", resources, 3, load_site("slurm"))
    assert (spec.nodes, spec.ranks_per_node, spec.cpus_per_rank, spec.mem_gb, spec.runtime_min) == (2, 2, 3, 2.0, 30)
    assert (spec.account, spec.partition, spec.qos, spec.extra) == ("ml", "batch", None, ("--constraint=a b",))


@pytest.mark.parametrize(
    ("site", "resources", "message"),
    [
        ("slurm", {"slurm_partitoin": "x"}, "slurm_partitoin: not known; known: slurm_account, slurm_partition"),
        ("slurm", {"mem_mb": 64000}, r"mem_mb=64000 per node: site slurm has 3993\.6 \(node\.memory_gb"),
        ("slurm", {"gpu": 1}, r"gpus_per_node=1 per node: site slurm has 0"),
        ("local", {"nodes": 2}, "nodes=2: site local has one node"),
    ],
)
def test_resources_that_the_site_lacks(site: str, resources: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        job_spec("train", resources, 1, load_site(site))
