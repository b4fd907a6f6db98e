"""What a tokenizer's file says of its ids, read without the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from neox.config.errors import UserError

ENDS_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
"""What tokenizers call the token that ends documents: GPT-2 and GPT-NeoX, Llama 3, Llama and T5, Gemma, others."""


def count_vocabulary(tokenizer: str | None) -> int:
    """Ids that a tokenizer defines: the highest and one, added tokens included."""
    if tokenizer is None:
        raise UserError("model.vocab_size is not set and data.tokenizer names no file to count it in")
    return max(read_vocabulary(tokenizer).values()) + 1


def end_of_document(tokenizer: str | None, wanted: str | None, asked_by: str) -> int:
    """Id of the token that ends documents, for the configuration key `asked_by`; `wanted`: data.end_of_document."""
    if tokenizer is None:
        raise UserError(f"{asked_by} needs data.tokenizer, the file that says which id the end of a document has")
    vocabulary = read_vocabulary(tokenizer)
    return vocabulary[pick_end(vocabulary, wanted, tokenizer)]


def pick_end(vocabulary: Collection[str], wanted: str | None, tokenizer: str) -> str:
    """The token that ends documents: `wanted`, or the first of ENDS_OF_DOCUMENT that the tokenizer has.

    Raises:
        UserError: the tokenizer has none of them.
    """
    if found := next((token for token in ([wanted] if wanted else ENDS_OF_DOCUMENT) if token in vocabulary), None):
        return found
    if wanted:
        raise UserError(f"{tokenizer}: has no token {wanted}, which data.end_of_document names")
    raise UserError(f"{tokenizer}: has none of {', '.join(ENDS_OF_DOCUMENT)}; name its own in data.end_of_document")


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
