"""Facts of a site: loads and checks `site_configs/<site>/site.yaml`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jobs.container import Container
from jobs.errors import UserError
from jobs.health import Health
from jobs.staging import Stage

FOLDER = Path("site_configs")
AS_THEY_ARE = (
    *("scheduler", "launcher", "signal_delay_s", "grace_s", "node_mtbf_h"),
    *("whole_nodes", "has_launch_node", "device_choice"),
)
"""Keys of site.yaml whose values are those of `Site`."""


@dataclass(frozen=True)
class Queue:
    """A partition for jobs of a range of nodes, and how long they may run there."""

    partition: str
    walltime_max_min: int | None = None
    """None: as long as they like."""
    min_nodes: int = 1
    max_nodes: int = 1_000_000


@dataclass(frozen=True)
class Knob:
    """Something of the communication libraries that may be set otherwise."""

    name: str
    choices: tuple[dict[str, str], ...]
    """Variables that are set together."""


@dataclass(frozen=True)
class Site:
    """One site; the keys and their units are described in `site_configs/schema.yaml`."""

    name: str
    scheduler: str
    launcher: str
    ranks: int
    cores: int
    memory_gb: float
    gpus: int
    environment: dict[str, str]
    signal_delay_s: int
    grace_s: int
    max_idle: int
    rank_tflops: dict[str, float] = field(default_factory=dict)
    """Peak of one rank by precision, in 10¹² FLOP/s."""
    node_mtbf_h: float | None = None
    """Hours between failures of one node; None: not known."""
    rank_cores: tuple[str, ...] = ()
    """Cores beside the GPU of each local rank, of a launch with `ranks` on a node."""
    chain: int = 0
    """Successors that wait behind a training job; 0: it is requeued in place."""
    whole_nodes: bool = False
    has_launch_node: bool = False
    device_choice: str = ""
    launch_args: tuple[str, ...] = ()
    submit_args: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    queues: tuple[Queue, ...] = ()
    tuning: tuple[Knob, ...] = ()
    """What `jobs tune` tries."""
    container: Container | None = None
    """What ranks run in; None: on the node as it is."""
    stage: Stage | None = None
    """The environment that is unpacked on every node before ranks start; None: it is where it is."""
    health: Health | None = None
    """What nodes are examined for before ranks start; None: they are not."""

    def queue_for(self, nodes: int, partition: str | None = None) -> Queue | None:
        """The first queue that takes so many nodes, of one partition where it is given; None if none does."""
        known = (queue for queue in self.queues if partition in (None, queue.partition))
        return next((queue for queue in known if queue.min_nodes <= nodes <= queue.max_nodes), None)


def load_site(name_or_path: str) -> Site:
    """The site of a name (a folder of `site_configs/` here or beside this package) or of a path to a site.yaml.

    Raises UserError: one line with the file, the key and what is allowed.
    """
    file = find_site(name_or_path)
    data = _read(file)
    _check(data, file, _schema(file))
    node = data["node"]
    if data["grace_s"] >= data["signal_delay_s"]:
        raise UserError(
            f"{file}: grace_s: {data['grace_s']} must be less than signal_delay_s ({data['signal_delay_s']})"
        )
    if len(node.get("rank_cores", ())) not in (0, node["ranks"]):
        raise UserError(f"{file}: node.rank_cores: must be {node['ranks']} items, one for each of node.ranks")
    return Site(
        name=file.absolute().parent.name,
        **{key: data[key] for key in AS_THEY_ARE if key in data},
        **{**node, "rank_cores": tuple(node.get("rank_cores", ()))},
        **data["requeue"],
        environment=_variables(data),
        launch_args=_values(data, "launch_args"),
        submit_args=_values(data, "submit_args"),
        setup=_values(data, "setup"),
        queues=tuple(
            Queue(**{key: value for key, value in row.items() if key != "source"}) for row in data.get("queues", [])
        ),
        tuning=tuple(Knob(row["knob"], tuple(row["choices"])) for row in data.get("tuning", [])),
        stage=Stage(data["stage"]["archive"], data["stage"]["folder"]) if "stage" in data else None,
        health=_health(data.get("health")),
        container=_container(data.get("container")),
    )


def with_image(site: Site, image: str) -> Site:
    """The site with another container image. Raises UserError where its ranks run in no container."""
    if site.container is None:
        raise UserError(f"--image {image}: site {site.name} has no `container` that says how to run it")
    return replace(site, container=replace(site.container, image=image))


def with_overlay(site: Site, file: Path) -> Site:
    """The site with the variables of `file` on top of its own: a mapping with the key environment, as in site.yaml.

    Raises UserError: one line with the file, the key and what is allowed.
    """
    data = _read(file)
    schema = _schema(FOLDER / site.name / "site.yaml")
    properties = {"environment": schema["properties"]["environment"]}
    _check(data, file, {"properties": properties, "additionalProperties": False, "$defs": schema["$defs"]})
    return replace(site, environment={**site.environment, **_variables(data)})


def _variables(data: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in data.get("environment", [])}


def _container(data: dict[str, Any] | None) -> Container | None:
    if not data:
        return None
    return Container(data["runtime"], data["image"], tuple(data.get("mounts", ())), tuple(data.get("args", ())))


def _health(data: dict[str, Any] | None) -> Health | None:
    return Health(**{**data, "folders": tuple(data.get("folders", ()))}) if data else None


def _values(data: dict[str, Any], key: str) -> tuple[str, ...]:
    """Values of a list whose items also hold reason and source, in order."""
    return tuple(item["value"] for item in data.get(key, []))


def find_site(name_or_path: str) -> Path:
    """Path of a site's site.yaml. Raises UserError with the known names."""
    given = Path(name_or_path)
    if given.suffix == ".yaml" and given.is_file():
        return given
    roots = [root for root in (FOLDER, Path(__file__).parents[1] / FOLDER) if root.is_dir()]
    for folder in (given, *(root / name_or_path for root in roots)):
        if (folder / "site.yaml").is_file():
            return folder / "site.yaml"
    known = sorted({file.parent.name for root in roots for file in root.glob("*/site.yaml")})
    raise UserError(f"site {name_or_path!r}: no such site; known: {', '.join(known)}, or a path to a site.yaml")


def _read(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: must be a mapping of keys to values")
    return data


def _schema(file: Path) -> dict[str, Any]:
    """The schema beside a site's folder, or else ours."""
    beside = file.resolve().parent.parent / "schema.yaml"
    return _read(beside if beside.is_file() else Path(__file__).parents[1] / FOLDER / "schema.yaml")


def _check(data: dict[str, Any], file: Path, schema: dict[str, Any]) -> None:
    import jsonschema  # slow to load, and only wanted here

    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(data))
    if error is None:
        return
    where = ".".join(str(part) for part in error.absolute_path)
    raise UserError(f"{file}: {_explain(error, where)}")


def _explain(error: Any, where: str) -> str:
    prefix = f"{where}." if where else ""
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        near = difflib.get_close_matches(str(unknown), known, n=3) or known
        return f"{prefix}{unknown}: unknown key; did you mean {', '.join(near)}?"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{prefix}{missing}: missing"
    if error.validator == "enum":
        return f"{where}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    return f"{where}: {error.message}"
