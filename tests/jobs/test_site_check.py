"""`jobs site check` and `jobs site new`, and the parsers of `scontrol show` below them."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import site_check, site_new
from jobs.errors import UserError
from jobs.machine import Machine, read_machine
from jobs.scheduler.slurm_show import Node, Partition, minutes, parse_nodes_json, parse_nodes_text, parse_partitions
from jobs.shell import Result
from jobs.site import Queue, Site, load_site

# What Slurm 22.05.8 printed; GPUs, specialised cores and free text were added.
NODES_TEXT = (
    "NodeName=node1 Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=112 CPUTot=128 CPULoad=2.26 "
    "AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:mi250:8(S:0-3),nvme:2 NodeAddr=127.0.1.1 "
    "NodeHostName=node1 Port=26701 Version=22.05.8 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=512000 "
    "AllocMem=0 FreeMem=19189 Sockets=2 Boards=1 CoreSpecCount=8 CPUSpecList=0-1 MemSpecLimit=2000 State=IDLE+DRAIN "
    "ThreadsPerCore=2 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=batch,preempt  "
    "BootTime=2026-11-21T04:15:02 CfgTRES=cpu=8,mem=4000M,billing=8 AllocTRES= Reason=Sockets=9 by mistake [root@x]\n"
    "NodeName=node2 CoresPerSocket=1 CPUTot=8 Gres=(null) RealMemory=4000 Sockets=8 State=IDLE Partitions=batch\n"
)
NODE1 = Node("node1", 56, 510000, 8, frozenset({"batch", "preempt"}))
NODE2 = Node("node2", 8, 4000, 0, frozenset({"batch"}))
NODES_0_0_38 = {  # sinfo --json of 22.05.8, shortened
    "meta": {"plugin": {"type": "openapi/v0.0.38"}},
    "errors": [],
    "nodes": [
        {"name": "node2", "boards": 1, "cores": 1, "cpus": 8, "gres": "", "partitions": ["batch"], "real_memory": 4000}
        | {"sockets": 8, "threads": 1, "state": "idle", "state_flags": []}
    ],
}
NODES_0_0_43 = {  # scontrol show nodes --json, by the tables of data_parser/v0.0.43/parsers.c
    "nodes": [
        {"name": "node1", "sockets": 2, "cores": 32, "specialized_cores": 8, "specialized_memory": 2000}
        | {"gres": "gpu:mi250:8(S:0-3),nvme:2", "partitions": ["batch", "preempt"], "state": ["IDLE", "DRAIN"]}
        | {"real_memory": {"set": True, "infinite": False, "number": 512000}, "effective_cpus": 112}
    ],
}
PARTITIONS = (
    "PartitionName=batch AllowGroups=ALL Default=YES QoS=N/A DefaultTime=00:10:00 RootOnly=NO GraceTime=0 "
    "MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 Nodes=node[1-2] OverSubscribe=NO "
    "PreemptMode=OFF State=UP TotalNodes=2\n"
    "PartitionName=preempt Default=NO GraceTime=15 MaxNodes=1 MaxTime=1-00:30:00 MinNodes=1 Nodes=node1 "
    "OverSubscribe=EXCLUSIVE PreemptMode=REQUEUE RootOnly=NO State=UP TotalNodes=1 SelectTypeParameters=NONE\n"
    "PartitionName=old Default=NO MaxTime=30:00 MinNodes=0 MaxNodes=UNLIMITED Exclusive=NODE PreemptMode=OFF "
    "State=DOWN TotalNodes=0\n"
)
BATCH = Partition("batch", True, True, 2, 1, 2, None, "OFF", 0, False)
PREEMPT = Partition("preempt", False, True, 1, 1, 1, 1470, "REQUEUE", 15, True)
CONFIG = (
    "Configuration data as of 2026-11-21T10:57:48\nAuthInfo  = socket=/run/munge,cred_expire=5\nClusterName  = hive\n"
    "JobRequeue = 1\nKillWait                = 30 sec\nSLURM_VERSION  = 22.05.8\n"
    "SlurmctldParameters     = preempt_send_user_signal\n"
)


def answers(argv: tuple[str, ...]) -> Result:
    """Of a Slurm before 23.02, whose scontrol has no --json."""
    if "--json" in argv:
        return Result(1, "", "scontrol: unrecognized option '--json'")
    return Result(0, {"nodes": NODES_TEXT, "partitions": PARTITIONS, "config": CONFIG}[argv[-1]], "")


MACHINE = read_machine(answers)


def site(**values: object) -> Site:
    return replace(load_site("slurm"), cores=56, gpus=8, memory_gb=498.0, whole_nodes=True, **values)  # type: ignore[arg-type]


def test_parsers_agree_across_forms_and_versions() -> None:
    assert parse_nodes_text(NODES_TEXT) == [NODE1, NODE2]
    assert parse_nodes_json(json.dumps(NODES_0_0_43)) == [NODE1]
    assert parse_nodes_json(json.dumps(NODES_0_0_38)) == [NODE2]
    batch, preempt, old = parse_partitions(PARTITIONS)
    assert (batch, preempt) == (BATCH, PREEMPT)
    assert not old.is_open and old.whole_nodes and old.walltime_max_min == 30
    assert [minutes(text) for text in ("2-12:00:00", "02:00:00", "30:00", "UNLIMITED")] == [3600, 120, 30, None]


def test_machine_is_read_from_json_where_there_is_any() -> None:
    assert Machine("22.05.8", "hive", MACHINE.partitions, (NODE1, NODE2), True, True, 30) == MACHINE
    newer = Result(0, json.dumps(NODES_0_0_43), "")
    assert read_machine(lambda argv: newer if "--json" in argv else answers(argv)).nodes == (NODE1,)
    odd = json.dumps({"nodes": [{**NODES_0_0_43["nodes"][0], "partitions": {"set": False}, "gres": None}]})
    for text in ("", '{"errors": []}', odd.replace('"partitions": {', '"partitions": [{').replace("false}", "false}]")):
        unknown = Result(0, text, "")
        assert read_machine(lambda argv, said=unknown: said if "--json" in argv else answers(argv)) == MACHINE
    partition = parse_partitions(PARTITIONS.replace("GraceTime=", "GraceTime=N/A X="))[0]
    assert (partition.grace_s, partition.name) == (0, BATCH.name)
    with pytest.raises(UserError, match="scontrol show config: scontrol: command not found"):
        read_machine(lambda argv: Result(127, "", "scontrol: command not found"))


@pytest.mark.parametrize(
    ("profile", "differs"),
    [
        (site(queues=(Queue("preempt", 1470, max_nodes=1),)), []),
        (site(queues=(Queue("preempt", 1471, max_nodes=2),)), ["1 to 2 nodes; it allows 1 to 1", "it allows 1470"]),
        (site(queues=(Queue("gpu", 60),)), ["partition gpu: absent; there are batch, preempt, old"]),
        (site(queues=(Queue("preempt", 60, max_nodes=1),), grace_s=15), ["GraceTime 15 s; grace_s is 15"]),
        (
            replace(site(queues=(Queue("preempt", max_nodes=1),)), cores=64, gpus=4, memory_gb=512.0),
            ["64 cores; they have 56", "4 GPUs; they have 8", "512 GB of memory; they have 498.047"],
        ),
        (site(), ["56 cores; they have 8 or 56", "8 GPUs; they have 0 or 8", "498 GB", "whole_nodes is True"]),
        (site(setup=("module load nosuch/1.0",), queues=(Queue("preempt", max_nodes=1),)), ["module nosuch/1.0; "]),
    ],
)
def test_each_difference_is_a_line(
    profile: Site, differs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_check, "read_machine", lambda: MACHINE)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = [str(finding) for finding in site_check.check(profile, tmp_path) if finding.agrees is False]
    assert len(found) == len(differs), found
    assert all(line.startswith("differs ") and part in line for line, part in zip(found, differs, strict=True)), found


def test_defaults_of_the_profile_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_check, "read_machine", lambda: MACHINE)
    said = {f"user={pwd.getpwuid(os.getuid()).pw_name}": "ml|normal,high\nphys|normal\n"}
    monkeypatch.setattr(site_check, "run", lambda argv: Result(0, said.get(argv[5], ""), ""))
    monkeypatch.delenv("USER", raising=False)  # as in a container, or from cron
    monkeypatch.delenv("LOGNAME", raising=False)
    (tmp_path / "config.yaml").write_text(
        "default-resources: [slurm_account=bio, slurm_qos=high, slurm_partition=gpu, nodes=1]\n"
    )
    found = [str(finding) for finding in site_check.check(site(), tmp_path)]
    assert "differs  account bio; this user has ml, phys" in found and "agrees   qos high" in found
    assert "differs  partition gpu: absent; there are batch, preempt, old" in found


def test_a_new_profile_is_valid_and_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = replace(BATCH, name="at_once", is_default=False, preempt_mode="REQUEUE")
    nodes = [replace(NODE1, name=name, partitions=NODE1.partitions | {"at_once"}) for name in ("node1", "node3")]
    machine = replace(MACHINE, nodes=tuple(nodes), partitions=(*MACHINE.partitions, at_once))
    folder = site_new.write_profile("here", machine, root=tmp_path)
    assert {file.name for file in folder.iterdir()} == {"site.yaml", "config.yaml", "README.md"}
    made = load_site(str(folder))
    assert (made.ranks, made.cores, made.gpus, made.memory_gb, made.grace_s) == (8, 56, 8, 498.0, 12)
    assert made.queues == (Queue("batch", None, 1, 2), Queue("at_once", None, 1, 2)), "preempt gives whole nodes"
    monkeypatch.setattr(site_check, "read_machine", lambda: machine)
    found = [str(finding) for finding in site_check.check(made, folder)]
    assert "agrees   nodes of batch: 56 cores" in found
    assert "agrees   partition preempt: PreemptMode=REQUEUE, GraceTime 15 s; grace_s is 12" in found
    assert "agrees   partition at_once: PreemptMode=REQUEUE, KillWait 30 s; grace_s is 12" in found
    with pytest.raises(UserError, match="is there already"):
        site_new.write_profile("here", MACHINE, root=tmp_path)
    with pytest.raises(UserError, match="a name of letters"):
        site_new.write_profile("../evil", MACHINE, root=tmp_path)
    with pytest.raises(UserError, match="no partition with nodes is open"):
        site_new.write_profile("empty", replace(MACHINE, nodes=()), root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_new_profile_is_for_one_kind_of_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, shut = replace(BATCH, name="small", is_default=False), replace(BATCH, name="shut", max_nodes=0)
    nodes = [replace(NODE1, partitions=frozenset({"batch", "shut"})), replace(NODE2, partitions=frozenset({"small"}))]
    nodes.append(replace(nodes[0], name="node3", memory_mb=400_000))
    machine = replace(MACHINE, nodes=tuple(nodes), partitions=(small, BATCH, shut))
    monkeypatch.setattr(site_check, "read_machine", lambda: machine)
    for wanted, partition, cores, memory_gb in ((None, "batch", 56, 390.6), ("small", "small", 8, 3.9)):
        folder = site_new.write_profile(f"for_{partition}", machine, wanted, tmp_path)
        made = load_site(str(folder))
        assert (made.cores, made.memory_gb, made.queues) == (cores, memory_gb, (Queue(partition, None, 1, 2),))
        other = {"batch": "small", "small": "batch"}[partition]
        assert f"queues:  # not {other}: their nodes" in (folder / "site.yaml").read_text()
        shapes = [str(finding) for finding in site_check.check(made, folder) if "nodes of" in str(finding)]
        assert len(shapes) == 3 and all(line.startswith("agrees") for line in shapes)
    with pytest.raises(UserError, match="--partition shut: not one that is open to users and has nodes: small, batch"):
        site_new.write_profile("none", machine, "shut", tmp_path)
