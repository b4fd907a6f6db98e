"""The configuration that a checkpoint was trained with."""

from __future__ import annotations

from neox.checkpoint.manifest import Manifest
from neox.config.errors import UserError
from neox.config.load import from_dict
from neox.config.schema import Config


def saved_config(manifest: Manifest) -> Config:
    """The resolved configuration in the checkpoint's state.

    Raises:
        UserError: there is none, or this version does not know one of its keys.
    """
    where = f"the checkpoint of step {manifest.step}"
    if not isinstance(manifest.state.get("config"), dict):
        raise UserError(f"{where} holds no configuration")
    try:
        return from_dict(manifest.state["config"])
    except UserError as error:
        raise UserError(f"{where}: its configuration: {error}") from None
