"""Split, sample order and batches against a slow reference written from GPT-NeoX's specification."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neox.config.errors import UserError
from neox.data.indexed import IndexedWriter
from neox.data.loader import Batches, TokenDataset
from neox.data.samples import build_order, load_order, requested_samples
from neox.data.split import parse_split, split_bounds


def slow_order(sizes, documents, num_samples, seq_length, seed):
    """Token by token: lay the shuffled documents end to end, start a sample every seq_length tokens."""
    per_epoch = sum(sizes[document] for document in documents)
    epochs = 1
    while (epochs * per_epoch - 1) // seq_length < num_samples:
        epochs += 1
    rng = np.random.RandomState(seed)
    order = np.array(list(documents) * epochs, dtype=np.int32)
    rng.shuffle(order)
    places = [(position, offset) for position, document in enumerate(order) for offset in range(sizes[document])]
    starts = [(0, 0)] + [places[i] for i in range(seq_length, len(places), seq_length)]
    shuffle = np.arange(len(starts) - 1, dtype=np.uint32)
    rng.shuffle(shuffle)
    return order, starts, shuffle


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.just(0), st.integers(1, 4), st.integers(1, 90)), min_size=1, max_size=12),
    num_samples=st.integers(0, 40),
    seq_length=st.integers(1, 17),
    seed=st.integers(0, 2**32 - 1),
    skipped=st.integers(0, 3),
)
def test_order_equals_the_slow_reference(sizes, num_samples, seq_length, seed, skipped):
    documents = range(min(skipped, len(sizes) - 1), len(sizes))
    array = np.array(sizes, np.int32)
    own = sum(sizes[document] for document in documents)
    if own == 0 or (num_samples == 0 and own <= seq_length):
        with pytest.raises(UserError, match=r"hold no tokens|too few"):
            build_order(array, documents, num_samples, seq_length, seed)
        return
    order = build_order(array, documents, num_samples, seq_length, seed)
    doc_idx, starts, shuffle = slow_order(sizes, documents, num_samples, seq_length, seed)
    assert (order.doc_idx.dtype, order.sample_idx.dtype, order.shuffle_idx.dtype) == (np.int32, np.int32, np.uint32)
    assert order.doc_idx.tolist() == doc_idx.tolist()
    assert order.sample_idx.tolist() == [list(start) for start in starts]
    assert order.shuffle_idx.tolist() == shuffle.tolist()


def test_order_golden():
    """Printed by GPT-NeoX's own code (HEAD ea7aefd8) for these sizes."""
    order = build_order(np.array([3, 0, 7, 1, 12], np.int32), range(0, 4), 5, 4, 1234)
    assert order.doc_idx.tolist() == [2, 1, 2, 0, 0, 1, 3, 3]
    assert order.sample_idx.tolist() == [[0, 0], [0, 4], [2, 1], [2, 5], [3, 2], [6, 0]]
    assert order.shuffle_idx.tolist() == [2, 0, 4, 3, 1]


@pytest.mark.parametrize(
    ("split", "count", "bounds"),
    [
        ((969, 30, 1), 1000, [0, 969, 999, 1000]),
        ((969, 30, 1), 1230, [0, 1192, 1229, 1230]),
        ((1, 1, 1), 10, [0, 4, 7, 10]),  # three shares of 3 leave one document, which every bound moves by
        ((1,), 7, [0, 7, 7, 7]),
        ((1, 1), 5, [0, 3, 5, 5]),  # banker's rounding: 2.5 is 2, and the missing document goes to the front
    ],
)
def test_split(split, count, bounds):
    parts = split_bounds(split, count)
    assert [parts["train"].start, parts["train"].stop, parts["valid"].stop, parts["test"].stop] == bounds
    assert (parts["valid"].start, parts["test"].start) == (bounds[1], bounds[2])


@pytest.mark.parametrize("split", [(0, 1, 1), (-1, 2), (0, 0, 0), (1, 1, 1, 1), (), (float("nan"), 1)])
def test_split_refused(split):
    with pytest.raises(UserError, match="split"):
        split_bounds(split, 3)


def test_parse_split():
    assert parse_split("969,30,1") == parse_split("969/30/1") == (969.0, 30.0, 1.0)
    with pytest.raises(UserError, match="like 969,30,1"):
        parse_split("most")


def test_requested_samples():
    assert requested_samples("train", 143000, 1024, 1000, 10) == 143000 * 1024
    assert requested_samples("valid", 143000, 1024, 1000, 10) == 144 * 10 * 1024
    assert requested_samples("test", 143000, 1024, 1000, 10) == 10 * 1024


@pytest.fixture
def corpus(tmp_path):
    """Token i of the corpus is i, so that every sample says where it was cut."""
    sizes = np.array([5, 0, 1, 40, 2, 2, 0, 0, 17, 9, 3, 1], np.int32)
    with IndexedWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.add_items(np.arange(sizes.sum(), dtype=np.uint16), sizes)
    return tmp_path / "x", sizes


def slow_item(sizes, documents, num_samples, seq_length, seed, item):
    doc_idx, _, shuffle = slow_order(sizes.tolist(), documents, num_samples, seq_length, seed)
    begins = np.concatenate([[0], np.cumsum(sizes)])
    stream = [token for document in doc_idx for token in range(begins[document], begins[document + 1])]
    start = int(shuffle[item]) * seq_length
    return stream[start : start + seq_length + 1]


@pytest.mark.parametrize("seq_length", [1, 4, 30])
def test_items_hold_the_right_tokens(corpus, seq_length):
    prefix, sizes = corpus
    dataset = TokenDataset(prefix, "train", 20, seq_length, 7, (10, 1, 1))
    assert len(dataset) >= 19
    for item in range(len(dataset) + 1):
        row = dataset[item]
        assert row.dtype == np.int64
        assert row.tolist() == slow_item(sizes, range(0, 10), 20, seq_length, 7, item)
    assert dataset[len(dataset) + 1].tolist() == dataset[1].tolist()


def test_part_without_documents(corpus):
    with pytest.raises(UserError, match=r"data\.split 1,1,0 leaves none of 12 documents to the part 'test'"):
        TokenDataset(corpus[0], "test", 4, 4, 0, (1, 1, 0))


@pytest.mark.parametrize("dp", [1, 2, 3])
def test_batches_are_dealt_in_order(corpus, dp):
    dataset = TokenDataset(corpus[0], "train", 48, 4, 1, (1,))
    ranks = [Batches(dataset, micro_batch_size=2, grad_accum=2, dp=dp, dp_index=i) for i in range(dp)]
    size = ranks[0].global_batch_size
    assert size == 4 * dp
    for step in (0, 2, 1):  # any order: nothing is carried from step to step
        rows = []
        steps = [rank.step(step * size) for rank in ranks]
        for k in range(2):
            for micro_batches in steps:
                tokens, labels = micro_batches[k]
                assert tokens.shape == labels.shape == (2, 4)
                assert tokens[:, 1:].equal(labels[:, :-1])
                rows += [[*row, int(last)] for row, last in zip(tokens.tolist(), labels[:, -1], strict=True)]
        assert rows == [dataset[item].tolist() for item in range(step * size, (step + 1) * size)]


def order_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if "indexmap" in path.name}


def test_cache_has_gpt_neox_names_and_is_used(corpus):
    prefix, sizes = corpus
    first = load_order(prefix, "train", sizes, range(0, 10), 20, 4, 7)
    stem = "x_train_indexmap_20ns_4sl_7s_packedpi_ac_"
    files = order_files(prefix.parent)
    assert set(files) == {stem + name for name in ("doc_idx.npy", "sample_idx.npy", "shuffle_idx.npy", "key.json")}
    assert np.load(prefix.parent / f"{stem}doc_idx.npy").tolist() == first.doc_idx.tolist()
    np.save(prefix.parent / f"{stem}doc_idx.npy", first.doc_idx[::-1])
    again = load_order(prefix, "train", sizes, range(0, 10), 20, 4, 7)
    assert again.doc_idx.tolist() == first.doc_idx[::-1].tolist()


@pytest.mark.parametrize("change", ["sizes", "documents", "file", "key"])
def test_stale_cache_is_rebuilt(corpus, change):
    prefix, sizes = corpus
    load_order(prefix, "train", sizes, range(0, 10), 20, 4, 7)
    documents = range(0, 10)
    stem = prefix.parent / "x_train_indexmap_20ns_4sl_7s_packedpi_ac_"
    if change == "sizes":
        sizes = sizes[::-1].copy()
    elif change == "documents":
        documents = range(0, 11)
    elif change == "file":
        stem.with_name(f"{stem.name}shuffle_idx.npy").write_bytes(b"")
    else:
        stem.with_name(f"{stem.name}key.json").write_text(json.dumps({"documents": 3}))
    order = load_order(prefix, "train", sizes, documents, 20, 4, 7)
    expected = build_order(sizes, documents, 20, 4, 7)
    for name in ("doc_idx", "sample_idx", "shuffle_idx"):
        assert np.array_equal(getattr(order, name), getattr(expected, name))
        assert np.array_equal(np.load(stem.with_name(f"{stem.name}{name}.npy")), getattr(expected, name))
