"""Weights & Biases, one of the places where a run's curves go; the first rank only."""

from __future__ import annotations

import importlib.util
import secrets
from typing import Any

from neox.config.errors import UserError
from neox.config.load import to_dict
from neox.config.schema import Config, LogConfig
from neox.train.directory import RunDirectory


def check_tracker(log: LogConfig) -> None:
    """Raises UserError when log.wandb asks for a package that is not there."""
    if log.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise UserError(f"log.wandb = {log.wandb}: the package wandb is not installed; `pip install wandb`, or off")


class Tracker:
    """One W&B run per run directory, however many times training starts: its id is kept in the file wandb_id."""

    def __init__(self, run: RunDirectory, cfg: Config) -> None:
        """Raises UserError when W&B refuses: no key, no such server."""
        import wandb  # slow to load

        log, identity = cfg.log, run.folder / "wandb_id"
        if not identity.is_file():
            identity.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=log.wandb_project,
                entity=log.wandb_team,
                group=log.wandb_group,
                name=log.wandb_name or run.folder.resolve().name,
                id=identity.read_text(),
                resume="allow",
                mode=log.wandb,
                dir=str(run.folder),
                config=to_dict(cfg),
                settings=wandb.Settings(base_url=log.wandb_host, console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(f"log.wandb = {log.wandb}: {' '.join(str(error).split())}") from None

    def draw(self, values: dict[str, Any], step: int) -> None:
        """Values at a step; W&B itself drops those of steps that it has been given already."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Hands over what is still on its way."""
        self._run.finish()
