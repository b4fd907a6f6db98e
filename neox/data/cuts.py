"""Where a text can be cut: its tokens are those of its parts, one behind the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

CUT = re.compile(r"(?<=[!-~]\n)(?=[A-Za-z])|(?<=[A-Za-z])(?= [A-Za-z])|(?<=[\u4e00-\u9fff])(?=[、。，])")
"""Ends of lines, spaces between words, Chinese commas: where the pre-tokenizers below, and NFC, do the same whether the
text goes on there or not: no word of theirs has what is on either side, nor looks at more than the next character."""
ACROSS = re.compile(r"\n|[A-Za-z] |[\u4e00-\u9fff][、。，]")
"""What a token that is found before words are has if it may lie on both sides of a cut."""
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = (GPT4, GPT4.replace("{1,3}", ""))
"""What Llama 3 takes for words, as GPT-4 does, and what Qwen 2 does, whose digits stand alone."""
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def is_cuttable(tokenizer: Any) -> bool:
    """Whether texts may be cut at CUT for it: so for the kinds of GPT-2, GPT-NeoX, Llama 3 and Qwen 2."""
    words, characters = _settings(tokenizer.pre_tokenizer), _settings(tokenizer.normalizer)
    added = tokenizer.get_added_tokens_decoder().values()
    return _is_known(words) and characters in ({}, {"type": "NFC"}) and not any(map(_looks_around, added))


def _is_known(words: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer takes for words what GPT-2's does, or what one of WORDS says."""
    *split, last = words.get("pretokenizers") or [words]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return False
    return split in [[SPLIT | {"pattern": {"Regex": each}}] for each in WORDS] if split else last["use_regex"]


def _settings(part: Any) -> dict[str, Any]:
    """What tokenizer.json says of a part of the tokenizer, without the vocabulary, which takes longest to say."""
    found: dict[str, Any] = {} if part is None else json.loads(part.__getstate__())
    return found


def _looks_around(token: Any) -> bool:
    return token.lstrip or token.rstrip or token.single_word or ACROSS.search(token.content) is not None


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in parts of at least `size` characters, ended at the next CUT; what has none is one part."""
    start = 0
    while cut := CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def ended_at_cuts(parts: Iterable[str]) -> Iterator[str]:
    """A text that comes in any parts in others, each ended at the first CUT of one of them; what has none is one."""
    waiting: list[str] = []
    for part in parts:
        if cut := CUT.search(part):
            yield "".join([*waiting, part[: cut.start()]])
            waiting = [part[cut.start() :]]
        else:
            waiting.append(part)
    yield "".join(waiting)
