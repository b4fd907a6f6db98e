"""What turns text into token ids: gigatoken where proven equal to the `tokenizers` library, that library elsewhere."""

from __future__ import annotations

import os
import re
import sys
from array import array
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neox.config.errors import UserError
from neox.data.cuts import is_cuttable, pieces
from neox.data.tokenizer import LoadedTokenizer

CACHE_BYTES = 64 << 20
"""By how much gigatoken's caches of words, which have no bound of their own, may grow in all processes together."""
LEAST_CACHE_BYTES = 16 << 20
"""What each of many processes has of them nevertheless."""

# NFC is where the two follow different Unicode versions: marks and composites younger than the tables of `tokenizers`.
# Whole blocks of rare scripts are named rather than single characters; tests/data/test_engine.py tries every other one.
DISPUTED = re.compile(
    "[\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1aff\u1df6-\u1dff\ua82c"
    "\U00010500-\U00016fff\U0001e000-\U0001efff]"
)
LEADS = (b"\xdf", b"\xe0", b"\xe1", b"\xea", b"\xf0")
"""First bytes of these characters in UTF-8: most texts have none of them, which is seen ten times as fast."""

DISPUTED_PIECE = 1 << 12
"""Characters from which on a text that has such a one is cut, so that it alone is encoded by the slow engine."""

PIECE = 256 << 10
"""Characters that `tokenizers`, which takes about 130 times their memory, is given at a time, unless one text that
cannot be cut has more."""

TRICKY = (
    "",
    " \t\n\r\n  \n\u0085\u00a0\u2003\u2028\u3000x   \v\f",
    "I'll we've DON'T 'S 's ’s ſ's''t",
    "x=1234567.89e-10 ٣٤ Ⅷ ½ ²",
    "e\u0301\u0323 \u1112\u1161\u11ab a\u0328\u0301 \u212b \uac00\u11a8 \u0344 \u0958",
    "naïve Straße Ελλάδα Привет हिन्दी ไทย 東京 한국어 ﬁ 👩‍👩‍👧‍👦 🇫🇷 \U0001f3fd",
    "\x00\x01\x7f\ufeff\ufffd\U0010ffff",
    "a" * 300 + "-" * 300 + " " * 300 + "\n" * 300,
    "word " * 10_000,
)


class Engine(Protocol):
    """Encodes texts; text that spells a special token becomes that token, as in GPT-NeoX."""

    def encode(self, texts: list[str]) -> list[np.ndarray[Any, Any]]:
        """The token ids of each text, none added."""


class TokenizersEngine:
    """The reference."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode_batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
        self.is_cuttable = is_cuttable(tokenizer)
        self._piece = PIECE if self.is_cuttable else sys.maxsize

    def encode(self, texts: list[str]) -> list[np.ndarray[Any, Any]]:
        found: list[np.ndarray[Any, Any]] = []
        together: list[str] = []
        size = 0
        for text in texts:
            size += len(text)
            if size > PIECE:
                found += self._ids(together)
                together, size = [], len(text)
            if len(text) <= self._piece:
                together.append(text)
            else:
                found.append(np.concatenate([self._ids([piece])[0] for piece in pieces(text, self._piece)]))
        return found + self._ids(together)

    def _ids(self, texts: list[str]) -> list[np.ndarray[Any, Any]]:
        found = self._encode_batch(texts, add_special_tokens=False)
        return [np.frombuffer(array("I", each.ids), np.uint32) for each in found]  # twice as fast as NumPy on a list


class UnequalError(Exception):
    """Why gigatoken cannot stand for the reference."""


class GigatokenEngine:
    """gigatoken, but the reference for the few texts whose characters the two normalise differently."""

    def __init__(self, path: Path, reference: TokenizersEngine, cache_bytes: int) -> None:
        """UnequalError when gigatoken is absent or does not know the kind of tokenizer."""
        self._content = path.read_bytes()
        self._reference = reference
        self._cache_bytes = cache_bytes
        try:
            self._load()
        except ImportError:
            raise UnequalError("gigatoken is not installed") from None
        except Exception as error:  # its Rust side names no type of its own
            reason = str(error).strip().splitlines()[0]
            raise UnequalError(f"gigatoken cannot load {path} ({reason})") from error

    def _load(self) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._encode = load_hf_json(self._content).encode
        self._resident_bytes = resident_bytes()

    def encode(self, texts: list[str]) -> list[np.ndarray[Any, Any]]:
        if resident_bytes() > self._resident_bytes + self._cache_bytes:
            del self._encode  # freed before the new one is made
            self._load()
        return list(map(self._ids, texts))

    def _ids(self, text: str) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._encode(text)  # first: the text then keeps its UTF-8, which is asked for
        if not is_disputed(text):
            return found
        parts = pieces(text, DISPUTED_PIECE) if self._reference.is_cuttable else [text]
        return np.concatenate(
            [self._reference.encode([part])[0] if is_disputed(part) else self._encode(part) for part in parts]
        )


def is_disputed(text: str) -> bool:
    """Whether it has characters that the two engines normalise differently."""
    if text.isascii():
        return False
    data = text.encode()
    return any(lead in data for lead in LEADS) and DISPUTED.search(text) is not None


def make_engine(name: str, path: Path, loaded: LoadedTokenizer, num_processes: int = 1) -> Engine:
    """The engine of that name for a tokenizer.json, which so many processes have. UnequalError: gigatoken cannot be."""
    reference = TokenizersEngine(loaded.tokenizer)
    if name == "gigatoken":
        return GigatokenEngine(path, reference, max(CACHE_BYTES // num_processes, LEAST_CACHE_BYTES))
    return reference


def resident_bytes() -> int:
    """Memory this process holds now; 0 where the system does not say so (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0


def prove_equal(engine: Engine, loaded: LoadedTokenizer, sample: Iterable[str]) -> None:
    """UnequalError unless the engine encodes a sample of the corpus and the tricky texts as the reference does."""
    reference = TokenizersEngine(loaded.tokenizer)
    added = [token.content for token in loaded.tokenizer.get_added_tokens_decoder().values()]
    spelled = [f"{token}a {token} b{token[:-1]}{token}\n{token}" for token in added]
    for text in chain(TRICKY, spelled, sample):
        # One by one: the library's answer for a whole sample takes hundreds of MB.
        if not np.array_equal(engine.encode([text])[0], reference.encode([text])[0]):
            raise UnequalError(f"gigatoken gives other tokens for {text[:40]!r}")


def tell_fallback(wanted: str, why: UnequalError) -> None:
    """One line on stderr: `auto` settles for the reference. UserError when `gigatoken` itself is wanted."""
    if wanted == "gigatoken":
        raise UserError(f"--engine gigatoken: {why}; use --engine tokenizers")
    print(f"neox: tokenising with the slower engine `tokenizers`: {why}", file=sys.stderr)
