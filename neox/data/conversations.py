"""Conversations as tokens by a chat template, with labels that count the answers alone, and rewards.

Files and masks are those of GPT-NeoX's tools/datasets/preprocess_data_with_chat_template.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neox.data.formats import lines
from neox.data.formats.contract import BadRecordError, Span
from neox.data.indexed import IndexedWriter
from neox.data.manifest import manifest_path, write_manifest
from neox.data.reading import Losses, Parsed, Reading, batches, files, no_document
from neox.data.statistics import UnigramCounts
from neox.data.tokenizer import ChatTokenizer
from neox.data.whole import IGNORED

Array = np.ndarray[Any, Any]
DTYPE = np.dtype(np.int32)
"""Of tokens and labels, whatever the vocabulary: labels are negative where they do not count."""
MOST_REWARD = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Counting:
    """Which tokens of a conversation count in the loss."""

    role: str = "assistant"
    """Whose turns do."""
    only_last: bool = False
    """Of those the last turn alone."""
    for_rm: bool = False
    """None but a second end of text at the end, from which a reward model scores."""
    all: bool = False
    """Every token: there are no labels, and no end of text is added."""


@dataclass(frozen=True)
class Rewards:
    """Where the reward of a record is."""

    key: str
    is_binary: bool = False
    """A true one is 1, any other -1."""


Record = tuple[list[tuple[Array, Array]], Array | None]
"""Tokens and labels of each key's conversation, and the reward."""


def turned(chat: list[dict[str, Any]], tokenizer: ChatTokenizer, counting: Counting) -> tuple[Array, Array]:
    """Tokens and labels [n] int32 of a conversation; a label is the token itself, or IGNORED.

    BadRecordError where the template refuses the conversation, or writes earlier turns otherwise once later ones
    follow. A token across the border of two turns belongs to the later one.
    """
    text = lines.encodable(tokenizer.render(chat), "conversation")
    ids, ends = tokenizer.encode(text)
    if counting.all:
        return ids, ids
    end = tokenizer.end_id
    labels = np.full_like(ids, IGNORED)
    if counting.for_rm:
        if end is None:
            raise BadRecordError("the tokenizer has no eos_token, from which a reward model scores")
        return np.append(ids, [end, end]).astype(DTYPE), np.append(labels, [IGNORED, end]).astype(DTYPE)
    last = len(chat) - 1
    counts = [
        turn["role"] == counting.role and (number == last or not counting.only_last) for number, turn in enumerate(chat)
    ]
    first = 0
    for number, turn_counts in enumerate(counts):
        if number < last and counts[number + 1] == turn_counts:
            continue  # the border changes nothing, and some templates refuse a conversation that stops there
        stop = len(ids)
        if number < last:
            before = tokenizer.render(chat[: number + 1], asks=chat[number + 1]["role"] == counting.role)
            if not text.startswith(before):
                raise BadRecordError(f"the chat template writes turn {number + 1} otherwise once others follow it")
            stop = int(np.searchsorted(ends, len(before), side="right"))
        if turn_counts:
            labels[first:stop] = ids[first:stop]
        first = stop
    if end is None:
        return ids, labels
    is_counted = len(labels) > 0 and labels[-1] != IGNORED
    return np.append(ids, end).astype(DTYPE), np.append(labels, end if is_counted else IGNORED).astype(DTYPE)


def tokenize_conversations(
    inputs: Sequence[Path],
    tokenizer: ChatTokenizer,
    output: Path,
    keys: Sequence[str],
    counting: Counting,
    rewards: Rewards | None,
    is_lenient: bool,
) -> list[dict[str, Any]]:
    """Writes OUTPUT_KEY_document.bin and .idx for each of `keys` of the JSON lines `inputs`, as long
    OUTPUT_KEY_label_document unless every token counts, and OUTPUT_KEY_reward_document where there are `rewards`.

    Returns each key's manifest. UserError names the file and line of a record that is broken, unless `is_lenient`; then
    nothing is written.
    """
    reading, losses = Reading("jsonl", is_lenient=is_lenient), Losses(is_lenient)
    parsing = _Parsing(tokenizer, tuple(keys), counting, rewards)
    with ExitStack() as stack:
        made = [_Files(output.with_name(f"{output.name}_{key}"), not counting.all, stack) for key in keys]
        for path, name in files(inputs, reading):
            for batch in batches(Span(path, name), reading):
                records, parsed = parsing.parse(batch.records)
                losses.count(batch, parsed)
                for conversations, reward in records:
                    for each, (ids, labels) in zip(made, conversations, strict=True):
                        each.add(ids, labels, reward)
        losses.tell()
        if not made[0].documents:
            raise no_document(inputs)
        about = {"broken": losses.broken, "counting": asdict(counting), "left_out": losses.left_out}
        return [each.finish(about | {"tokenizer_sha256": tokenizer.sha256}) for each in made]


class _Files:
    """The files of one key, which all appear when the stack closes."""

    def __init__(self, prefix: Path, has_labels: bool, stack: ExitStack) -> None:
        self._prefix, self._stack = prefix, stack
        self._tokens = self._open("document", manifest_path(f"{prefix}_document"))
        self._labels = self._open("label_document") if has_labels else None
        self._unigrams, self._rewards = UnigramCounts(), list[Array]()
        self.documents = self._counted = 0

    def _open(self, kind: str, companion: Path | None = None, dtype: np.dtype[Any] = DTYPE) -> IndexedWriter:
        return self._stack.enter_context(IndexedWriter(f"{self._prefix}_{kind}", dtype, companion))

    def add(self, ids: Array, labels: Array, reward: Array | None) -> None:
        """One conversation."""
        self._tokens.add_items(ids, np.array([len(ids)]))
        if self._labels is not None:
            self._labels.add_items(labels, np.array([len(labels)]))
        self._unigrams.add(ids)
        self._rewards += [] if reward is None else [reward]
        self.documents += 1
        self._counted += int(np.count_nonzero(labels != IGNORED))

    def finish(self, about: dict[str, Any]) -> dict[str, Any]:
        """Writes the rewards, of which now is known what holds them: int32 as in GPT-NeoX, which cuts others to whole
        numbers, or float32; and the manifest, which it returns."""
        if self._rewards:
            values, sizes = np.concatenate(self._rewards), np.array([len(each) for each in self._rewards])
            is_whole = np.array_equal(values, values.round()) and np.abs(values).max() < 2**31
            dtype = DTYPE if is_whole else np.dtype(np.float32)
            self._open("reward_document", dtype=dtype).add_items(values.astype(dtype), sizes)
        about |= {"counted": self._counted, "prefix": f"{self._prefix}_document"}
        return write_manifest(self._tokens, self.documents, None, self._unigrams, about)


@dataclass(frozen=True)
class _Parsing:
    """What makes conversations of records."""

    tokenizer: ChatTokenizer
    keys: tuple[str, ...]
    counting: Counting
    rewards: Rewards | None

    def parse(self, lines_: Sequence[bytes]) -> tuple[list[Record], Parsed]:
        """The records of a batch, and what of it is none."""
        records: list[Record] = []
        broken = []
        for number, line in enumerate(lines_):
            try:
                if not line.isspace():
                    records.append(self._record(line))
            except BadRecordError as bad:
                broken.append((number, str(bad)))
        return records, Parsed([], broken, len(lines_) - len(records) - len(broken))

    def _record(self, line: bytes) -> Record:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(f"not JSON ({error})") from error
        if not isinstance(record, dict):
            raise BadRecordError(f"not a JSON object but {type(record).__name__}")
        chats = [_checked(_value(record, key), key) for key in self.keys]
        reward = None if self.rewards is None else _reward(_value(record, self.rewards.key), self.rewards)
        return [turned(chat, self.tokenizer, self.counting) for chat in chats], reward


def _value(record: dict[str, Any], key: str) -> Any:
    value = lines.field(record, key)
    if value is lines.MISSING:
        raise BadRecordError(f"no key '{key}', only {sorted(record)}")
    return value


def _checked(chat: Any, key: str) -> list[dict[str, Any]]:
    is_chat = isinstance(chat, list) and all(
        isinstance(turn, dict) and "role" in turn and ("content" in turn or "tool_calls" in turn) for turn in chat
    )
    if not is_chat or not chat:
        raise BadRecordError(f"the value of '{key}' must be a list of turns with a role, and content or tool_calls")
    return list(chat)


def _reward(value: Any, rewards: Rewards) -> Array:
    """[n] float64."""
    if rewards.is_binary:
        return np.array([1.0 if value else -1.0])
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(number, int | float) and abs(number) <= MOST_REWARD for number in numbers):
        raise BadRecordError(f"the value of '{rewards.key}' must be a number or a list of numbers")
    return np.array(numbers, np.float64)
