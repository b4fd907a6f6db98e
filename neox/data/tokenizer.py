"""Tokenizers: train one on bytes, by BPE or Unigram; load one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from neox.config.errors import UserError
from neox.config.vocabulary import ENDS_OF_DOCUMENT, pick_end
from neox.data.durable import replacing
from neox.data.formats.contract import BadRecordError

END_OF_DOCUMENT = ENDS_OF_DOCUMENT[0]
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
    eod_token: str
    """Its token."""
    before: tuple[int, ...]
    """Ids that the tokenizer's own template puts before every text: Llama's <s>."""
    after: tuple[int, ...]
    """Ids that it puts behind."""
    sha256: str
    """Of the file."""

    @property
    def first(self) -> int:
        """Id that the model sees before the first token of a text."""
        return self.before[0] if self.before else self.eod


def load_tokenizer(path: Path, end_of_document: str | None = None) -> LoadedTokenizer:
    """Read a tokenizer.json; `end_of_document` as the configuration's data.end_of_document.

    UserError when it is missing, is no tokenizer, or no token of it ends documents.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception and ValueError alike
        raise UserError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from error
    tokenizer.no_truncation()  # a document is never cut or filled up, whatever the file says of a batch for training
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    end = pick_end(vocabulary, end_of_document, str(path))
    vocab_size = max(vocabulary.values()) + 1
    sha256 = hashlib.sha256(content).hexdigest()
    return LoadedTokenizer(tokenizer, vocab_size, vocabulary[end], end, *_template(tokenizer, path), sha256)


def _template(tokenizer: Tokenizer, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the tokenizer adds before and behind a text."""
    whole, bare = (tokenizer.encode("a", add_special_tokens=add).ids for add in (True, False))
    begin = next((at for at in range(len(whole) + 1) if whole[at : at + len(bare)] == bare), None)
    if begin is None:
        raise UserError(f"{path}: its post_processor changes the text's own tokens; it may add some before and behind")
    return tuple(whole[:begin]), tuple(whole[begin + len(bare) :])


class ChatTokenizer:
    """The tokenizer of a folder of transformers, with its chat template."""

    def __init__(self, folder: Path) -> None:
        """UserError when the folder is none, or has no chat template."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{folder}: no folder with tokenizer.json, tokenizer_config.json and a chat template")
        from transformers import AutoTokenizer  # takes seconds

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder}: transformers cannot load its tokenizer ({error})") from error
        if not self._tokenizer.chat_template:
            raise UserError(f"{folder}: no chat template, neither chat_template.jinja nor in tokenizer_config.json")
        self.end_id: int | None = self._tokenizer.eos_token_id
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()

    def render(self, chat: list[dict[str, Any]], asks: bool = False) -> str:
        """The text of a conversation; with `asks` it ends with what stands before an answer.

        BadRecordError when the template refuses it.
        """
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # a template is a program: it raises what it likes
            raise BadRecordError(f"the chat template refuses it ({error})") from error
        return str(text)

    def encode(self, text: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Tokens [n] int32, none added, and where each ends in the text, in characters."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in found["offset_mapping"]]
        return np.array(found["input_ids"], np.int32), np.array(ends, np.int64)


def train_tokenizer(texts: Iterable[str], vocab_size: int, output: Path, model: str = "bpe") -> int:
    """Train byte-level BPE or Unigram (`model`: bpe, unigram) and write `output`; returns the entries it has.

    They are fewer than asked for when the text runs out. Encoding then decoding gives back every text. Same texts, same
    file with BPE; Unigram's scores differ in their last digits, by the order in which they are summed.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise UserError(f"--vocab-size {vocab_size}: must be at least {least}, the bytes and the special tokens")
    tokenizer = Tokenizer(models.Unigram() if model == "unigram" else models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    kind = trainers.UnigramTrainer if model == "unigram" else trainers.BpeTrainer
    trainer = kind(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    with replacing(output) as (temporary,):
        temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    return int(tokenizer.get_vocab_size(with_added_tokens=True))
