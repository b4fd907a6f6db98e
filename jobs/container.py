"""A launch whose ranks run in containers: what is put before their command, or among the launcher's options.

Sources: apptainer-exec(1), the usage of `enroot start`, the README of pyxis, docker-run(1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.errors import UserError
from jobs.spec import Launch

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Container:
    """The keys are described in `site_configs/schema.yaml`."""

    runtime: str
    image: str
    mounts: tuple[str, ...] = ()
    """SOURCE:TARGET; the folder that a launch is started in is always there, under its own path."""
    args: tuple[str, ...] = ()


def contain(launch: Launch, launcher: str, container: Container, folder: Path, variables: Iterable[str]) -> Launch:
    """The launch with its ranks in containers that work in `folder`.

    `variables`: names that the ranks must have; apptainer passes all on, the others those that are named. Raises
    UserError where pyxis, an extension of srun, is wanted of another launcher.
    """
    if container.runtime == "pyxis":
        if launcher != "srun":
            raise UserError(f"container.runtime: pyxis is part of srun; the launcher is {launcher}")
        return replace(launch, extra=(*launch.extra, *_pyxis(container, folder, variables)), python="python3")
    prefix = PREFIXES[container.runtime](container, folder, (*RANK_VARIABLES, *variables))
    return replace(launch, command=(*prefix, *launch.command))


def _mounts(container: Container, folder: Path) -> list[str]:
    return [f"{folder}:{folder}", *container.mounts]


def _pyxis(container: Container, folder: Path, variables: Iterable[str]) -> list[str]:
    """The rank's wrapper is in the container too: its image needs a python3, and the project lies in `folder`."""
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(container, folder))}",
        f"--container-workdir={folder}",
        f"--container-env={','.join(variables)}",  # for these the image's own value does not win
        *container.args,
    ]


def _apptainer(container: Container, folder: Path, variables: Iterable[str]) -> list[str]:
    """It becomes the command, which so receives the signals; its mounts are in the environment."""
    return [container.runtime, "exec", f"--pwd={folder}", *container.args, container.image]


def binds(container: Container | None, folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The mounts of apptainer and singularity, beside those that a site's modules have set, which --bind would replace:
    on LUMI RCCL would then fall back to TCP without a word (LUMI AI guide)."""
    if container is None or container.runtime not in ("apptainer", "singularity"):
        return {}
    name = f"{container.runtime.upper()}_BIND"
    return {name: ",".join([*filter(None, [environ.get(name)]), *_mounts(container, folder)])}


def _enroot(container: Container, folder: Path, variables: Iterable[str]) -> list[str]:
    mounts = [f"--mount={mount}" for mount in _mounts(container, folder)]
    return ["enroot", "start", *mounts, *(f"--env={name}" for name in variables), *container.args, container.image]


def _docker(container: Container, folder: Path, variables: Iterable[str]) -> list[str]:
    """--init: the command is not process 1, for which signals without a handler do nothing."""
    fixed = ["docker", "run", "--rm", "--init", "--network=host", "--ipc=host", f"--workdir={folder}"]
    volumes = [f"--volume={mount}" for mount in _mounts(container, folder)]
    return [*fixed, *volumes, *(f"--env={name}" for name in variables), *container.args, container.image]


PREFIXES: dict[str, Callable[[Container, Path, Iterable[str]], list[str]]] = {
    "apptainer": _apptainer,
    "singularity": _apptainer,
    "enroot": _enroot,
    "docker": _docker,
}
