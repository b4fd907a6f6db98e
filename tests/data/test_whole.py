"""Samples of whole documents, with label files, against a loop written from GPT-NeoX's description of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neox.config.errors import UserError
from neox.data.indexed import IndexedReader, IndexedWriter
from neox.data.loader import Batches
from neox.data.parts import plan_part
from neox.data.whole import has_labels
from tests.data.test_parts import config_of, files_of, made


class ExhaustedError(Exception):
    """Every document is passed over."""


def slow_overflow(sizes, is_skipped, num_samples, size, rng):
    """Document by document: into the open sample if it fits, else into a new one; GPT-NeoX's running length."""
    order, starts, doc_idx = np.arange(len(sizes)), [], []
    rng.shuffle(order)
    running = place = 0
    while len(starts) < num_samples:
        if all(is_skipped):
            raise ExhaustedError
        document = int(order[place])
        if not is_skipped[document]:
            if running == 0 or running + sizes[document] > size:
                starts.append(len(doc_idx))
                running = 0
            running += sizes[document]
            doc_idx.append(document)
        place += 1
        if place == len(sizes):
            place = 0
            rng.shuffle(order)
    return doc_idx, [*starts, len(doc_idx)]


def slow_unpacked(is_skipped, num_samples):
    taken = [document for document, skipped in enumerate(is_skipped) if not skipped]
    if not taken:
        raise ExhaustedError
    return [taken[i % len(taken)] for i in range(num_samples + 1)], list(range(num_samples + 1))


def write(prefix, rows, dtype):
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        writer.add_items(
            np.array([one for row in rows for one in row], dtype), np.array([len(row) for row in rows], np.int32)
        )
    return str(prefix)


def write_pair(folder, sizes, masked):
    """Token i is i + 1; its label is 1000 + i, or -100 from the masked place of its document on."""
    begins = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    texts = [list(range(begin + 1, begin + size + 1)) for begin, size in zip(begins, sizes, strict=False)]
    labels = [
        [1000 + token if place >= start else -100 for place, token in enumerate(text)]
        for text, start in zip(texts, masked, strict=True)
    ]
    return write(folder / "text", texts, np.uint16), write(folder / "label", labels, np.int32), texts, labels


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_index_maps_equal_the_slow_reference(tmp_path_factory, data):
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 9, 14]), min_size=1, max_size=9).filter(any))
    masked = data.draw(st.lists(st.integers(0, 12), min_size=len(sizes), max_size=len(sizes)))
    packing = data.draw(st.sampled_from(["unpacked", "pack_until_overflow"]))
    chopped, labelled = data.draw(st.booleans()), data.draw(st.booleans())
    seq_length, num_samples = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 25))
    folder = tmp_path_factory.mktemp("whole")
    text, label, texts, labels = write_pair(folder, sizes, masked)
    config = config_of(
        *(f"data.train_paths=[{text}]", f"data.packing={packing}", f"data.allow_chopped={json.dumps(chopped)}"),
        *([f"data.train_label_paths=[{label}]"] if labelled else []),
        **{"seq_length": seq_length, "num_samples": num_samples},
    )
    plan = plan_part(config, "train").sources[0]
    looked_at = seq_length + (packing == "pack_until_overflow")
    is_skipped = [
        (not chopped and len(row) > seq_length + 1) or (labelled and all(one == -100 for one in own[:looked_at]))
        for row, own in zip(texts, labels, strict=True)
    ]
    rng = np.random.RandomState(7)
    count = plan.plan.num_samples
    shuffle = np.arange(count)
    rng.shuffle(shuffle)
    try:
        if packing == "unpacked":
            doc_idx, starts = slow_unpacked(is_skipped, count)
        else:
            doc_idx, starts = slow_overflow(sizes, is_skipped, count, seq_length + 1, rng)
    except ExhaustedError:
        with pytest.raises(UserError, match=f"data.packing = {packing}: each of documents 0 to {len(sizes)} is longer"):
            plan.make()
        assert files_of(folder) == {}
        return
    plan.make()
    arrays = plan.maps.open()
    assert [array.dtype for array in arrays] == [np.int64] * 3
    assert arrays[0].tolist() == doc_idx
    assert arrays[1].tolist() == [[start, 0] for start in starts]
    assert arrays[2].tolist() == shuffle.tolist()
    suffix = "_ac" if chopped else ""
    assert plan.maps.stem.name == f"text_train_0_indexmap_{count}ns_{seq_length}sl_7s_{packing}pi{suffix}"


def test_samples_are_padded_cut_and_end_with_the_next_token(tmp_path):
    """unpacked keeps the file's order: documents 0, 1, 3 (2 has no label), 0, …; then the next one's first token."""
    text, label, texts, labels = write_pair(tmp_path, [3, 8, 2, 1], [1, 0, 5, 0])
    overrides = [f"data.train_paths=[{text}]", f"data.train_label_paths=[{label}]", "data.packing=unpacked"]
    dataset = made(config_of(*overrides, num_samples=6, seq_length=5))
    order = np.arange(7)  # 6 samples and half a per cent
    np.random.RandomState(7).shuffle(order)
    taken = [0, 1, 3]
    for item in range(len(dataset)):
        own, following = (taken[(int(order[item]) + i) % 3] for i in (0, 1))
        expected = [
            (texts[own] + texts[following][:1] + [0] * 6)[:6],
            (labels[own] + labels[following][:1] + [-100] * 6)[:6],
        ]
        assert [row.tolist() for row in dataset[item]] == expected
    tokens, targets, _ = Batches(dataset, 2, 1, 1, 0).step(0)[0]
    assert targets.tolist() == [dataset[item][1][1:].tolist() for item in (0, 1)]
    assert tokens.tolist() == [dataset[item][0][:-1].tolist() for item in (0, 1)]


@pytest.mark.parametrize(("compat", "pad"), [("none", -100), ("neox_v2", 0)])
def test_padding_counts_only_as_in_gpt_neox(tmp_path, compat, pad):
    text, _, _, _ = write_pair(tmp_path, [3, 8, 2, 1], [1, 0, 5, 0])
    config = config_of(
        f"data.train_paths=[{text}]", "data.packing=pack_until_overflow", f"compat={compat}", seq_length=20
    )
    row, labels = made(config)[0]
    assert row[-1] == 0 and labels[-1] == pad and row.tolist()[:3] == labels.tolist()[:3]


def test_last_sample_without_a_successor(tmp_path):
    """GPT-NeoX gives the first item for it, and hangs where that is the last sample itself; here it is given."""
    text, _, texts, _ = write_pair(tmp_path, [4, 4], [0, 0])
    for seed in range(12):
        overrides = [f"data.train_paths=[{text}]", "data.packing=pack_until_overflow"]
        config = config_of(*overrides, seq_length=5, num_samples=3, seed=seed)
        dataset = made(config)
        doc_idx, _, shuffle = plan_part(config, "train").sources[0].maps.open()
        last = len(shuffle) - 1
        item = shuffle.tolist().index(last)
        if item:
            assert dataset[item][0].tolist() == dataset[0][0].tolist()
        else:
            assert dataset[item][0].tolist() == [*texts[doc_idx[-1]], 0, 0]


def test_has_labels_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("neox.data.whole.BLOCK", 2)
    _, label, _, _ = write_pair(tmp_path, [3, 0, 4, 2, 1], [2, 0, 3, 9, 0])
    reader = IndexedReader(label)
    assert has_labels(reader, range(5), 10).tolist() == [True, False, True, False, True]
    assert has_labels(reader, range(1, 5), 3).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train_label_paths=[L, L]"], "data.train_label_paths: 2, but there are 1 data.train_paths"),
        (["data.train_label_paths=[T2]"], "its documents are not as long as those of"),
        (
            ["data.valid_paths=[T]", "data.train_label_paths=[L]"],
            "data.valid_label_paths: label files are for every part",
        ),
        (["compat=neox_v1", "data.packing=unpacked"], "data.packing = unpacked: GPT-NeoX 1.0 has packed samples alone"),
        (["compat=neox_v1", "data.train_label_paths=[L]"], "data.train_label_paths: 1.0 has no label files"),
        (["compat=neox_v2", "data.packing=unpacked"], "GPT-NeoX cannot do it without label files"),
    ],
)
def test_refusals(tmp_path, overrides, message):
    text, label, _, _ = write_pair(tmp_path, [3, 8], [1, 0])
    other = write(tmp_path / "other", [[1, 2, 3], [4]], np.int32)
    names = {"T2": other, "T": text, "L": label}
    given = [
        override if "compat" in override or "packing" in override else named(override, names) for override in overrides
    ]
    with pytest.raises(UserError, match=message):
        plan_part(config_of(f"data.train_paths=[{text}]", *given), "train")
    split = [f"data.path={text}", "data.split=[1,1]", "data.packing=pack_until_overflow"]
    with pytest.raises(UserError, match="validates on the first documents"):
        config_of(*split, "compat=neox_v2", valid_interval=5)
    config_of(*split, valid_interval=5)


def named(override, names):
    key, _, value = override.partition("=")
    return f"{key}=[{', '.join(names[word.strip()] for word in value.strip('[]').split(','))}]"
