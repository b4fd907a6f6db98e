"""tiktoken's files of ranks: NAME.tiktoken, where NAME says how text is split and which special tokens there are."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from neox.config.errors import UserError
from neox.data.vocabularies.characters import byte_characters


@dataclass(frozen=True)
class Published:
    """What tiktoken_ext.openai_public knows of an encoding beside its ranks."""

    pattern: str
    special: dict[str, int]


GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
    ]
)
FILL_IN = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
ENCODINGS = {
    "r50k_base": Published(GPT2, {"<|endoftext|>": 50256}),
    "p50k_base": Published(GPT2, {"<|endoftext|>": 50256}),
    "cl100k_base": Published(CL100K, {"<|endoftext|>": 100257, **FILL_IN, "<|endofprompt|>": 100276}),
    "o200k_base": Published(O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}


def convert(path: Path) -> Tokenizer:
    """Byte-level BPE whose merges are every way to put a token together from two others, in the order of ranks."""
    published, ranks = _published(path), read_ranks(path)
    character = byte_characters()
    written = {token: "".join(character[byte] for byte in token) for token in ranks}
    merges = [
        (written[token[:at]], written[token[at:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    vocab = {written[token]: rank for token, rank in ranks.items()}
    vocab |= published.special
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    # Here $ would be the end of a line and not of the text, and {1,3}+ would repeat.
    pattern = published.pattern.replace("$", r"\z").replace("{1,3}+", "{1,3}")
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in published.special])
    return tokenizer


def original(path: Path) -> Callable[[str], list[int]]:
    """tiktoken's own encoding. ImportError when it is not installed."""
    import tiktoken

    published = _published(path)
    encoding = tiktoken.Encoding(
        path.stem, pat_str=published.pattern, mergeable_ranks=read_ranks(path), special_tokens=published.special
    )
    return lambda text: encoding.encode(text, allowed_special="all")


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ids: lines of base64 and a number."""
    ranks = {}
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if not re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+", line):
                raise UserError(f"{path}, line {number}: must be a token in base64 and its rank")
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}, line {number}: must be a token in base64 and its rank ({error})") from error
    if len({token for token in ranks if len(token) == 1}) != 256:
        raise UserError(f"{path}: must have each of the 256 bytes as a token")
    return ranks


def _published(path: Path) -> Published:
    if path.stem not in ENCODINGS:
        raise UserError(f"{path}: how it splits text is known of {', '.join(f'{name}.tiktoken' for name in ENCODINGS)}")
    return ENCODINGS[path.stem]
