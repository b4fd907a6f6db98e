"""An experiment: its data, and the runs that its recipe, axes and rows expand to, checked before any job starts."""

from __future__ import annotations

import itertools
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import UserError as SiteError
from jobs.site import Site, load_site
from neox.config.derive import checkpoint_steps, is_kept_for_ever, resolve
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import Config
from workflow.inputs import as_list, corpus_files, existing, named_tokenizer, token_prefix
from workflow.settings import check

UNLIMITED_WALLTIME_MIN = 240
"""What training asks for where the site sets no limit: short enough to be backfilled."""


@dataclass(frozen=True)
class Run:
    """One training run: the files and overrides that define it, and what they come to."""

    name: str
    files: tuple[str, ...]
    """Configuration files of the trainer, merged left to right."""
    overrides: tuple[str, ...]
    """`key.sub=value`, on top of the files."""
    config: Config
    """Resolved, but for the paths that only exist later."""
    nodes: int
    ranks_per_node: int
    cores_per_rank: int
    walltime_min: int
    """As long as the site lets a job of so many nodes run: what it does not finish, the next allocation does."""
    steps: tuple[int, ...]
    """Checkpoints to evaluate."""
    exported: tuple[int, ...]
    """Checkpoints to export."""

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Experiment:
    """What one file of workflow/config/ asks for."""

    name: str
    root: str
    """Folder of all results."""
    site: str
    cores_per_node: int
    settings: Mapping[str, Any]
    """The checked configuration."""
    corpus: tuple[str, ...]
    """Its files; none where it is tokenised already."""
    tokens: str
    """Prefix of the token file that all runs read."""
    tokenizer: str
    runs: Mapping[str, Run]

    @property
    def reading(self) -> str:
        """Options of the commands that read the corpus, which must all have the same."""
        return f"--key {shlex.quote(self.settings['corpus']['key'])} {self.settings['corpus']['reading']}"

    @property
    def split(self) -> str:
        """Shares of train, valid and test, which all runs have in common."""
        return ",".join(f"{share:g}" for share in next(iter(self.runs.values())).config.data.split)


def open_experiment(config: dict[str, Any]) -> Experiment:
    """As `build_experiment`; a mistake ends the program with one line and exit code 2, as it does for every command."""
    try:
        return build_experiment(config)
    except (UserError, SiteError) as error:
        print(f"workflow: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)


def build_experiment(config: dict[str, Any]) -> Experiment:
    """Checks the configuration, the files it names and every run.

    Raises:
        UserError: one line that names the key, file or run and what is allowed.
    """
    check(config)
    root = f"{config['results']}/{config['name']}"
    corpus = corpus_files(config["corpus"], root)
    tokens = token_prefix(config, root)
    given = config["tokenizer"].get("file")
    if given:
        existing([given], "tokenizer.file")
    tokenizer = (
        named_tokenizer(config["tokenizer"]["name"]).files[0] if "name" in config["tokenizer"] else "tokenizer.json"
    )
    site = load_site(config["site"])
    runs = [make_run(row, config, site) for row in expand(config["runs"])]
    check_together(runs)
    check_tuning(config, runs, site)
    return Experiment(
        name=config["name"],
        root=root,
        site=config["site"],
        cores_per_node=site.cores,
        settings=config,
        corpus=corpus,
        tokens=tokens,
        tokenizer=given or f"{root}/tokenizer/{tokenizer}",
        runs={run.name: run for run in runs},
    )


@dataclass(frozen=True)
class Row:
    """A run before it is checked."""

    name: str
    files: tuple[str, ...]
    overrides: tuple[str, ...]


def expand(runs: Mapping[str, Any]) -> list[Row]:
    """Every combination of the axes, then the single rows; the first axis varies slowest."""
    base = as_list(runs.get("recipe", []))
    axes = [axis_points(name, values) for name, values in runs.get("axes", {}).items()]
    rows = []
    for points in itertools.product(*axes) if axes else ():
        files = [*base, *itertools.chain.from_iterable(point.files for point in points)]
        overrides = tuple(itertools.chain.from_iterable(point.overrides for point in points))
        rows.append(Row("-".join(point.name for point in points), tuple(files), overrides))
    for row in runs.get("rows", []):
        overrides = tuple(f"{key}={in_yaml(value)}" for key, value in row.get("set", {}).items())
        rows.append(Row(row["name"], (*base, *as_list(row.get("recipe", []))), overrides))
    if not rows:
        raise UserError("workflow configuration: runs needs axes or rows")
    return rows


def axis_points(name: str, values: Mapping[str, Any] | Sequence[Any]) -> list[Row]:
    """The values of one axis: labelled files, or values of a key; `seed` seeds the weights and the data order."""
    if isinstance(values, Mapping):
        return [Row(str(label), tuple(as_list(files)), ()) for label, files in values.items()]
    keys = ("train.seed", "data.seed") if name == "seed" else (name,)
    label = name.rpartition(".")[2]
    return [Row(f"{label}{value}", (), tuple(f"{key}={in_yaml(value)}" for key in keys)) for value in values]


def in_yaml(value: Any) -> str:
    """The value as it stands after `key=`."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def make_run(row: Row, config: Mapping[str, Any], site: Site) -> Run:
    """The run with its configuration resolved, its ranks dealt to nodes and its checkpoints to work on listed."""
    ranks_per_node = config["runs"].get("ranks_per_node", site.ranks)
    try:
        resolved = resolve_row(row, config["tokenizer"], ranks_per_node)
        nodes, on_each = deal_ranks(resolved, ranks_per_node)
        steps, exported = (wanted_steps(resolved, key, config[key]["checkpoints"]) for key in ("evaluate", "export"))
    except UserError as error:
        raise UserError(f"run {row.name}: {error}") from None
    cores = max(1, site.cores // on_each)
    queue = site.queue_for(nodes)
    walltime_min = (queue and queue.walltime_max_min) or UNLIMITED_WALLTIME_MIN
    return Run(row.name, row.files, row.overrides, resolved, nodes, on_each, cores, walltime_min, steps, exported)


def resolve_row(row: Row, tokenizer: Mapping[str, Any], ranks_per_node: int) -> Config:
    """The complete, checked configuration. Without parallel.dp a run gets a full node, or a replica if that is more."""
    overrides = [*row.overrides]
    if "file" in tokenizer:
        overrides.append(f"data.tokenizer={tokenizer['file']}")
    config = load_config([Path(file) for file in row.files], overrides)
    if "file" not in tokenizer and config.model.vocab_size is None:
        num_ids = named_tokenizer(tokenizer["name"]).vocab_size if "name" in tokenizer else tokenizer["vocab_size"]
        config = load_config(list(row.files), [*overrides, f"model.vocab_size={num_ids}"])
    if config.data.train_paths:
        raise UserError("data.train_paths: the runs of a workflow train on its corpus; leave data.*_paths out")
    parallel = config.parallel
    replica = parallel.tp * parallel.pp
    return resolve(config, (parallel.dp or max(1, ranks_per_node // replica)) * replica)


def deal_ranks(config: Config, ranks_per_node: int) -> tuple[int, int]:
    """Nodes, and ranks on each of them."""
    parallel = config.parallel
    assert parallel.dp is not None
    world_size = parallel.dp * parallel.tp * parallel.pp
    if world_size > ranks_per_node and world_size % ranks_per_node:
        raise UserError(
            f"dp × tp × pp = {parallel.dp} × {parallel.tp} × {parallel.pp} = {world_size} ranks do not fill nodes of "
            f"{ranks_per_node} ranks; set runs.ranks_per_node or another layout"
        )
    on_each = min(world_size, ranks_per_node)
    return world_size // on_each, on_each


def wanted_steps(config: Config, key: str, wanted: str | Sequence[int]) -> tuple[int, ...]:
    """Steps whose checkpoints `key` (evaluate, export) is for: the last, all that stay on disk, or some of these."""
    last = config.train.steps
    pruned = config.checkpoint.keep_last is not None
    kept = [
        step
        for step in checkpoint_steps(config)
        if not pruned or step == last or is_kept_for_ever(config.checkpoint, step)
    ]
    if wanted == "last":
        return (last,)
    steps = kept if wanted == "all" else [int(step) for step in wanted]
    for step in set(steps) - set(kept):
        raise UserError(f"{key}.checkpoints: no checkpoint of step {step} is kept; add it to checkpoint.steps")
    return tuple(sorted(set(steps)))


def check_together(runs: Sequence[Run]) -> None:
    """Names differ, and the runs agree on what is held out, for it is one corpus that they share."""
    first = runs[0]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise UserError(f"workflow configuration: two runs are called {run.name}")
        if run.config.data.split != first.config.data.split:
            raise UserError(f"runs {first.name} and {run.name} differ in data.split, but share one held-out set")


def check_tuning(config: Mapping[str, Any], runs: Sequence[Run], site: Site) -> None:
    """The run to tune for exists and sends messages, and the site has settings to try."""
    wanted = config.get("tune", {}).get("run")
    if wanted is None:
        return
    by_name = {run.name: run for run in runs}
    if wanted not in by_name:
        raise UserError(f"workflow configuration: tune.run: there is no run {wanted}; runs: {', '.join(by_name)}")
    if by_name[wanted].world_size == 1:
        raise UserError(f"workflow configuration: tune.run: {wanted} has one rank, which sends no messages")
    if not site.tuning:
        raise UserError(f"workflow configuration: tune: site {site.name} has no `tuning` in its site.yaml")
