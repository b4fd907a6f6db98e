"""`neox data`: fetch or make a corpus, train a tokenizer, tokenise, merge, order samples, build evaluation data."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neox.commands import fetch, labels
from neox.config.errors import UserError

if TYPE_CHECKING:
    from neox.data.prepare import Encoding
    from neox.data.reading import Reading

HELP = "prepare data: corpora, tokenizers, token files, labels, the order of samples, held-out text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    corpus = actions.add_parser("corpus", help="write the built-in corpus, which needs no network")
    corpus.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    fetch.add_arguments(actions.add_parser("fetch", help="get files by name, URL, from S3; unpack archives"))
    train = actions.add_parser("train-tokenizer", help="train a byte-level tokenizer, BPE or Unigram")
    _add_inputs(train)
    train.add_argument("--vocab-size", type=int, required=True, metavar="N")
    train.add_argument("--model", choices=("bpe", "unigram"), default="bpe", help="(default: %(default)s)")
    train.add_argument("--output", type=Path, required=True, metavar="tokenizer.json")
    convert = actions.add_parser("convert-tokenizer", help="another library's tokenizer as a tokenizer.json")
    help = "SentencePiece's .model, a .tiktoken, GPT-2's vocab.json, or char-level"
    convert.add_argument("source", metavar="SOURCE", help=help)
    convert.add_argument("--merges", type=Path, metavar="merges.txt", help="of a vocab.json")
    convert.add_argument("--output", type=Path, required=True, metavar="tokenizer.json")
    _add_tokenize(actions.add_parser("tokenize", help="turn text into PREFIX.bin and PREFIX.idx"))
    help = "chats by a template into token files, with labels that count the answers; pairs, rewards"
    labels.add_conversations(actions.add_parser("conversations", help=help))
    labels.add_mask(actions.add_parser("mask", help="labels that count what follows a delimiter in each document"))
    merge = actions.add_parser("merge", help="concatenate token files")
    merge.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX")
    merge.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    _add_check(actions.add_parser("check", help="read a token file: damage, ids, lengths of documents, samples"))
    _add_index(actions.add_parser("index", help="make the index maps of a run: the order of its samples"))
    _add_heldout(actions.add_parser("heldout", help="make evaluation data of documents that training never sees"))


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    help = ".jsonl, .txt, .tar, .dat (plain or .gz, .bz2, .xz, .zst), .parquet, .zip, .tfrecords, or a folder of those"
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=help)
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading", "which documents there are; the same for all that read one corpus")
    formats = ("auto", "jsonl", "text", "parquet", "jsonl.tar", "tar", "zip", "dat", "tfrecord")
    group.add_argument("--format", choices=formats, default="auto", help="(default: each file's suffix says it)")
    group.add_argument("--key", default="text", help="field that keeps the text, or a.b (default: %(default)s)")
    group.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help="only such records; or !=")
    group.add_argument("--ftfy", action="store_true", help="repair texts with ftfy")
    group.add_argument("--min-length", type=int, default=1, metavar="N", help="characters (default: %(default)s)")
    group.add_argument(
        "--on-broken",
        choices=("stop", "skip"),
        default="stop",
        help="records without a document (default: %(default)s)",
    )


def _add_tokenize(parser: argparse.ArgumentParser) -> None:
    _add_inputs(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only part I of N, I from 0 to N-1")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="processes (default: %(default)s)")
    parser.add_argument("--mpi", action="store_true", help="started by mpirun or srun: the ranks are the shards")
    engines = ("auto", "gigatoken", "tokenizers")
    parser.add_argument("--engine", choices=engines, default="auto", help="(default: the fastest that is proven equal)")
    parser.add_argument("--no-append-eod", action="store_true", help="do not end documents with a token that says so")
    parser.add_argument("--end-of-document", metavar="TOKEN", help="that token (default: <|endoftext|>, </s>, …)")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: the one that the configuration names")
    parser.add_argument("--config", nargs="+", default=[], metavar="FILE|key=value", help="of the model to train")


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="+", metavar="FILE|key=value", help="configuration of the run")
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks, where train.global_batch_size is not given")
    parts = ("train", "valid", "test")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts[:2], help="(default: what training reads)")


def _add_heldout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="the run's token file")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="that made it")
    parser.add_argument("--split", default="969,30,1", metavar="SHARES", help="data.split of the run (%(default)s)")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Do it and print one line that says what was made."""
    signal.signal(signal.SIGTERM, _stop)
    if said := ACTIONS[args.action](args):
        print(said)
    return 0


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)  # an exception, so that temporary files are removed


def _corpus(args: argparse.Namespace) -> str:
    from neox.data.corpora import write_corpus

    manifest = write_corpus(args.output)
    return f"{args.output}: {manifest['documents']} documents, {manifest['bytes'] / 1e6:.1f} MB"


def _train_tokenizer(args: argparse.Namespace) -> str:
    from neox.data.reading import read_texts
    from neox.data.tokenizer import train_tokenizer

    entries = train_tokenizer(read_texts(args.inputs, _reading(args)), args.vocab_size, args.output, args.model)
    return f"{args.output}: {entries} entries"


def _convert_tokenizer(args: argparse.Namespace) -> str:
    from neox.data.conversion import convert_tokenizer

    return f"{args.output}: made of {args.source}{convert_tokenizer(args.source, args.output, args.merges)}"


def _tokenize(args: argparse.Namespace) -> str:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which cost a start and are of no use here
    from neox.data.prepare import Encoding, tokenize

    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    encoding = Encoding(args.tokenizer, _reading(args), not args.no_append_eod, args.end_of_document, args.engine)
    if args.mpi:
        return _tokenize_by_ranks(args, encoding)
    return _describe(args.output, tokenize(args.inputs, encoding, args.output, _parse_shard(args.shard), args.workers))


def _tokenize_by_ranks(args: argparse.Namespace, encoding: Encoding) -> str:
    try:
        from neox.data.mpi import tokenize_by_ranks
    except ImportError as error:
        raise UserError(f"--mpi: mpi4py finds no MPI library ({error}); start it with `jobs launch`") from None
    if args.shard != "0/1":
        raise UserError(f"--shard {args.shard}: with --mpi the ranks are the shards")
    manifest = tokenize_by_ranks(args.inputs, encoding, args.output, args.workers)
    return _describe(args.output, manifest) if manifest else ""


def _merge(args: argparse.Namespace) -> str:
    from neox.data.manifest import merge_prefixes

    return _describe(args.output, merge_prefixes(args.prefixes, args.output))


def _check(args: argparse.Namespace) -> str:
    from neox.config.derive import padded_vocab
    from neox.config.load import load_config, parse_arguments
    from neox.data.check import Vocabulary, check_tokens
    from neox.data.tokenizer import load_tokenizer

    config = load_config(*parse_arguments(args.config)) if args.config else None
    named, end = (config.data.tokenizer, config.data.end_of_document) if config else (None, None)
    path = args.tokenizer or named
    tokenizer = load_tokenizer(Path(path), end) if path else None
    vocabulary = Vocabulary(tokenizer)
    if config:
        model = config.model
        if model.vocab_size is None and tokenizer is not None:
            model = replace(model, vocab_size=tokenizer.vocab_size)
        vocabulary = Vocabulary(tokenizer, model.vocab_size, padded_vocab(model) if model.vocab_size else None)
    return "\n".join(line for prefix in args.prefixes for line in check_tokens(prefix, vocabulary))


def _index(args: argparse.Namespace) -> str:
    from neox.config.derive import resolve_data
    from neox.config.load import load_config, parse_arguments
    from neox.data.parts import plan_part

    config = resolve_data(load_config(*parse_arguments(args.config)), args.world_size)
    names = [name for name in args.part if name != "valid" or config.train.valid_interval]
    plans = [(name, plan_part(config, name)) for name in names]  # all of them before the first is written
    lines = []
    for name, plan in plans:
        made = plan.make()
        files = ", ".join(f"{stem}_*.npy" for stem in plan.stems())
        lines.append(f"{name}: {len(plan)} samples, {'made' if made else 'found'} {files}")
    return "\n".join(lines)


def _heldout(args: argparse.Namespace) -> str:
    from neox.data.heldout import write_heldout
    from neox.data.split import parse_split
    from neox.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    manifest = write_heldout(args.prefix, tokenizer, parse_split(args.split), args.part, args.output)
    counts = {f"{name}.jsonl": manifest[name] for name in ("perplexity", "cloze", "choice", "arithmetic")}
    lines = [f"{args.output}: {', '.join(f'{count} in {name}' for name, count in counts.items())}"]
    if empty := [name for name, count in counts.items() if not count]:
        lines.append(
            f"too little held-out prose for {', '.join(empty)}: `neox evaluate` skips the tasks that read them"
        )
    return "\n".join(lines)


def _reading(args: argparse.Namespace) -> Reading:
    from neox.data.reading import Reading

    is_lenient = args.on_broken == "skip"
    return Reading(args.format, args.key, tuple(args.where), args.ftfy, args.min_length, is_lenient)


def _parse_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text}: must be I/N with I from 0 to N-1, like 0/4")
    return int(match[1]), int(match[2])


def _describe(prefix: Path, manifest: dict[str, Any]) -> str:
    return (
        f"{prefix}: {manifest['documents']} documents, {manifest['tokens']} tokens of {manifest['dtype']}, "
        f"unigram entropy {manifest['unigram_entropy']:.3f} nats"
    )


ACTIONS: dict[str, Callable[[argparse.Namespace], str]] = {
    "corpus": _corpus,
    "fetch": fetch.run,
    "train-tokenizer": _train_tokenizer,
    "convert-tokenizer": _convert_tokenizer,
    "tokenize": _tokenize,
    "conversations": labels.conversations,
    "mask": labels.mask,
    "merge": _merge,
    "check": _check,
    "index": _index,
    "heldout": _heldout,
}
