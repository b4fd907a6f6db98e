"""Tokenizers of other libraries, converted: the ids that those libraries give, over fuzzed text."""

import base64
import random
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece
import tiktoken_ext.openai_public as published
from data_inputs import make_texts, write_jsonl
from tokenizers import AddedToken, Tokenizer, processors
from transformers import GPT2Tokenizer

from neox.config.errors import UserError
from neox.config.vocabulary import count_vocabulary
from neox.data.conversion import convert_tokenizer
from neox.data.indexed import IndexedReader
from neox.data.prepare import Encoding, tokenize
from neox.data.tokenizer import END_OF_DOCUMENT, load_tokenizer, train_tokenizer
from neox.data.vocabularies import characters, tiktoken
from neox.data.vocabularies import sentencepiece as pieces

LINES = [line for name in sorted(topics)[:25] for line in topics[name].splitlines() if line.strip()]
CHARACTERS = [
    *"aeiotn'sS   \n\t.,;<>()0123",
    *"éüß東京語ไทยहि",
    "e\u0301",
    "👩\u200d👩",
    "\u00a0",
    "\u3000",
    "\ufeff",
    "\x7f",
]
OPTIONS = {"model_type": "bpe", "split_digits": True, "allow_whitespace_only_pieces": True}
LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def fuzzed(count):
    rng = random.Random(1)
    for number in range(count):
        line = rng.choice(LINES)
        begin = rng.randrange(len(line))
        yield "".join(rng.choices(CHARACTERS, k=rng.randrange(40))) if number % 2 else line[begin : begin + 60]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "lines.txt").write_text("\n".join([*LINES, "naïve 東京語"] * 2))

    def train(name, **options):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "lines.txt"), model_prefix=str(folder / name), vocab_size=700, minloglevel=2, **options
        )
        return folder / f"{name}.model"

    return train


@pytest.mark.parametrize(
    ("options", "most_wrong"),
    [
        (OPTIONS | LLAMA, 0),  # Llama's
        ({"model_type": "unigram", "user_defined_symbols": ["<sep>"], **LLAMA}, 3),  # ways of the same score are equal
        ({"model_type": "bpe", "add_dummy_prefix": False}, 40),  # of 1000; combining marks behind a replaced character
        ({"model_type": "unigram", "remove_extra_whitespaces": True}, 40),
    ],
    ids=["llama", "unigram", "bpe", "normalized"],
)
def test_sentencepiece(trained, tmp_path, request, options, most_wrong):
    path = trained(request.node.callspec.id, **options)
    convert_tokenizer(str(path), tmp_path / "t.json")
    ours, theirs = Tokenizer.from_file(str(tmp_path / "t.json")), pieces.original(path)
    texts = [*fuzzed(1000), " two spaces first", "a<sep>b", ""]
    assert sum(ours.encode(text).ids != theirs(text) for text in texts) <= most_wrong
    loaded = load_tokenizer(tmp_path / "t.json")
    assert (loaded.eod_token, loaded.eod, loaded.vocab_size) == ("</s>", 2, 700)
    if most_wrong == 0:
        assert [ours.decode(ours.encode(text).ids) for text in texts] == texts


@pytest.fixture(scope="module")
def ranks(tokenizer_file):
    """The tokens of a trained tokenizer, as bytes."""
    byte = {character: number for number, character in enumerate(characters.byte_characters())}
    vocab = Tokenizer.from_file(str(tokenizer_file)).get_vocab(with_added_tokens=False)
    longer = [
        token for token, _ in sorted(vocab.items(), key=lambda item: item[1]) if len(token) > 1 and "|" not in token
    ]
    return [bytes([number]) for number in range(256)] + [bytes(byte[c] for c in token) for token in longer]


@pytest.mark.parametrize("name", tiktoken.ENCODINGS)
def test_tiktoken(tmp_path, ranks, monkeypatch, name):
    monkeypatch.setattr(published, "load_tiktoken_bpe", lambda *_, **__: {})
    known = published.ENCODING_CONSTRUCTORS[name]()
    assert (tiktoken.ENCODINGS[name].pattern, tiktoken.ENCODINGS[name].special) == (
        known["pat_str"],
        known["special_tokens"],
    )
    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)))
    assert "equal to tiktoken" in convert_tokenizer(str(path), tmp_path / "t.json")
    ours, theirs = Tokenizer.from_file(str(tmp_path / "t.json")), tiktoken.original(path)
    for text in (*fuzzed(400), "a<|endoftext|>b \n"):
        assert ours.encode(text).ids == theirs(text)
        assert ours.decode(theirs(text), skip_special_tokens=False) == text


def test_gpt2_is_that_of_transformers(tmp_path, tokenizer_file):
    Tokenizer.from_file(str(tokenizer_file)).model.save(str(tmp_path))
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    convert_tokenizer(str(vocab), tmp_path / "t.json", merges)
    ours, theirs = Tokenizer.from_file(str(tmp_path / "t.json")), GPT2Tokenizer.from_pretrained(tmp_path)
    for text in (*fuzzed(300), "a<|endoftext|>b"):
        assert ours.encode(text).ids == theirs.encode(text)
    assert load_tokenizer(tmp_path / "t.json").vocab_size == count_vocabulary(str(vocab)) == 300


def test_characters_are_bytes(tmp_path):
    convert_tokenizer("char-level", tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert (loaded.vocab_size, loaded.eod) == (512, 0)
    for text in (*fuzzed(300), "\x00\x01\x02"):
        ids = loaded.tokenizer.encode(text).ids
        assert ids == list(text.encode())  # GPT-NeoX: np.fromstring(text, dtype=np.uint8)
        assert "\x00" in text or loaded.tokenizer.decode(ids) == text


def test_unigram_is_trained_on_bytes(tmp_path):
    texts = LINES[:300]
    assert train_tokenizer(texts, 400, tmp_path / "t.json", "unigram") == 400
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.tokenizer.token_to_id(END_OF_DOCUMENT) == loaded.eod == 0
    for text in fuzzed(200):
        assert loaded.tokenizer.decode(loaded.tokenizer.encode(text).ids) == text


def test_template_and_end_of_document_are_the_tokenizer_s(tmp_path, tokenizer_file):
    """As Llama's: <s> before each text, </s> behind each document."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("<|im_end|>")])
    template = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(tmp_path / "t.json"))
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(9))
    for workers, engine in ((1, "auto"), (2, "tokenizers")):
        encoding = Encoding(tmp_path / "t.json", end_of_document="<|im_end|>", engine=engine)
        manifest = tokenize([path], encoding, tmp_path / "x", workers=workers)
        reader = IndexedReader(tmp_path / "x")
        expected = [[*tokenizer.encode(text).ids, 301] for text in make_texts(9)]
        assert [reader[i].tolist() for i in range(9)] == expected
        assert (expected[0][0], manifest["end_of_document"], reader.dtype) == (300, "<|im_end|>", np.uint16)
    loaded = load_tokenizer(tmp_path / "t.json")
    assert (loaded.first, loaded.eod_token, load_tokenizer(tokenizer_file).first) == (300, END_OF_DOCUMENT, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.model", b"\xff", "a.model: not a model of SentencePiece"),
        ("a.model", b"", "a.model: no pieces"),
        ("a.model", b"\x0a\x05\x0a\x01\xff\x18\x02", "a.model: pieces that are not UTF-8"),
        (
            "a.model",
            b"\x0a\x05\x0a\x01a\x18\x02\x1a\x03\x12\x01x",
            "a.model: not a model of SentencePiece .*Precompiled",
        ),
        ("none.model", None, "none.model: No such file"),
        ("my.tiktoken", b"", "my.tiktoken: how it splits text is known of r50k_base.tiktoken"),
        ("r50k_base.tiktoken", b"IQ== x\n", "r50k_base.tiktoken, line 1: must be a token"),
        ("r50k_base.tiktoken", b"IQ== 0\n", "must have each of the 256 bytes"),
        ("vocab.json", b"{}", "--merges, the file merges.txt"),
        ("a.bin", b"", "must be a .model, a .tiktoken, a vocab.json, or char-level"),
    ],
)
def test_what_is_none_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert_tokenizer(str(tmp_path / name), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
