"""The weights that a new run starts from instead of initialised ones: whose they may be; no torch."""

from __future__ import annotations

from pathlib import Path

from neox.checkpoint import manifest as manifests
from neox.checkpoint.config import saved_config
from neox.checkpoint.store import checkpoints_at
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.load import to_dict
from neox.config.schema import Config

MAY_DIFFER = ("init", "output_init", "init_std", "hidden_dropout", "attention_dropout", "vocab_size", "vocab_multiple")
"""Keys of `model` that no weight depends on, or that are compared as the rows of the embedding."""
CONTEXT = ("seq_length", "rotary_")
"""Beginnings of keys that a longer context changes."""


def starting_point(config: Config) -> tuple[Path, list[str]] | None:
    """The checkpoint of `checkpoint.init_from`, the latest one of a run, and what of the model differs; None: none.

    Raises:
        UserError: there is no checkpoint, or its weights are those of another model.
    """
    if config.checkpoint.init_from is None:
        return None
    try:
        path = checkpoints_at(Path(config.checkpoint.init_from))[-1]
        saved = saved_config(manifests.read(path)).model
    except UserError as error:
        raise UserError(f"checkpoint.init_from: {error}") from None
    if padded_vocab(saved) != padded_vocab(config.model):
        rows = f"{padded_vocab(saved)} rows of the vocabulary, padding included"
        raise UserError(f"checkpoint.init_from: {path} has {rows}, this model {padded_vocab(config.model)}")
    theirs, ours = to_dict(saved), to_dict(config.model)
    notices = []
    for key in sorted(set(ours) - set(MAY_DIFFER)):
        if theirs.get(key) == ours[key]:
            continue
        if not key.startswith(CONTEXT):
            raise UserError(f"model.{key} = {ours[key]}: the weights of checkpoint.init_from have {theirs.get(key)}")
        notices.append(f"model.{key} = {ours[key]}, and {theirs.get(key)} where the weights come from")
    return path, notices
