"""Sampling: greedy text is that of `transformers`, the cache changes nothing, and draws follow their distribution."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from neox.__main__ import main
from neox.checkpoint.huggingface import export
from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.load import to_dict
from neox.config.schema import Config, ModelConfig
from neox.data.tokenizer import load_tokenizer, train_tokenizer
from neox.generate import Generator, _Row
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.parallel.pieces import Piece
from neox.sampling import Sampling, candidates, pick, random_generator
from tests.checkpoint.test_huggingface import rows_of

CFG = ModelConfig(num_layers=3, hidden_size=48, num_heads=3, seq_length=48, vocab_size=280, vocab_multiple=64)
PROMPTS = ["a", "the river and the", "def f(x):\n\treturn", "x" * 30]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    assert train_tokenizer(["the river and the other thing return"] * 9, 280, path) < 300
    return path


@pytest.fixture(scope="module")
def generator(tokenizer: Path) -> Generator:
    model = GPT(CFG, padded_vocab(CFG))
    init_weights(model, CFG, seed=11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 4 if name.endswith("attn.out.weight") or name.startswith("head") else 1.5
    return Generator(model, CFG, load_tokenizer(tokenizer))


def greedy_without_cache(generator: Generator, tokens: list[int], count: int) -> list[int]:
    added: list[int] = []
    with torch.inference_mode():
        while len(added) < count and generator.tokenizer.eod not in added:
            logits = generator.model(torch.tensor([tokens + added]))[0, -1, : generator.tokenizer.vocab_size]
            added.append(int(logits.argmax()))
    return added


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_with_cache_is_recomputation(generator: Generator, prompt: str) -> None:
    tokens = generator.tokenizer.tokenizer.encode(prompt).ids
    (found,) = generator.rows([tokens], Sampling(max_tokens=40, temperature=0))
    assert found == greedy_without_cache(generator, tokens, min(40, CFG.seq_length - len(tokens)))
    assert len(set(found)) > 5  # not one token for ever


def test_greedy_is_that_of_transformers(generator: Generator, tokenizer: Path, tmp_path: Path) -> None:
    export(CFG, rows_of(generator.model), tokenizer, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    for prompt in PROMPTS:
        tokens = generator.tokenizer.tokenizer.encode(prompt).ids
        count = min(24, CFG.seq_length - len(tokens))
        expected = theirs.generate(torch.tensor([tokens]), max_new_tokens=count, do_sample=False)[0, len(tokens) :]
        assert generator.rows([tokens], Sampling(count, temperature=0)) == [expected.tolist()]


def test_filters_are_those_of_transformers() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(2)) * 3
    ids = torch.zeros(64, 1, dtype=torch.long)
    for top_k, top_p, min_p in ((None, 1.0, 0.1), (20, 0.9, 0.0), (20, 0.95, 0.05), (None, 0.5, 0.3), (99, 1.0, 1.0)):
        expected = logits.clone()
        for warper in (
            *([TopKLogitsWarper(top_k)] if top_k else []),
            *(TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)),
        ):
            expected = warper(ids, expected)
        torch.testing.assert_close(candidates(logits.clone(), top_k, top_p, min_p), expected)


def test_stops_before_a_text(generator: Generator) -> None:
    whole = generator.continue_all(["the river"], 1, Sampling(20, temperature=0))[0]
    middle = whole.text[5:8]
    found = generator.continue_all(["the river"], 1, Sampling(20, temperature=0, stop=("never said", middle)))[0]
    assert found.text == whole.text[: whole.text.index(middle)] and found.finished
    assert found.tokens == whole.tokens[: len(found.tokens)] and len(found.tokens) < len(whole.tokens)


@pytest.mark.parametrize("stop", ["🌊", "€!", "\n\n"])
def test_a_stop_is_seen_however_many_tokens_it_is(generator: Generator, stop: str) -> None:
    tokens = generator.encode(f"the river and the other thing {stop}")
    rows = (_Row(0, random_generator(0, 0), 99, tokens[:length]) for length in range(1, len(tokens) + 1))
    assert [generator._is_over(row, (stop,)) for row in rows] == [False] * (len(tokens) - 1) + [True]


def test_a_stop_is_seen_behind_characters_of_several_bytes(generator: Generator) -> None:
    """Llama's byte fallback, where a line's end is a byte as well, and one run with what is before it."""
    tokenizer = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    speaking = Generator(generator.model, CFG, dataclasses.replace(generator.tokenizer, tokenizer=tokenizer), begin=0)
    for text in ("中国\n", "é€\n", "🌊🌊\n", "né\n"):
        tokens = list(text.encode())
        rows = (_Row(0, random_generator(0, 0), 99, tokens[:length]) for length in range(1, len(tokens) + 1))
        assert [speaking._is_over(row, ("\n",)) for row in rows] == [False] * (len(tokens) - 1) + [True]


def test_stops_at_the_end_of_document(generator: Generator, tokenizer: Path, tmp_path: Path) -> None:
    """Both stop there: what greedy decoding says third is made the end of document."""
    tokens = generator.tokenizer.tokenizer.encode("the river").ids
    said = greedy_without_cache(generator, tokens, 12)
    end = next(token for i, token in enumerate(said) if i >= 2 and token not in said[:i])
    other = Generator(generator.model, CFG, dataclasses.replace(generator.tokenizer, eod=end))
    expected = said[: said.index(end) + 1]
    calls = []
    hook = generator.model.head.register_forward_hook(lambda *_: calls.append(1))
    assert other.rows([tokens], Sampling(12, temperature=0)) == [expected]
    hook.remove()
    assert len(calls) == len(expected)  # nothing is computed beyond
    sample = other.continue_all(["the river"], 1, Sampling(12, temperature=0))[0]
    assert sample.finished and sample.tokens == expected
    assert not generator.continue_all(["the river"], 1, Sampling(2, temperature=0))[0].finished


def test_rows_of_a_batch_end_on_their_own(generator: Generator) -> None:
    sampling = Sampling(max_tokens=30, temperature=3.0, seed=4)
    eod = 40  # any common token
    other = Generator(generator.model, CFG, dataclasses.replace(generator.tokenizer, eod=eod))
    rows = other.rows([[5, 6]] * 64, sampling)
    assert len({len(row) for row in rows}) > 2
    assert all(eod not in row[:-1] and (row[-1] == eod or len(row) == 30) for row in rows)


def test_samples_depend_on_seed_and_number_alone(generator: Generator) -> None:
    def rows(num_samples: int, seed: int) -> list[list[int]]:
        return generator.rows([[5, 6]] * num_samples, Sampling(16, seed=seed))

    assert rows(3, 1) == rows(3, 1) == rows(5, 1)[:3]
    first, second = rows(4, 1), rows(4, 2)
    assert len({tuple(row) for row in first + second}) == 8


def test_empty_prompt_begins_a_document(generator: Generator) -> None:
    sampling = Sampling(8, temperature=0)
    assert generator.continue_all([""], 1, sampling)[0].tokens == generator.rows([[0]], sampling)[0]
    assert generator.continue_all([""], 1, sampling)[0].prompt == ""


def test_text_is_the_tokens_decoded(generator: Generator) -> None:
    sample = generator.continue_all(["the river"], 1, Sampling(16, seed=3))[0]
    assert sample.text == generator.tokenizer.tokenizer.decode(sample.tokens)
    assert max(sample.tokens) < generator.tokenizer.vocab_size < padded_vocab(CFG)


def test_full_context_ends_the_text(generator: Generator) -> None:
    tokens = list(range(10, 10 + CFG.seq_length - 3))
    assert len(generator.rows([tokens], Sampling(50, temperature=0))[0]) == 3
    with pytest.raises(UserError, match=r"^prompt 'the river.*'…: 60 tokens leave no room in a context of 48$"):
        generator.rows([[5], [*generator.encode("the river"), *[7] * 60][:60]], Sampling(50))


def test_candidates_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()  # in order: 1, 3, 2, 0

    def kept(top_k: int | None, top_p: float) -> list[int]:
        return candidates(logits.clone(), top_k, top_p)[0].isfinite().nonzero()[:, 0].tolist()

    assert [kept(k, 1.0) for k in (1, 2, 3, 9, None)] == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert [kept(None, p) for p in (0.01, 0.39, 0.41, 0.69, 0.71, 0.91)] == [
        [1], [1], [1, 3], [1, 3], [1, 2, 3], [0, 1, 2, 3],
    ]  # fmt: skip
    assert kept(2, 0.5) == [1]  # of the two that top-k left, the first has 4/7
    torch.testing.assert_close(candidates(logits.clone(), None, 1.0), logits)


def test_equal_logits_keep_exactly_k() -> None:
    assert candidates(torch.zeros(2, 8), 3, 1.0).isfinite().sum(-1).tolist() == [3, 3]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    expected = (probabilities.log() / temperature).softmax(-1)
    count = 4000
    generators = [random_generator(7, index) for index in range(count)]
    drawn = pick(probabilities.log().repeat(count, 1), Sampling(temperature=temperature), generators)
    found = drawn.bincount(minlength=4) / count
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_very_cold_is_greedy() -> None:
    logits = torch.tensor([[50.0, 90.0, -90.0]])
    assert pick(logits, Sampling(temperature=1e-38), [random_generator(0, 0)]).tolist() == [1]


def checkpoint_of(generator: Generator, folder: Path) -> Path:
    store = Store(folder)
    store.temporary(7).mkdir()
    parameters = [(name, tuple(p.shape), p.detach().flatten()) for name, p in generator.model.named_parameters()]
    pieces = [Piece("weight", name, shape, None, 0, 1, 0, len(flat), flat) for name, shape, flat in parameters]
    write_rank(store.temporary(7), 0, pieces)
    commit(store, 7, {"config": to_dict(Config(generator.cfg))})
    return store.path(7)


SAMPLED = ["--max-tokens", "9", "--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "5"]


def test_command_prints_blocks_or_writes_lines(
    generator: Generator, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["generate", str(checkpoint_of(generator, tmp_path)), "--tokenizer", str(tokenizer), *SAMPLED]
    arguments = [*base, "--prompt", "the river", "--prompt", "a", "--num-samples", "2"]
    sampling = Sampling(9, temperature=0.8, top_k=50, top_p=0.9, seed=5)
    expected = [s for prompt in ("the river", "a") for s in generator.continue_all([prompt], 2, sampling)]
    assert main(arguments) == 0
    blocks = capsys.readouterr().out.split("--- sample ")[1:]
    assert blocks == [f"{i} of 4 ---\n{s.prompt}{s.text}\n" for i, s in enumerate(expected, 1)]
    assert main([*arguments, "--stream"]) == 0
    assert capsys.readouterr().out.split("--- sample ")[1:] == blocks
    assert main([*arguments, "--output", str(tmp_path / "out" / "samples.jsonl")]) == 0
    lines = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dataclasses.asdict(sample) for sample in expected]
    (tmp_path / "in.jsonl").write_text('{"prompt": "the river"}\n{"prompt": "a"}\n')
    (tmp_path / "in.txt").write_text("the river##\n\n## a\n##")
    for name in ("in.jsonl", "in.txt"):
        from_file = [*base, "--input", str(tmp_path / name), "--prompt-end", "##", "--num-samples", "2"]
        assert main([*from_file, "--output", str(tmp_path / "again.jsonl")]) == 0
        assert (tmp_path / "again.jsonl").read_text().splitlines() == lines
    for name, content, named in (
        ("other.jsonl", '{"prompt": "a"}\n{"text": "a"}', "other.jsonl, line 2: no key 'prompt'"),
        ("number.jsonl", '{"prompt": 5}', "number.jsonl, line 1: "),
        ("broken.jsonl", '{"prompt": "a"}\n{"prompt": ', "broken.jsonl, line 2: not JSON"),
        ("none.jsonl", "", "none.jsonl: no document"),
    ):
        (tmp_path / name).write_text(content)
        assert main([*base, "--input", str(tmp_path / name), "--output", str(tmp_path / "never.jsonl")]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1 and not (tmp_path / "never.jsonl").exists()
    for wrong, named in ((["--top-p", "2"], "--top-p 2.0"), (["--stream", "--output", "x"], "--output: --stream")):
        assert main([*arguments, *wrong]) == 2
        assert named in capsys.readouterr().err


def test_prompts_are_asked_for_until_there_are_no_more(
    generator: Generator,
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["generate", str(checkpoint_of(generator, tmp_path)), "--tokenizer", str(tokenizer), *SAMPLED]
    sampling = Sampling(9, temperature=0.8, top_k=50, top_p=0.9, seed=5)
    prompts = ["the river", "", "two\nlines", "last"]
    texts = [generator.continue_all([prompt], 1, sampling)[0].text for prompt in prompts]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"the river#\n#\ntwo\nlines#\n{'x ' * 60}#\nlast"))
    assert main([*arguments, "--interactive", "--prompt-end", "#"]) == 0
    said = capsys.readouterr()
    assert said.out.replace("prompt> ", "") == "".join(f"{text}\n" for text in [*texts[:3], texts[3]]) + "\n"
    assert said.err.count("leave no room") == said.err.count("\n") == 1  # and the next is asked for
    assert main([*arguments, "--interactive", "--prompt", "a"]) == 2
    for missing in (tmp_path / "none.txt", tmp_path):
        assert main([*arguments, "--input", str(missing)]) == 2
        assert f"--input {missing}: no such file" in capsys.readouterr().err


class Spoken:
    """Gives these tokens, whatever it is asked."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def steps(self, *_: Any) -> Any:
        yield from ({0: token} for token in self.tokens)


@pytest.mark.parametrize("stop", [(), ("wort\n", "!"), ("ü",), ("thing €",)])
def test_pieces_are_whole_characters_and_never_the_beginning_of_a_stop(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]
) -> None:
    text = "Grüße, the other thing € 🌊 wor wort!\nhe"
    tokens = generator.encode(text)
    assert any(generator.decode(tokens[:count]).endswith("\ufffd") for count in range(len(tokens)))
    monkeypatch.setattr(generator, "steps", Spoken(tokens).steps)
    pieces = list(generator.stream("the", Sampling(stop=stop)))
    assert "".join(pieces) == text[: min((text.index(s) for s in stop if s in text), default=len(text))]
    assert len(pieces) > 1 and not any("\ufffd" in piece for piece in pieces)
    monkeypatch.setattr(generator, "steps", Spoken(generator.encode("🌊")[:2]).steps)
    assert list(generator.stream("the", Sampling())) == ["\ufffd"]  # the end of what is left of a character


def test_words_keep_the_space_before_them(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Llama's tokenizer, where a word's space is part of it and decoding drops the first."""
    words = {"<|endoftext|>": 0, "a": 1, "▁a": 2, "▁the": 3, "▁river": 4}
    tokenizer = Tokenizer(models.WordLevel(words, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    loaded = dataclasses.replace(generator.tokenizer, tokenizer=tokenizer, eod=0, vocab_size=5)
    speaking = Generator(generator.model, CFG, loaded)
    monkeypatch.setattr(speaking, "steps", Spoken([3, 4]).steps)
    for prompt, text in (("the", " the river"), ("", "the river")):
        assert "".join(speaking.stream(prompt, Sampling())) == text
        assert speaking.continue_all([prompt], 1, Sampling())[0].text == text


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_k": 0}, "--top-k 0"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"min_p": 1.1}, "--min-p 1.1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0"),
        ({"stop": ("a", "")}, "--stop"),
    ],
)
def test_wrong_options_are_named(change: dict[str, Any], option: str) -> None:
    with pytest.raises(UserError, match=option):
        Sampling(**change)
