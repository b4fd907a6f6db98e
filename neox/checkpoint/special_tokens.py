"""Which tokens begin and end a text: for a model that began as someone else's, those that its makers say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox.config.errors import UserError
from neox.data.tokenizer import PADDING, LoadedTokenizer

FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What lies beside tokenizer.json in a folder of transformers; an import takes them along."""


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens with a meaning, as text; each is in the tokenizer."""

    begin: str
    """What a text without a context is conditioned on."""
    end: str
    """What ends a text."""
    padding: str
    chat_template: str | None = None


def special_tokens(state: dict[str, Any], tokenizer: Path, loaded: LoadedTokenizer) -> SpecialTokens:
    """The special tokens of a model with this state of its checkpoint and this tokenizer file.

    One that we trained from the start knows what its documents began and ended with. Where the weights came from
    elsewhere, what lies beside the tokenizer counts, as for transformers: without a token for the beginning that is the
    token for the end.

    Raises:
        UserError: tokenizer_config.json is damaged, or names a token that the tokenizer does not have.
    """
    began_elsewhere = "origin" in state or state["config"].get("checkpoint", {}).get("init_from")
    given = _read(tokenizer) if began_elsewhere else {}
    tokens = {kind: _text(given.get(f"{kind}_token")) for kind in ("bos", "eos", "pad")}
    for kind, token in tokens.items():
        if token is not None and loaded.tokenizer.token_to_id(token) is None:
            raise UserError(f"{tokenizer.with_name(FILES[0])}: {kind}_token {token} is not in {tokenizer.name}")
    if tokens["eos"] is None:
        padding = PADDING if loaded.tokenizer.token_to_id(PADDING) is not None else loaded.eod_token
        return SpecialTokens(loaded.tokenizer.id_to_token(loaded.first), loaded.eod_token, padding)
    end = tokens["eos"]
    return SpecialTokens(tokens["bos"] or end, end, tokens["pad"] or end, given.get("chat_template"))


def _read(tokenizer: Path) -> dict[str, Any]:
    """What the files beside the tokenizer say; nothing where there are none."""
    found: dict[str, Any] = {}
    for path in (tokenizer.with_name(FILES[1]), tokenizer.with_name(FILES[0])):  # the latter has the last word
        if path.is_file():
            try:
                found |= json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, TypeError):
                raise UserError(f"{path}: is damaged, it is not a JSON object") from None
    template = tokenizer.with_name(FILES[2])
    return found | ({"chat_template": template.read_text(encoding="utf-8")} if template.is_file() else {})


def _text(token: Any) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
