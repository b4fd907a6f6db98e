"""gigatoken against the `tokenizers` library: the same ids wherever it is used, and not used anywhere else."""

import json
import random
import subprocess
import sys
import unicodedata

import pytest
from data_inputs import make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from neox.config.errors import UserError
from neox.data import cuts, engine
from neox.data.engine import DISPUTED, TokenizersEngine, UnequalError, make_engine, prove_equal
from neox.data.formats.contract import Span
from neox.data.prepare import Encoding, tokenize
from neox.data.reading import Reading, first_texts
from neox.data.tokenizer import load_tokenizer

SPECIAL = ["<|endoftext|>", "<|padding|>", "<|endoftext", "    ", "\n\n", " \t"]


@pytest.fixture(scope="session")
def nfc_file(tokenizer_file, tmp_path_factory):
    """As GPT-NeoX-20B's tokenizer: text is brought to NFC, and runs of spaces are tokens added to the vocabulary."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([" " * n for n in range(24, 1, -1)])
    path = tmp_path_factory.mktemp("nfc") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def both(nfc_file):
    loaded = load_tokenizer(nfc_file)
    return make_engine("gigatoken", nfc_file, loaded), TokenizersEngine(loaded.tokenizer)


def without(fixed, change, path):
    """A tokenizer file with something changed in its JSON."""
    settings = json.loads(fixed.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    return path


def assert_same(both, texts):
    fast, reference = (engine.encode(texts) for engine in both)
    assert [ids.tolist() for ids in fast] == [ids.tolist() for ids in reference]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MARKED = st.text(st.characters(categories=["Mn", "Mc", "Lo"]), max_size=12)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(st.one_of(TEXT, MARKED, st.sampled_from(SPECIAL)), max_size=8))
def test_engines_give_the_same_ids(both, pieces):
    assert_same(both, ["".join(pieces)])


LINES = st.sampled_from(
    [
        "end.\nNext",
        "a\n\nb",
        "a\n  b",
        "x \nY",
        "\r\nZ",
        "1\nthe 's",
        "e\n\u0301",
        "<|endoftext|>\nA",
        "\n'll",
        "\nI'll",
        "a b",
        "a  b",
        "'s l",
        "中，",
        "中、文",
        "か\u3099。",
        "1234 5678",
        "文、b。c",
        "a\r\n\n b",
        "'S\nA/\nB",
    ]
)


def split_by(regex, behavior="Isolated"):
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), behavior.lower()), bytes_alone])


@pytest.fixture(scope="session", params=["GPT-2", *cuts.WORDS])
def cuttable(request, nfc_file):
    """Tokenizers that find words as GPT-2, Llama 3 and Qwen 2 do."""
    tokenizer = Tokenizer.from_file(str(nfc_file))
    if request.param != "GPT-2":
        tokenizer.pre_tokenizer = split_by(request.param)
    assert cuts.is_cuttable(tokenizer)
    return tokenizer


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(st.one_of(TEXT, MARKED, LINES), max_size=12), size=st.integers(1, 40))
def test_long_texts_have_the_same_ids_in_pieces(cuttable, parts, size):
    tokenizer, text = cuttable, "".join(parts)
    in_pieces = TokenizersEngine(tokenizer)
    in_pieces._piece = size
    [found] = in_pieces.encode([text])
    assert found.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    words = [tokenizer.pre_tokenizer.pre_tokenize_str(one) for one in (text, *cuts.pieces(text, size))]
    assert [word for word, _ in words[0]] == [word for piece in words[1:] for word, _ in piece]  # whatever the merges
    pieces = map(tokenizer.normalizer.normalize_str, cuts.pieces(text, size))
    assert tokenizer.normalizer.normalize_str(text) == "".join(pieces)


def test_texts_are_cut_where_words_end_for_certain(nfc_file, tmp_path):
    assert list(cuts.pieces("ab.\ncd\n fg\nhi\n\nj\nk", 1)) == ["ab.\n", "cd\n fg\n", "hi\n\nj\n", "k"]
    assert list(cuts.pieces("ab cd  e 中文。か。f", 1)) == ["ab", " cd  e 中文", "。か。f"]
    assert list(cuts.ended_at_cuts(["a", "b c d", "", "e", "f g"])) == ["ab", " c def", " g"]
    tokenizer = load_tokenizer(nfc_file).tokenizer
    tokenizer.normalizer = None
    assert cuts.is_cuttable(tokenizer)
    for other in (split_by(cuts.GPT4 + "|x"), split_by(cuts.GPT4, "removed"), pre_tokenizers.Whitespace()):
        tokenizer.pre_tokenizer = other
        assert not cuts.is_cuttable(tokenizer)
    changes = {
        "prefix": lambda of: of["pre_tokenizer"].update(add_prefix_space=True),
        "normalizer": lambda of: of.update(normalizer={"type": "Lowercase"}),
        "strips": lambda of: of["added_tokens"][0].update(rstrip=True),
        "strips before": lambda of: of["added_tokens"][0].update(lstrip=True),
        "breaks": lambda of: of["added_tokens"][0].update(content="\nA"),
        "spaced": lambda of: of["added_tokens"][0].update(content="<a b>"),
        "single": lambda of: of["added_tokens"][0].update(single_word=True),
        "whole": lambda of: of.update(pre_tokenizer=None),
    }
    for name, change in changes.items():
        path = without(nfc_file, change, tmp_path / f"{name}.json")
        assert not cuts.is_cuttable(Tokenizer.from_file(str(path))), name


def test_only_disputed_characters_are_normalised_differently(both, monkeypatch):
    """Every mark, composite and unassigned character, next to letters, digits, itself and marks of other classes."""
    kinds = {"Mn", "Mc", "Me", "Cn"}
    planes = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000))]
    undisputed = [c for c in planes if unicodedata.category(c) in kinds or unicodedata.decomposition(c)]
    undisputed = [c for c in undisputed if not DISPUTED.search(c)]
    assert len(undisputed) > 10_000
    assert_same(both, [f"a{c}b 1{c}1 {c}{c}. e{c}\u0323\u0301" for c in undisputed])
    disputed = "\U00011935\U00011930"
    assert_same(both, [disputed])
    monkeypatch.setattr(engine, "DISPUTED", engine.re.compile("x"))
    with pytest.raises(AssertionError):  # it is the dispute that sends this text to the reference
        assert_same(both, [disputed])


@pytest.mark.parametrize("workers", [1, 2])
def test_files_are_the_same(tmp_path, nfc_file, capsys, workers):
    texts = [text + random.Random(i).choice(SPECIAL) * 3 for i, text in enumerate(make_texts(300))]
    path = write_jsonl(tmp_path / "a.jsonl", [*texts, "\U00011935\U00011930"])
    for name in ("gigatoken", "tokenizers", "auto"):
        manifest = tokenize([path], Encoding(nfc_file, engine=name), tmp_path / name, workers=workers)
        assert manifest["tokenizer_engine"] == ("tokenizers" if name == "tokenizers" else "gigatoken")
    for end in ("bin", "idx"):
        files = [(tmp_path / f"{name}.{end}").read_bytes() for name in ("gigatoken", "tokenizers", "auto")]
        assert files[0] == files[1] == files[2]
    assert capsys.readouterr().err == ""


def reason(capsys, path, texts=("fine",)):
    """Why `auto` falls back on a corpus, which must be what a forced gigatoken is refused for."""
    corpus = write_jsonl(path.with_name("corpus.jsonl"), texts)
    for name, workers in (("tokenizers", 1), ("auto", 1), ("auto", 2)):
        made = path.with_name(f"{name}{workers}")
        assert (
            tokenize([corpus], Encoding(path, engine=name), made, workers=workers)["tokenizer_engine"] == "tokenizers"
        )
        assert made.with_suffix(".bin").read_bytes() == path.with_name("tokenizers1.bin").read_bytes()
    notices = capsys.readouterr().err.splitlines()
    assert len(notices) == 2 and notices[0] == notices[1]
    with pytest.raises(UserError) as error:
        tokenize([corpus], Encoding(path, engine="gigatoken"), path.with_name("none"))
    assert not list(path.parent.glob("none.*"))
    _, colon, said = notices[0].partition("neox: tokenising with the slower engine `tokenizers`: ")
    assert colon and str(error.value) == f"--engine gigatoken: {said}; use --engine tokenizers"
    return said


def test_falls_back_where_gigatoken_is_absent(nfc_file, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    assert reason(capsys, without(nfc_file, lambda of: None, tmp_path / "t.json")) == "gigatoken is not installed"


def test_falls_back_where_gigatoken_knows_no_such_tokenizer(nfc_file, capsys, tmp_path):
    path = without(nfc_file, lambda of: of.update(normalizer={"type": "NFKC"}), tmp_path / "t.json")
    assert "Unsupported normalizer type: NFKC" in reason(capsys, path)


def test_a_tricky_text_that_differs_is_told(nfc_file, tmp_path):
    path = without(nfc_file, lambda of: of["model"].update(dropout=1.0), tmp_path / "t.json")
    loaded = load_tokenizer(path)
    with pytest.raises(UnequalError, match="gigatoken gives other tokens for ' "):
        prove_equal(make_engine("gigatoken", path, loaded), loaded, [])


def test_falls_back_where_the_corpus_differs(nfc_file, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "DISPUTED", engine.re.compile("x"))
    path = without(nfc_file, lambda of: None, tmp_path / "t.json")
    sample = ["fine", "\U00011935\U00011930 differs"]
    assert reason(capsys, path, sample) == f"gigatoken gives other tokens for {sample[1]!r}"


def test_sample_is_the_first_documents_of_every_input(tmp_path):
    inputs = [write_jsonl(tmp_path / f"{i}.jsonl", [f"{i}-{n}" * 20 for n in range(50)]) for i in range(3)]
    inputs[1].write_text('{"text": "good"}\n{"text": 1}\n{"text": "unseen"}\n')
    spans = [Span(path, "jsonl") for path in inputs]
    sample = list(first_texts(spans, Reading(), 600))
    assert sample == [text * 20 for text in ("0-0", "0-1", "0-2")] + ["good"] + [
        text * 20 for text in ("2-0", "2-1", "2-2")
    ]
    assert [len(text) for text in first_texts(spans[:1], Reading(), 20)] == [20]
    assert list(first_texts([], Reading())) == []


GROW = """
import random, string, sys
from pathlib import Path
from neox.data import cuts, engine
engine.CACHE_BYTES = int(sys.argv[2]) << 20
from neox.data.tokenizer import load_tokenizer
path, draw = Path(sys.argv[1]), random.Random(0)
fast = engine.make_engine("gigatoken", path, load_tokenizer(path))
for _ in range(60):
    fast.encode([" ".join("".join(draw.choices(string.ascii_letters, k=9)) for _ in range(30_000))])
print(engine.resident_bytes() >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory in use is read from /proc")
def test_memory_is_bounded(nfc_file):
    """1.8 M words never seen before fill gigatoken's cache, unless it is thrown away in time."""

    def resident_mib(cache_mib):
        command = [sys.executable, "-c", GROW, nfc_file, str(cache_mib)]
        return int(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)

    bounded, unbounded = resident_mib(16), resident_mib(1 << 20)
    assert bounded < unbounded - 64


def test_encoding_goes_on_after_the_cache_is_thrown_away(both, monkeypatch):
    monkeypatch.setattr(both[0], "_cache_bytes", -1)
    for text in make_texts(12):
        assert_same(both, [text])
