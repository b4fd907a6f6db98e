"""Parts of a run: tokens of every sample, batches of every rank, index maps in files, and what is refused first."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from neox.__main__ import main
from neox.config.derive import resolve
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.data.indexed import IndexedWriter
from neox.data.loader import Batches, Ends
from neox.data.parts import plan_part, plan_parts
from neox.model.context import Context
from neox.model.dropout import sample_keys
from tests.data.test_samples import slow_order

SIZES = [5, 0, 1, 40, 2, 2, 0, 0, 17, 9, 3, 1]
MODEL = ["model.num_layers=1", "model.hidden_size=8", "model.num_heads=2", "model.rotary_pct=0.5", "model.vocab_size=9"]


def write_tokens(prefix, sizes=SIZES, first=0):
    """Token i of the file is first + i, so that every sample says where it was cut."""
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        writer.add_items(np.arange(first, first + sum(sizes), dtype=np.int32), np.array(sizes, np.int32))
    return prefix


@pytest.fixture
def corpus(tmp_path):
    return write_tokens(tmp_path / "x")


def config_of(*overrides, seq_length=4, num_samples=20, seed=7, valid_interval=0):
    sizes = (f"model.seq_length={seq_length}", f"train.global_batch_size={num_samples}", "train.steps=1")
    rest = ("optim.warmup=0.0", f"data.seed={seed}", f"train.valid_interval={valid_interval}", "train.valid_batches=1")
    return resolve(load_config([], [*MODEL, *sizes, *rest, *map(str, overrides)]), 1)


def made(config, part="train"):
    plan = plan_part(config, part)
    plan.make()
    return plan.open()


def slow_item(sizes, documents, num_samples, seq_length, seed, item):
    doc_idx, _, shuffle = slow_order(sizes, documents, num_samples, seq_length, seed)
    begins = np.concatenate([[0], np.cumsum(sizes)])
    stream = [token for document in doc_idx for token in range(begins[document], begins[document + 1])]
    start = int(shuffle[item]) * seq_length
    return stream[start : start + seq_length + 1]


@pytest.mark.parametrize("seq_length", [1, 4, 30])
def test_items_hold_the_right_tokens(corpus, seq_length):
    dataset = made(config_of(f"data.path={corpus}", "data.split=[10,1,1]", seq_length=seq_length))
    assert len(dataset) >= 19
    for item in range(len(dataset) + 1):
        row, labels = dataset[item]
        assert row.dtype == np.int64 and labels is row
        assert row.tolist() == slow_item(SIZES, range(0, 10), 20, seq_length, 7, item)
    assert dataset[len(dataset) + 1][0].tolist() == dataset[1][0].tolist()


def test_a_blend_takes_each_files_samples_in_order(tmp_path):
    """Whose sample comes when is test_blend's; here every file's samples follow one another, and wrap at their end."""
    sizes = [[30, 4], [9, 9, 50], [70]]
    paths = [str(write_tokens(tmp_path / f"t{i}", own, first=1000 * i)) for i, own in enumerate(sizes)]
    config = config_of(f"data.train_paths={json.dumps(paths)}", "data.train_weights=[1,2,5]")
    dataset = made(config)
    counts = [3, 6, 13]  # ceil(20 · w · 1.005)
    lengths = [len(slow_order(own, range(len(own)), n, 4, 7)[2]) - 1 for own, n in zip(sizes, counts, strict=True)]
    assert len(dataset) == sum(lengths)
    seen = [0, 0, 0]
    for item in range(len(dataset)):
        row, _ = dataset[item]
        number = int(row[0]) // 1000
        place = seen[number] if seen[number] <= lengths[number] else seen[number] % lengths[number]
        expected = slow_item(sizes[number], range(len(sizes[number])), counts[number], 4, 7, place)
        assert (row - 1000 * number).tolist() == expected
        seen[number] += 1
    assert seen[2] > seen[1] > seen[0] > 0
    assert dataset[len(dataset)][0].tolist() == dataset[0][0].tolist()
    names = {path.name.split("_indexmap_")[0] for path in tmp_path.glob("*_doc_idx.npy")}
    assert names == {"t0_train_0", "t1_train_1", "t2_train_2"}


@pytest.mark.parametrize("dp", [1, 2, 3])
def test_batches_are_dealt_in_order(corpus, dp):
    dataset = made(config_of(f"data.path={corpus}", "data.split=[1]", num_samples=48, seed=1))
    ranks = [Batches(dataset, micro_batch_size=2, grad_accum=2, dp=dp, dp_index=i) for i in range(dp)]
    size = ranks[0].global_batch_size
    assert size == 4 * dp
    for step in (0, 2, 1):  # any order: nothing is carried from step to step
        rows = []
        steps = [rank.step(step * size) for rank in ranks]
        for k in range(2):
            for micro_batches in steps:
                tokens, labels, _ = micro_batches[k]
                assert tokens.shape == labels.shape == (2, 4)
                assert tokens[:, 1:].equal(labels[:, :-1])
                rows += [[*row, int(last)] for row, last in zip(tokens.tolist(), labels[:, -1], strict=True)]
        assert rows == [dataset[item][0].tolist() for item in range(step * size, (step + 1) * size)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_samples_come_again(corpus, drop_last):
    """GPT-NeoX's loader drops those that do not fill a micro-batch of all ranks, here of six."""
    dataset = made(config_of(f"data.path={corpus}", "data.split=[1]", num_samples=17, seq_length=3, seed=1))
    num_whole = len(dataset) // 6 * 6
    assert num_whole < len(dataset) < 36
    ranks = [Batches(dataset, 3, 2, 2, index, drop_last=drop_last) for index in range(2)]
    for samples in (0, 12, 24):
        steps = [rank.step(samples) for rank in ranks]
        rows = [row for k in range(2) for micro_batches in steps for row in micro_batches[k].tokens.tolist()]
        items = [item % num_whole if drop_last else item for item in range(samples, samples + 12)]
        assert rows == [dataset[item][0][:-1].tolist() for item in items]
    rows = ranks[0].step(num_whole - 1)[0].tokens.tolist()  # gone on with from a layout of other micro-batches
    items = (num_whole - 1, 0, 1) if drop_last else range(num_whole - 1, num_whole + 2)
    assert rows == [dataset[item][0][:-1].tolist() for item in items]


def test_the_token_after_an_end_of_document_does_not_count(corpus, tmp_path):
    """GPT-NeoX's eod_mask_loss looks at the token read, not at the one foretold."""
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<|endoftext|>": 30}))
    given = (f"data.path={corpus}", "data.split=[1]", f"data.tokenizer={tmp_path}/vocab.json")
    parts = plan_parts(config_of(*given, "data.mask_eod=true"))
    assert parts.ends == Ends(30, mask_eod=True) and plan_parts(config_of(*given)).ends is None
    parts.make()
    plain, masked = (Batches(parts.train.open(), 38, 1, 1, 0, ends) for ends in (None, parts.ends))
    (tokens, labels, _), (_, targets, _) = plain.step(0)[0], masked.step(0)[0]
    after = tokens == 30
    assert after.any() and (targets[after] == -100).all() and targets[~after].equal(labels[~after])


def test_micro_batches_know_their_documents_and_samples(corpus, tmp_path):
    """Keys follow from a sample's number in the run, however samples are dealt to ranks and micro-batches."""
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<|endoftext|>": 30}))
    for which in ("mask_documents", "reset_positions"):
        given = (f"data.path={corpus}", "data.split=[1]", f"data.tokenizer={tmp_path}/vocab.json")
        parts = plan_parts(config_of(*given, f"data.{which}=true"))
        assert parts.ends == Ends(30, **{which: True})
    parts.make()
    dataset = parts.train.open()
    for size, accum, dp in ((4, 1, 1), (1, 2, 2), (2, 1, 2)):
        ranks = [Batches(dataset, size, accum, dp, index, parts.ends, dropout_seed=5) for index in range(dp)]
        dealt = [batch for batches in zip(*(rank.step(8) for rank in ranks), strict=True) for batch in batches]
        assert torch.cat([batch.context.keys for batch in dealt]).equal(sample_keys(5, range(8, 12)))
        assert all(batch.context.positions.shape == batch.tokens.shape for batch in dealt)
    assert Batches(dataset, 1, 1, 1, 0).step(0)[0].context == Context()


def files_of(folder):
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in folder.iterdir() if "indexmap" in path.name}


@pytest.mark.parametrize(("compat", "ending"), [("neox_v1", ""), ("neox_v2", "_packedpi_ac"), ("none", "_packedpi_ac")])
def test_files_have_gpt_neox_names_and_are_made_once(corpus, compat, ending):
    config = config_of(f"data.path={corpus}", "data.split=[10,1,1]", f"compat={compat}")
    assert plan_part(config, "train").make()
    files = files_of(corpus.parent)
    stem = f"x_train_indexmap_20ns_4sl_7s{ending}_"
    assert set(files) == {stem + name for name in ("doc_idx.npy", "sample_idx.npy", "shuffle_idx.npy", "key.json")}
    assert not plan_part(config, "train").make()
    assert files_of(corpus.parent) == files


@pytest.mark.parametrize("change", ["sizes", "split", "file", "key", "no key"])
def test_stale_files_are_made_again(corpus, change):
    config = config_of(f"data.path={corpus}", "data.split=[10,1,1]")
    plan_part(config, "train").make()
    stem = corpus.parent / "x_train_indexmap_20ns_4sl_7s_packedpi_ac_"
    if change == "sizes":
        write_tokens(corpus, SIZES[::-1])
    elif change == "split":
        config = config_of(f"data.path={corpus}", "data.split=[11,1,0]")
    elif change == "file":
        stem.with_name(f"{stem.name}shuffle_idx.npy").write_bytes(b"")
    elif change == "key":
        stem.with_name(f"{stem.name}key.json").write_text(json.dumps({"documents": 3}))
    else:
        stem.with_name(f"{stem.name}key.json").unlink()
    before = files_of(corpus.parent)
    assert plan_part(config, "train").make()
    plan_part(config, "train").open()
    after = files_of(corpus.parent)
    assert all(inode != before.get(name, (b"", 0))[1] for name, (_, inode) in after.items())
    assert not plan_part(config, "train").make()


def test_damaged_index_is_found_before_maps_are_made(corpus):
    config = config_of(f"data.path={corpus}", "data.split=[10,1,1]")
    index = bytearray(corpus.with_suffix(".idx").read_bytes())
    index[34 + 4 * 12 + 8 * 3] ^= 64  # where the fourth document begins
    corpus.with_suffix(".idx").write_bytes(index)
    with pytest.raises(UserError, match="sizes and offsets do not agree"):
        plan_part(config, "train").make()
    assert files_of(corpus.parent) == {}


def test_index_dir_holds_the_maps_of_data_that_cannot_be_written_to(corpus, tmp_path):
    config = config_of(f"data.path={corpus}", "data.split=[10,1,1]", f"data.index_dir={tmp_path}/maps/here")
    made(config)
    assert files_of(corpus.parent) == {} and len(files_of(tmp_path / "maps" / "here")) == 4


def test_index_command_makes_what_training_reads(corpus, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    given = "\n".join(["data: {path: PATH, split: [6, 6]}".replace("PATH", str(corpus)), "train: {steps: 3}"])
    config.write_text(f"model: {{num_layers: 1, hidden_size: 8, num_heads: 2, seq_length: 4}}\n{given}\n")
    sizes = ["train.valid_interval=2", "train.valid_batches=1", "train.micro_batch_size=2"]
    assert main(["data", "index", str(config), *sizes]) == 2
    assert "--world-size" in capsys.readouterr().err and files_of(tmp_path) == {}
    refused = ["compat=neox_v1", "data.packing=unpacked", "--world-size", "2"]  # as training does
    assert main(["data", "index", str(config), *sizes, *refused]) == 2
    assert "GPT-NeoX 1.0 has packed samples alone" in capsys.readouterr().err and files_of(tmp_path) == {}
    assert main(["data", "index", str(config), *sizes, "--world-size", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("train: ") and "made" in out[0] and "x_train_indexmap_12ns_4sl_1234s" in out[0]
    assert out[1].startswith("valid: ") and "x_valid_indexmap_8ns_4sl_1234s" in out[1]
    assert main(["data", "index", str(config), "train.global_batch_size=4", *sizes[:2], "--part", "train"]) == 0
    assert "found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=X", "data.split=[6,2,4]", "train.valid_interval=5"], "X: documents 6 to 8 hold no tokens"),
        (
            ["data.path=X", "data.split=[1,0,0]", "train.valid_interval=5"],
            "leaves none of 12 documents to the part 'valid'",
        ),
        (["data.train_paths=[X,X]", "train.valid_interval=5", "data.valid_paths=[X,Y]"], "Y.idx: no such file"),
        (["data.train_paths=[X]", "train.valid_interval=5"], "data.valid_paths is required"),
        (["data.train_paths=[X]", "data.path=X"], "data.path and data.train_paths"),
        (["data.valid_paths=[X]", "data.path=X"], "data.valid_paths goes with data.train_paths"),
        (
            ["data.train_paths=[X]", "data.train_weights=[1,2]"],
            "data.train_weights = .* one weight above 0 for each of 1",
        ),
        (["data.train_paths=[X]", "data.train_weights=[0]"], "data.train_weights = .* above 0"),
        (["data.train_paths=[X]", "data.train_weights=[1]", "data.weight_by_documents=true"], "give one of them"),
        (["data.train_paths=[X]", "data.weight_by_documents=true", "data.weight_alpha=-1"], "data.weight_alpha = -1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(corpus, overrides, message):
    here = [override.replace("X", str(corpus)).replace("Y", str(corpus.parent / "Y")) for override in overrides]
    with pytest.raises(UserError, match=message.replace("X", str(corpus))):
        plan_parts(config_of(*here))
    assert sorted(path.name for path in corpus.parent.iterdir()) == ["x.bin", "x.idx"]


def test_going_on_needs_no_more_samples_than_there_are(corpus):
    """20 samples were asked for, 10 seen in 5 steps of 2; then 2 were passed over."""
    config = config_of(f"data.path={corpus}", "data.split=[1]")
    data = plan_part(config, "train").fingerprint()
    length = len(plan_part(config, "train"))
    train = {"steps": 10, "global_batch_size": 2}
    saved = {"step": 5, "samples": 12, "data": data, "config": {"train": train}}

    def go_on(steps, size, state=saved):
        run = dataclasses.replace(config.train, steps=steps, global_batch_size=size)
        return plan_parts(dataclasses.replace(config, train=run), state).train

    assert go_on(10, 2).fingerprint() == data and go_on(5 + (length - 12) // 4, 4).num_requested == 20
    late = {**saved, "samples": length - 4}  # so late that the last steps need the first samples again
    assert go_on(10, 2, late).num_requested == 20
    for steps, size, state in ((11, 2, late), (10, 3, late), (9 + length // 2, 2, saved)):
        with pytest.raises(UserError, match=rf"^train\.steps = {steps}: the run would need \d+ samples"):
            go_on(steps, size, state)
    for other in ({**data, "files": [[1, 2]]}, {**data, "labels": True}, {"documents": 12, "tokens": 80}):
        with pytest.raises(UserError, match=r"the run began with|another --run-dir"):
            go_on(10, 2, {**saved, "data": other})


def test_test_part_of_a_split_and_of_its_own_files(corpus):
    split = plan_part(config_of(f"data.path={corpus}", "data.split=[1,1,1]"), "test")
    assert split.sources[0].plan.documents == range(8, 12)
    own = plan_part(config_of(f"data.train_paths=[{corpus}]", f"data.test_paths=[{corpus}]"), "test")
    assert own.sources[0].plan.documents == range(12) and own.sources[0].maps.stem.name.startswith("x_test_0_indexmap")
    with pytest.raises(UserError, match=r"data\.test_paths is empty"):
        plan_part(config_of(f"data.train_paths=[{corpus}]"), "test")
