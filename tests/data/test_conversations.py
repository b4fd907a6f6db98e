"""Conversations and masks: the files of GPT-NeoX's scripts, whose loops are written out here, and samples of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from neox.__main__ import main
from neox.data.indexed import IndexedReader
from neox.data.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = "{% for m in messages %}{{ m.role + (m.content if loop.last else '') + '<|im_end|>' }}{% endfor %}"
PLAIN = (
    "{% for m in messages %}{{ '\n' + m.role + ':' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)


TWO_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def chat_folder(tokenizer_file: Path, folder: Path, template: str) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def chats(number: int) -> list[list[dict[str, str]]]:
    """Conversations of 1 to 6 turns, not always in turn, with empty texts and characters of several tokens."""
    draw = random.Random(number)
    words = ["the river", "ünd", "", "🌊 wave", "a\n b", "<|im_end|>", "x" * 9]
    text = lambda: " ".join(draw.choices(words, k=draw.randrange(4)))  # noqa: E731
    roles = ("system", "user", "assistant", "user", "assistant", "assistant")
    first = lambda: draw.randrange(2)  # noqa: E731
    return [
        [{"role": role, "content": text()} for role in roles[first() : draw.randrange(2, 7)]] for _ in range(number)
    ]


def as_gpt_neox(chat: list[dict[str, str]], tokenizer: Any, mode: str) -> tuple[list[int], list[int]]:
    """Turn by turn, as build_chat of preprocess_data_with_chat_template.py."""

    def tokens_of(turns: list[dict[str, str]], asks: bool = False) -> list[int]:
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=asks, return_dict=False))

    end = tokenizer.eos_token_id
    if mode == "--for-rm":
        tokens = [*tokens_of(chat), end, end]
        return tokens, [-100] * (len(tokens) - 1) + [end]
    tokens, labels = [], []
    for i, turn in enumerate(chat):
        asks = i < len(chat) - 1 and chat[i + 1]["role"] == "assistant"
        added = tokens_of(chat[: i + 1], asks)[len(tokens) :]
        is_masked = turn["role"] != "assistant" or (mode == "--only-last" and i != len(chat) - 1)
        tokens += added
        labels += [-100] * len(added) if is_masked else added
    return [*tokens, end], [*labels, -100 if labels[-1] == -100 else end]


def items(prefix: Path | str) -> list[list[float]]:
    reader = IndexedReader(prefix)
    return [reader[i].tolist() for i in range(len(reader))]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("mode", ["", "--only-last", "--for-rm"])
def test_files_are_those_of_the_turn_by_turn_loop(tokenizer_file: Path, tmp_path: Path, mode: str) -> None:
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", CHATML)
    chosen, rejected = chats(40), list(reversed(chats(40)))
    records = [{"chosen": a, "meta": {"rejected": b}} for a, b in zip(chosen, rejected, strict=True)]
    source = write_lines(tmp_path / "pairs.jsonl", records)
    arguments = ["data", "conversations", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--key", "chosen", "meta.rejected", *([mode] if mode else [])]) == 0
    theirs = AutoTokenizer.from_pretrained(folder)
    for key, conversations in (("chosen", chosen), ("meta.rejected", rejected)):
        expected = [as_gpt_neox(chat, theirs, mode) for chat in conversations]
        assert items(tmp_path / f"out_{key}_document") == [tokens for tokens, _ in expected]
        assert items(tmp_path / f"out_{key}_label_document") == [labels for _, labels in expected]
        assert IndexedReader(tmp_path / f"out_{key}_document").check().dtype == np.int32
        counted = sum(label != -100 for _, labels in expected for label in labels)
        assert json.loads((tmp_path / f"out_{key}_document.manifest.json").read_text())["counted"] == counted > 0


def test_all_tokens_count_without_a_mask(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", CHATML)
    source = write_lines(tmp_path / "in.jsonl", [{"conversation": chat} for chat in chats(9)])
    arguments = ["data", "conversations", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--no-mask"]) == 0
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = [theirs.apply_chat_template(chat, return_dict=False) for chat in chats(9)]
    assert items(tmp_path / "out_conversation_document") == expected
    assert not (tmp_path / "out_conversation_label_document.bin").exists()


@pytest.mark.parametrize(
    ("options", "rewards", "expected", "dtype"),
    [
        ([], [1, -1, 3], [[1], [-1], [3]], np.int32),
        ([], [1.0, -0.25, 2], [[1], [-0.25], [2]], np.float32),
        ([], [[0, 1.5], 2, [3]], [[0, 1.5], [2], [3]], np.float32),
        ([], [1, 2, 2**40], [[1], [2], [2**40]], np.float32),
        (["--binary-reward"], [True, 0, "yes"], [[1], [-1], [1]], np.int32),
    ],
)
def test_rewards_are_whole_numbers_or_float(
    tokenizer_file: Path, tmp_path: Path, options: list[str], rewards: list[Any], expected: list[Any], dtype: Any
) -> None:
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", CHATML)
    records = [{"messages": chat, "reward": r} for chat, r in zip(chats(3), rewards, strict=True)]
    source = write_lines(tmp_path / "in.jsonl", records)
    arguments = ["data", "conversations", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--key", "messages", "--reward-key", "reward", *options]) == 0
    assert items(tmp_path / "out_messages_reward_document") == expected
    assert IndexedReader(tmp_path / "out_messages_reward_document").dtype == dtype


@pytest.mark.parametrize("reward", [10**400, 1e39, float("nan"), "1", []], ids=range(5))
def test_what_is_no_reward_is_a_broken_record(
    tokenizer_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: Any
) -> None:
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", CHATML)
    source = write_lines(tmp_path / "in.jsonl", [{"conversation": TWO_TURNS, "reward": reward}])
    arguments = ["data", "conversations", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--reward-key", "reward"]) == 2
    assert "line 1: the value of 'reward' must be a number or a list of numbers" in capsys.readouterr().err


def test_calls_of_tools_need_no_content_and_merged_parts_stay_in_step(tokenizer_file: Path, tmp_path: Path) -> None:
    template = CHATML.replace("m.content", "(m.content or m.tool_calls | tojson)")
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", template)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    chat = [TWO_TURNS[0], call, {"role": "user", "content": "1"}, TWO_TURNS[1]]
    parts = [write_lines(tmp_path / f"{i}.jsonl", [{"conversation": each}]) for i, each in enumerate((chat, TWO_TURNS))]
    kinds = ("document", "label_document")
    for part in parts:
        arguments = ["data", "conversations", str(part), "--tokenizer", str(folder)]
        assert main([*arguments, "--output", str(part.with_suffix(""))]) == 0
    for kind in kinds:
        prefixes = [f"{part.with_suffix('')}_conversation_{kind}" for part in parts]
        assert main(["data", "merge", *prefixes, "--output", str(tmp_path / kind)]) == 0
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = [as_gpt_neox(each, theirs, "") for each in (chat, TWO_TURNS)]
    assert [items(tmp_path / kind) for kind in kinds] == [list(each) for each in zip(*expected, strict=True)]
    assert json.loads((tmp_path / "document.manifest.json").read_text())["bytes_per_token"] is None


def test_a_token_across_a_border_belongs_to_the_later_turn(tokenizer_file: Path, tmp_path: Path) -> None:
    """Where turn-by-turn tokens would cut the text into pieces that are none: `:the` may be one token or two."""
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", PLAIN)
    chat = [{"role": "user", "content": " x"}, {"role": "assistant", "content": " the river"}]
    source = write_lines(tmp_path / "in.jsonl", [{"conversation": chat}])
    arguments = ["data", "conversations", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    theirs = AutoTokenizer.from_pretrained(folder)
    (tokens,), (labels,) = (items(tmp_path / f"out_conversation{kind}document") for kind in ("_", "_label_"))
    assert theirs.decode(tokens[:-1]) == "\nuser: x\nassistant: the river"
    assert theirs.decode([label for label in labels if label != -100]).startswith(" the river")


@pytest.mark.parametrize(
    ("template", "record", "said"),
    [
        (CHATML, {"other": []}, "line 2: no key 'conversation', only ['other']"),
        (CHATML, {"conversation": [{"role": "user"}]}, "line 2: the value of 'conversation' must be a list of turns"),
        (CHATML, {"conversation": []}, "line 2: the value of 'conversation' must be a list of turns"),
        (CHATML, {"conversation": [{"role": "tool", "content": ""}]}, "refuses it (no tools here)"),
        (CHATML, {"conversation": [{"role": "user", "content": "\ud83d"}]}, "holds half a surrogate pair"),
        (FORGETFUL, {"conversation": TWO_TURNS}, "the chat template writes turn 1 otherwise once others follow it"),
    ],
)
def test_broken_records_stop_or_are_left_out(
    tokenizer_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    template: str,
    record: Any,
    said: str,
) -> None:
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", template)
    good = {"conversation": [{"role": "assistant", "content": "a"}]}
    source = write_lines(tmp_path / "in.jsonl", [good, record, good])
    arguments = ["data", "conversations", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert list(tmp_path.glob("out*")) == []
    assert main([*arguments, "--on-broken", "skip"]) == 0
    assert len(items(tmp_path / "out_conversation_document")) == 2


def test_a_folder_without_a_template_is_refused(tokenizer_file: Path, tmp_path: Path, capsys: Any) -> None:
    folder = chat_folder(tokenizer_file, tmp_path / "tokenizer", "")
    source = write_lines(tmp_path / "in.jsonl", [])
    arguments = ["data", "conversations", str(source), "--output", str(tmp_path / "out"), "--tokenizer"]
    for wrong, said in ((folder, "no chat template"), (tmp_path / "none", "no folder with tokenizer.json")):
        assert main([*arguments, str(wrong)]) == 2
        assert said in capsys.readouterr().err


def test_masks_end_with_the_first_delimiter(tokenizer_file: Path, tmp_path: Path, capsys: Any) -> None:
    texts = ["q: a => b => c", "=> d", "no delimiter", "=", "e =>"]
    source = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    prefix = str(tmp_path / "tokens")
    assert main(["data", "tokenize", str(source), "--tokenizer", str(tokenizer_file), "--output", prefix]) == 0
    delimiter = load_tokenizer(tokenizer_file).tokenizer.encode("=>").ids
    assert len(delimiter) == 2
    arguments = ["data", "mask", prefix, "--output", str(tmp_path / "labels"), "--before-token"]
    assert main([*arguments, ",".join(map(str, delimiter))]) == 0
    expected = []
    for tokens in items(prefix):
        ends = [i + 2 for i in range(len(tokens)) if tokens[i : i + 2] == delimiter]
        expected.append([-100] * ends[0] + tokens[ends[0] :] if ends else tokens)
    assert items(tmp_path / "labels") == expected and IndexedReader(tmp_path / "labels").dtype == np.int32
    assert [labels.count(-100) > 0 for labels in expected] == [True, True, False, False, True]
    capsys.readouterr()
    for wrong, said in (("1,x", "--before-token 1,x: must be"), ("299,299,299", "is in none of its documents")):
        assert main([*arguments[:-1], "--before-token", wrong]) == 2
        assert said in capsys.readouterr().err
