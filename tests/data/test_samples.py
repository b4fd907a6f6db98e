"""Split and sample order against a slow reference written from GPT-NeoX's specification."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neox.config.errors import UserError
from neox.data import samples
from neox.data.samples import plan_packed, requested_samples
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


def written(sizes, documents, num_samples, seq_length, seed):
    """The three .npy files, as bytes."""
    files = [io.BytesIO() for _ in range(3)]
    plan_packed(sizes, documents, num_samples, seq_length, seed).write(sizes, files)
    return [file.getvalue() for file in files]


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("block", [1, 3, 1 << 20])  # documents in one go
@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.just(0), st.integers(1, 4), st.integers(1, 90)), min_size=1, max_size=12),
    num_samples=st.integers(0, 40),
    seq_length=st.integers(1, 17),
    seed=st.integers(0, 2**32 - 1),
    skipped=st.integers(0, 3),
)
def test_files_equal_the_slow_reference(block, sizes, num_samples, seq_length, seed, skipped):
    documents = range(min(skipped, len(sizes) - 1), len(sizes))
    array = np.array(sizes, np.int32)
    own = sum(sizes[document] for document in documents)
    if own == 0 or (num_samples == 0 and own <= seq_length):
        with pytest.raises(UserError, match=r"hold no tokens|too few"):
            plan_packed(array, documents, num_samples, seq_length, seed)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "BLOCK", block)
        found = written(array, documents, num_samples, seq_length, seed)
    doc_idx, starts, shuffle = slow_order(sizes, documents, num_samples, seq_length, seed)
    assert found == [saved(doc_idx), saved(np.array(starts, np.int32)), saved(shuffle)]
    assert plan_packed(array, documents, num_samples, seq_length, seed).num_samples == len(shuffle)


def test_order_golden():
    """Printed by GPT-NeoX's own code (HEAD ea7aefd8) for these sizes."""
    files = written(np.array([3, 0, 7, 1, 12], np.int32), range(0, 4), 5, 4, 1234)
    doc_idx, sample_idx, shuffle_idx = (np.load(io.BytesIO(file)).tolist() for file in files)
    assert doc_idx == [2, 1, 2, 0, 0, 1, 3, 3]
    assert sample_idx == [[0, 0], [0, 4], [2, 1], [2, 5], [3, 2], [6, 0]]
    assert shuffle_idx == [2, 0, 4, 3, 1]


def test_sample_starts_beyond_int32_are_int64():
    plan = plan_packed(np.array([2**31 - 1] * 5, np.int32), range(5), 1, 4, 0)
    narrow = plan_packed(np.array([2**31 - 1] * 3, np.int32), range(1), 1, 4, 0)
    assert (plan._sample_dtype(), narrow._sample_dtype()) == (np.int64, np.int32)


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
