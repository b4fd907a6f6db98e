"""Which samples a part has, in which order: planned without writing, made once, opened by each rank."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, BinaryIO

import numpy as np

from neox.config.errors import UserError
from neox.config.schema import Config, DataConfig
from neox.config.vocabulary import end_of_document
from neox.data import blend
from neox.data.dataset import BlendedDataset, Dataset, TokenDataset
from neox.data.index_maps import IndexMaps, digest, index_stem
from neox.data.indexed import IndexedReader
from neox.data.loader import Ends
from neox.data.samples import NAMES, PackedPlan, SampleOrder, plan_packed, requested_samples
from neox.data.split import part_bounds
from neox.data.streamed import open_tokens
from neox.data.whole import IGNORED, WholePlan


@dataclass(frozen=True)
class Source:
    """One token file's documents of a part, and the order of their samples."""

    reader: IndexedReader
    labels: IndexedReader | None
    plan: PackedPlan | WholePlan
    maps: IndexMaps
    pad_label: int
    """Label of the padding of samples that are not full, where there are no label files."""

    def __len__(self) -> int:
        """GPT-NeoX's length: one less than the samples there are."""
        return self.plan.num_samples - 1

    def make(self) -> bool:
        """Makes the index maps unless they are there; whether it had to. UserError when the token file is damaged."""
        # Whoever makes the maps reads the whole index, and not each of thousands of ranks.
        self.reader.check()
        if self.labels is not None:
            self.labels.check()
        documents = self.plan.documents
        key = {"documents": [documents.start, documents.stop], "sizes_sha256": digest(self.reader.sizes)}
        key |= self.plan.key()
        return self.maps.make_unless_made(key, lambda files: self.plan.write(self.reader.sizes, files))

    def open(self) -> TokenDataset:
        """The samples, once the index maps are made."""
        order = SampleOrder(*self.maps.open())
        return TokenDataset(self.reader, self.labels, order, self.plan.seq_length, self.pad_label)


@dataclass(frozen=True)
class Part:
    """Training, validation or test: token files, their weights, and how they are dealt."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    """One for each source, together one."""
    num_requested: int
    """Samples that were asked of the part; the order depends on it."""
    dealt: IndexMaps
    """Which source gives each sample; not made where there is one source."""

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def fingerprint(self) -> dict[str, Any]:
        """What must not change within a run: the token files' sizes and the samples asked of them."""
        files = [[len(source.reader), len(source.reader.tokens)] for source in self.sources]
        return {"files": files, "labels": self.sources[0].labels is not None, "requested": self.num_requested}

    def stems(self) -> list[str]:
        """Beginnings of the names of all index maps."""
        blended = [self.dealt] if len(self.sources) > 1 else []
        return [str(maps.stem) for maps in (*(source.maps for source in self.sources), *blended)]

    def make(self) -> bool:
        """Makes the index maps that are not there; whether it had to.

        Raises:
            UserError: a folder cannot be written to, or the disk is full.
        """
        made = [source.make() for source in self.sources]
        key = {"weights": list(self.weights), "samples": len(self)}
        return (len(made) > 1 and self.dealt.make_unless_made(key, self._write_dealt)) or any(made)

    def open(self) -> Dataset:
        """The samples, once the index maps are made."""
        datasets = [source.open() for source in self.sources]
        return datasets[0] if len(datasets) == 1 else BlendedDataset(datasets, *self.dealt.open())

    def _write_dealt(self, files: Sequence[BinaryIO]) -> None:
        index = blend.deal(self.weights, len(self))
        np.save(files[0], index)
        np.save(files[1], blend.counts_before(index, len(self.weights)))


@dataclass(frozen=True)
class Parts:
    """What a run reads."""

    train: Part
    valid: Part | None
    """None: the run does not validate."""
    ends: Ends | None
    """What the token that ends documents changes; None: nothing."""

    def make(self) -> None:
        """Makes the index maps that are not there."""
        for part in (self.train, self.valid):
            if part is not None:
                part.make()


def plan_parts(config: Config, saved: Mapping[str, Any] | None = None) -> Parts:
    """The plan of what a run with a resolved configuration reads; writes nothing.

    Args:
        saved: state of the checkpoint that the run goes on from. The order is that which the run began with, and going
            on from its next sample must not need more samples than it has, however steps and batch sizes changed.

    Raises:
        UserError: a token file is missing or damaged, holds too little, or is not what the run began with.
    """
    if saved is not None and "requested" not in saved["data"]:
        raise UserError(
            "the checkpoint is of a version that did not keep how many samples were asked for: take another --run-dir"
        )
    train = plan_part(config, "train", None if saved is None else saved["data"]["requested"])
    if saved is not None:
        check_same_data(config, train, saved)
    valid = plan_part(config, "valid") if config.train.valid_interval else None
    return Parts(train, valid, plan_ends(config.data))


def plan_ends(data: DataConfig) -> Ends | None:
    """What changes at the ends of documents; None: nothing. UserError when the token that ends them is unknown."""
    asking = [f"data.{name}" for name in ("mask_eod", "mask_documents", "reset_positions") if getattr(data, name)]
    if not asking:
        return None
    token = end_of_document(data.tokenizer, data.end_of_document, asking[0])
    return Ends(token, data.mask_eod, data.mask_documents, data.reset_positions)


def check_same_data(config: Config, part: Part, saved: Mapping[str, Any]) -> None:
    """UserError unless a run can go on from the `saved` state with the samples of `part`."""
    for number, (now, before) in enumerate(zip_longest(part.fingerprint()["files"], saved["data"]["files"])):
        if now != before:
            names = [f"data.path = {config.data.path}"] if config.data.path else config.data.train_paths
            raise UserError(
                f"{names[number] if number < len(names) else 'data.train_paths'}: has [documents, tokens] = {now}, the "
                f"run began with {before}; give it the same token files or take another --run-dir"
            )
    if saved["data"]["labels"] != part.fingerprint()["labels"]:
        raise UserError("data.train_label_paths: the run began with label files or without, and must go on so")
    assert config.train.global_batch_size is not None
    needed, before = (
        saved["samples"] + (steps - saved["step"]) * size
        for steps, size in (
            (config.train.steps, config.train.global_batch_size),
            (saved["config"]["train"]["steps"], saved["config"]["train"]["global_batch_size"]),
        )
    )
    # A run that passes over samples after a bad step may need some more than it asked for: the first come again.
    if needed > max(part.num_requested, len(part), before):
        raise UserError(
            f"train.steps = {config.train.steps}: the run would need {needed} samples, and the order it began with has "
            f"{len(part)}; all epochs are shuffled as one, so there cannot be more: lower it or take another --run-dir"
        )


def plan_part(config: Config, part: str, num_requested: int | None = None) -> Part:
    """The plan of "train", "valid" or "test" in a resolved configuration; writes nothing.

    Args:
        num_requested: samples to ask of the part, where a run goes on that asked for so many; None: what the run needs.

    Raises:
        UserError: a token file is missing or damaged, or holds too little for the part.
    """
    data, train = config.data, config.train
    assert train.global_batch_size is not None
    if num_requested is None:
        sizes = (train.steps, train.global_batch_size, train.valid_interval, train.valid_batches)
        num_requested = requested_samples(part, *sizes)
    if not data.train_paths:
        assert data.path is not None
        readers, weights, counts, names = [open_tokens(data.path, data)], [1.0], [num_requested], [part]
        labels: list[IndexedReader | None] = [None]
    else:
        readers = [open_tokens(prefix, data) for prefix in getattr(data, f"{part}_paths")]
        if not readers:
            raise UserError(f"data.{part}_paths is empty: name the token files of that part")
        labels = [open_tokens(prefix, data) for prefix in getattr(data, f"{part}_label_paths")] or [None] * len(readers)
        weights = _weights(config, part, readers)
        counts = blend.requested_of_each(weights, num_requested)
        names = [f"{part}_{number}" for number in range(len(readers))]
    sources = tuple(_source(config, part, *row) for row in zip(readers, labels, counts, names, strict=True))
    if len(sources) > 1 and not any(map(len, sources)):
        raise UserError(f"data.{part}_paths: one sample each, which GPT-NeoX never gives of a blend; add text")
    name = hashlib.sha256(repr([weights, [len(source) for source in sources]]).encode()).hexdigest()[:16]
    stem = index_stem(readers[0].prefix, data.index_dir, f"{part}_blendmap_{name}")
    return Part(sources, tuple(weights), num_requested, IndexMaps(stem, ("dataset_index", "dataset_counts")))


def _weights(config: Config, part: str, readers: Sequence[IndexedReader]) -> list[float]:
    if config.data.weight_by_documents:
        num_documents = [len(reader) for reader in readers]
        return blend.normalised(blend.weights_by_documents(num_documents, config.data.weight_alpha, config.compat))
    weights: tuple[float, ...] = getattr(config.data, f"{part}_weights")
    return blend.normalised(weights or [1.0] * len(readers))


def _source(
    config: Config, part: str, reader: IndexedReader, labels: IndexedReader | None, num_samples: int, name: str
) -> Source:
    data, seq_length = config.data, config.model.seq_length
    documents = range(len(reader)) if data.train_paths else part_bounds(data.split, len(reader), part)[part]
    if labels is not None and not np.array_equal(reader.sizes, labels.sizes):
        raise UserError(f"{labels.prefix}: its documents are not as long as those of {reader.prefix}")
    plan: PackedPlan | WholePlan
    try:
        plan = plan_packed(reader.sizes, documents, num_samples, seq_length, data.seed)
    except UserError as error:
        raise UserError(f"{reader.prefix}: {error}") from None
    if data.packing != "packed":
        plan = WholePlan(documents, num_samples, seq_length, data.seed, data.packing, data.allow_chopped, labels)
    # GPT-NeoX 1.0 knew one way of packing, which its names do not tell.
    packing = "" if config.compat == "neox_v1" else f"_{data.packing}pi{'_ac' if data.allow_chopped else ''}"
    name = f"{name}_indexmap_{num_samples}ns_{seq_length}sl_{data.seed}s{packing}"
    maps = IndexMaps(index_stem(reader.prefix, data.index_dir, name), NAMES)
    return Source(reader, labels, plan, maps, IGNORED if config.compat == "none" else 0)
