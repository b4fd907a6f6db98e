"""Evaluation data from documents that training never saw: whole texts, passages for a cloze task, and questions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.durable import dump_json, replacing
from neox.data.indexed import IndexedReader
from neox.data.questions import arithmetic_questions, choice_questions
from neox.data.split import part_bounds
from neox.data.tokenizer import LoadedTokenizer

MIN_BYTES = 1 << 16  # a test part smaller than this is joined by the validation part
MAX_TOKENS, MAX_DOCUMENT_TOKENS = 1 << 23, 1 << 20  # read of a part, and of one document: far more than is used
MAX_DOCUMENTS = 64
MAX_CHARACTERS = 4000
MAX_PASSAGES = 200
PASSAGES_PER_DOCUMENT = 16
CONTEXT_WORDS = (20, 80)  # fewest and most words before the target
PROSE_SHARE = 0.8  # of a passage's words, those that are letters alone: what tells prose from code
SENTENCE_END = re.compile(r"(?<=\s)([A-Za-z]{4,})\.(?=\s)")


def write_heldout(
    prefix: Path, tokenizer: LoadedTokenizer, split: Sequence[float], part: str, output: Path
) -> dict[str, Any]:
    """Write perplexity.jsonl {"text"}, cloze.jsonl {"context", "target"}, questions and manifest.json into `output`.

    The questions are choice.jsonl {"context", "choices", "answer"} and arithmetic.jsonl {"question", "answer"}.

    The texts are what the first tokens of the part decode to, so of a corpus of any size little is read. UserError when
    the part holds no document, or the tokens are none of the tokenizer's.
    """
    tokens = IndexedReader(prefix)
    bounds = part_bounds(split, len(tokens), part)
    texts = list(_texts(tokens, bounds[part], tokenizer))
    parts = [part]
    if part == "test" and sum(len(text.encode()) for text in texts) < MIN_BYTES:
        texts += _texts(tokens, bounds["valid"], tokenizer)
        parts.append("valid")
    samples = [{"text": shortened(text)} for text in texts][:MAX_DOCUMENTS]
    passages = [passage for text in texts for passage in cloze_passages(text)][:MAX_PASSAGES]
    choices, sums = list(choice_questions(texts)), list(arithmetic_questions())
    manifest = {
        "arithmetic": len(sums),
        "choice": len(choices),
        "cloze": len(passages),
        "documents": {name: [bounds[name].start, bounds[name].stop] for name in parts},
        "perplexity": len(samples),
        "split": list(split),
    }
    files = {"perplexity": samples, "cloze": passages, "choice": choices, "arithmetic": sums}
    names = [f"{name}.jsonl" for name in files]
    with replacing(*(output / name for name in (*names, "manifest.json"))) as (*tasks, description):
        for path, records in zip(tasks, files.values(), strict=True):
            _write_lines(path, records)
        dump_json(description, manifest)
    return manifest


def shortened(text: str) -> str:
    """The text, cut at the last line end before MAX_CHARACTERS characters."""
    if len(text) <= MAX_CHARACTERS:
        return text
    head = text[:MAX_CHARACTERS]
    return head[: head.rfind("\n") + 1] or head


def cloze_passages(text: str) -> Iterator[dict[str, str]]:
    """Passages of prose whose last word stands earlier in them, as in LAMBADA: a reader of the context can guess it."""
    found = (_passage(text[: match.start()], match[1]) for match in SENTENCE_END.finditer(text))
    yield from islice(filter(None, found), PASSAGES_PER_DOCUMENT)


def _passage(before: str, target: str) -> dict[str, str] | None:
    words = before[-16 * CONTEXT_WORDS[1] :].split()[-CONTEXT_WORDS[1] :]
    bare = [word.strip(".,;:()\"'`*") for word in words]
    if len(words) < CONTEXT_WORDS[0] or target not in bare:
        return None
    if sum(map(str.isalpha, bare)) < PROSE_SHARE * len(words):
        return None
    return {"context": " ".join(words), "target": target}


def _texts(tokens: IndexedReader, documents: range, tokenizer: LoadedTokenizer) -> Iterator[str]:
    """What documents say; one of Pythia's samples, in which several follow each other, says several texts."""
    left = MAX_TOKENS
    for number in documents:
        ids = tokens[number][:MAX_DOCUMENT_TOKENS]
        if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
            allowed = f"the tokenizer's are 0 to {tokenizer.vocab_size - 1}"
            raise UserError(f"{tokens.prefix}: document {number} has token {ids.max()}, {allowed}")
        for text in np.split(ids, np.flatnonzero(ids == tokenizer.eod)):
            said = tokenizer.tokenizer.decode(text[text != tokenizer.eod].tolist(), skip_special_tokens=False)
            if said.strip():
                yield said
        left -= len(ids)
        if left <= 0:
            return


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
