"""Byte-level BPE tokenizers: train one, load one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from neox.config.errors import UserError
from neox.data.durable import replacing

END_OF_DOCUMENT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL_TOKENS = [END_OF_DOCUMENT, PADDING]  # ids 0 and 1, as in GPT-NeoX-20B's tokenizer


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with what data preparation asks of it."""

    tokenizer: Any
    """The `tokenizers.Tokenizer`."""
    vocab_size: int
    """Largest id + 1."""
    eod: int
    """Id that ends a document."""
    sha256: str
    """Of the file."""


def load_tokenizer(path: Path) -> LoadedTokenizer:
    """Read a tokenizer.json. UserError when it is missing, is no tokenizer, or has no `<|endoftext|>`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception and ValueError alike
        raise UserError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from error
    eod = tokenizer.token_to_id(END_OF_DOCUMENT)
    if eod is None:
        raise UserError(f"{path}: has no token {END_OF_DOCUMENT}, which ends each document")
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return LoadedTokenizer(tokenizer, vocab_size, eod, hashlib.sha256(content).hexdigest())


def train_tokenizer(texts: Iterable[str], vocab_size: int, output: Path) -> int:
    """Train byte-level BPE and write `output`; returns the entries it has, fewer than asked for when the text runs out.

    Encoding then decoding gives back every text. Same texts, same file.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise UserError(f"--vocab-size {vocab_size}: must be at least {least}, the bytes and the special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    with replacing(output) as (temporary,):
        temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    return int(tokenizer.get_vocab_size(with_added_tokens=True))
