"""Ranges, pins and environment.yml agree, and an installed copy has what Snakemake looks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)==([\w.]+)", line.strip()) for line in lines)
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def read_pins(file: str) -> dict[str, str]:
    return pins((ROOT / "requirements" / file).read_text().splitlines())


def assert_pinned(ranges: list[str], exact: dict[str, str]) -> None:
    wanted = {canonicalize_name(Requirement(text).name): Requirement(text).specifier for text in ranges}
    assert set(wanted) == set(exact)
    assert [name for name, allowed in wanted.items() if not allowed.contains(exact[name])] == []


def test_pins_satisfy_the_ranges() -> None:
    assert_pinned(PROJECT["dependencies"], read_pins("run.txt"))
    assert_pinned(PROJECT["optional-dependencies"]["dev"], read_pins("dev.txt"))


def test_environment_yml_has_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pins(listed) == read_pins("run.txt")


def test_constraints_contain_the_pins() -> None:
    constraints = read_pins("constraints.txt")
    assert {name: constraints.get(name) for name in read_pins("run.txt")} == read_pins("run.txt")


def test_plugin_is_found_by_snakemake_in_this_installation(tmp_path: Path) -> None:
    code = (
        "from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry as R\n"
        "assert R().get_plugin('submitit').settings_cls is not None"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_wheel_holds_every_package_at_its_place(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"neox", "kernels", "jobs", "snakemake_executor_plugin_submitit"}
    assert "snakemake_executor_plugin_submitit/__init__.py" in names
