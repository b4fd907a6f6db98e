"""Where a text can be cut: its tokens are those of its parts, one behind the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

CUT = re.compile(r"(?<=[!-~]\n)(?=[A-Za-z])|(?<=[A-Za-z])(?= [A-Za-z])|(?<=[\u4e00-\u9fff])(?=[、。，])")
"""Ends of lines, spaces between words, Chinese commas: where GPT-2's pre-tokenizer, and NFC, do the same whether the
text goes on there or not."""
ACROSS = re.compile(r"\n|[A-Za-z] |[\u4e00-\u9fff][、。，]")
"""What a token that is found before words are has if it may lie on both sides of a cut."""


def is_cuttable(tokenizer: Any) -> bool:
    """Whether texts may be cut at CUT for it: so for the kind of GPT-2 and GPT-NeoX."""
    words, characters = _settings(tokenizer.pre_tokenizer), _settings(tokenizer.normalizer)
    is_gpt2 = words.get("type") == "ByteLevel" and words["use_regex"] and not words["add_prefix_space"]
    added = tokenizer.get_added_tokens_decoder().values()
    return is_gpt2 and characters in ({}, {"type": "NFC"}) and not any(map(_looks_around, added))


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
