"""What a tokenizer's file says of its ids, read without the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path

from neox.config.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"


def count_vocabulary(tokenizer: str | None) -> int:
    """Ids that a tokenizer defines: the highest and one, added tokens included."""
    if tokenizer is None:
        raise UserError("model.vocab_size is not set and data.tokenizer names no file to count it in")
    return max(read_vocabulary(tokenizer).values()) + 1


def end_of_document(tokenizer: str | None, asked_by: str) -> int:
    """Id of the token that ends documents, for the configuration key `asked_by`."""
    if tokenizer is None:
        raise UserError(f"{asked_by} needs data.tokenizer, the file that says which id {END_OF_DOCUMENT} has")
    vocabulary = read_vocabulary(tokenizer)
    if END_OF_DOCUMENT not in vocabulary:
        raise UserError(f"{asked_by}: data.tokenizer {tokenizer} has no {END_OF_DOCUMENT}")
    return vocabulary[END_OF_DOCUMENT]


def read_vocabulary(tokenizer: str) -> dict[str, int]:
    """Tokens and their ids, of a tokenizer.json of the tokenizers library or of GPT-2's vocab.json.

    Raises:
        UserError: there is no such file, or it is neither.
    """
    try:
        data = json.loads(Path(tokenizer).read_text(encoding="utf-8"))
        if all(type(value) is int for value in data.values()):
            vocabulary, added = data, []
        else:
            vocabulary, added = data["model"]["vocab"], data.get("added_tokens", [])
        if not isinstance(vocabulary, dict):  # a list of tokens with their scores
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        found = {**vocabulary, **{token["content"]: token["id"] for token in added}}
        if max(found.values()) < 0:
            raise ValueError("no ids")
        return found
    except OSError as error:
        raise UserError(f"cannot read data.tokenizer {tokenizer}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"data.tokenizer {tokenizer} is not a tokenizer.json of the tokenizers library") from None
