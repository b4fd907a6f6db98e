"""`neox generate`: text sampled from a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neox.config.errors import UserError

if TYPE_CHECKING:
    from neox.generate import Generator, Sample
    from neox.sampling import Sampling

HELP = "sample text from a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the prompts and the sampling."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="a step_* folder of a run")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: the one that the run names")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to continue, may be repeated (default: none)",
    )
    help = 'to continue: JSON lines {"prompt"} or {"text"}, or any other text of prompts'
    parser.add_argument("--input", type=Path, metavar="FILE", help=help)
    parser.add_argument("--interactive", action="store_true", help="ask for prompts, until Ctrl-D")
    help = "what ends a prompt of such a text or of --interactive (default: the end of its line)"
    parser.add_argument("--prompt-end", default="\n", metavar="TEXT", help=help)
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="samples per prompt (default 1)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="most tokens to add (default 64)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="… from those that make up P (default 1)")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="… with P of the likeliest's probability")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: repeat less")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text, may be repeated")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples at a time (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers (default 0)")
    parser.add_argument("--stream", action="store_true", help="print text as it comes, one sample after another")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines here instead of printing text")


def run(args: argparse.Namespace) -> int:
    """Prints one block of text per sample, or writes {"prompt", "text", "tokens", "finished"} lines to --output.

    Under a launcher the model is dealt to the ranks, and the first one prints and writes.
    """
    from neox.commands.train import world_size
    from neox.generate import load_generator
    from neox.sampling import Sampling

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = Sampling(stop=tuple(args.stop), **{name: getattr(args, name) for name in names})
    _check(args)
    prompts = [] if args.interactive else args.prompt + (read_prompts(args) if args.input else []) or [""]
    generator = load_generator(args.checkpoint, args.tokenizer, world_size())
    if args.interactive:
        _converse(generator, sampling, args.prompt_end)
    elif args.stream:
        numbered = [(prompt, number) for prompt in prompts for number in range(args.num_samples)]
        for place, (prompt, number) in enumerate(numbered, 1):
            _say(f"--- sample {place} of {len(numbered)} ---\n{prompt}")
            _say_all(generator.stream(prompt, sampling, number))
    else:
        samples = generator.continue_all(prompts, args.num_samples, sampling, args.batch_size)
        if is_first_rank():
            _deliver(samples, args.output)
    return 0


def is_first_rank() -> bool:
    """Whether this process is the one of the launch that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def _check(args: argparse.Namespace) -> None:
    """UserError where options do not go together."""
    for name in ("batch_size", "num_samples"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if args.input and (not args.input.exists() or args.input.is_dir()):
        raise UserError(f"--input {args.input}: no such file")
    if not args.prompt_end:
        raise UserError("--prompt-end: must not be empty")
    if args.output and (args.stream or args.interactive):
        raise UserError("--output: --stream and --interactive print text as it comes")
    if args.interactive and (args.prompt or args.input or args.num_samples > 1):
        raise UserError(
            "--interactive: asks for prompts and gives each one sample; no --prompt, --input, --num-samples"
        )


def _deliver(samples: list[Sample], output: Path | None) -> None:
    from neox.data.durable import replacing

    if output is None:
        for number, sample in enumerate(samples, 1):
            _say(f"--- sample {number} of {len(samples)} ---\n{sample.prompt}{sample.text}\n")
        return
    with replacing(output) as (temporary,):
        lines = [json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
        temporary.write_text("".join(lines), encoding="utf-8")


def _converse(generator: Generator, sampling: Sampling, prompt_end: str) -> None:
    """Continues each prompt from the keyboard, until there are no more; a prompt that is too long is complained of."""
    from neox.__main__ import complain
    from neox.parallel.inference import first_says, patient_group

    group = patient_group()
    while (prompt := first_says(ask(prompt_end) if is_first_rank() else None, group)) is not None:
        try:
            _say_all(generator.stream(prompt, sampling))
        except UserError as error:
            complain(str(error))
    _say("\n")


def ask(prompt_end: str) -> str | None:
    """What is typed up to `prompt_end`; None: nothing more comes."""
    text = ""
    while prompt_end not in text:
        try:
            text += input("" if text else "prompt> ") + "\n"
        except EOFError:
            return text.removesuffix("\n") or None
    return text.split(prompt_end)[0]


def _say_all(pieces: Iterator[str]) -> None:
    for piece in pieces:
        _say(piece)
    _say("\n")


def _say(text: str) -> None:
    if is_first_rank():
        print(text, end="", flush=True)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The text of each line: of its key "prompt", or of "text" where the first line has none.

    Of a file that is no .jsonl, what lies between prompt ends, stripped, without blank ones: GPT-NeoX's input-file.
    """
    from neox.data.formats.registry import guess
    from neox.data.reading import Reading, read_texts

    if guess(args.input) != "jsonl":
        try:
            parts = args.input.read_text(encoding="utf-8").split(args.prompt_end)
        except UnicodeDecodeError as error:
            raise UserError(f"{args.input}: not UTF-8 ({error.reason} at byte {error.start})") from None
        found = [part.strip() for part in parts if part.strip()]
        if not found:
            raise UserError(f"{args.input}: no prompt in it")
        return found
    key = "prompt" if "prompt" in _first_record(args.input) else "text"
    return list(read_texts([args.input], Reading("jsonl", key, min_length=0)))


def _first_record(path: Path) -> dict[str, object]:
    """Of a file of JSON lines; empty where that is none, which whoever reads it all says better."""
    from neox.data.formats.compression import damage_named, open_bytes

    with damage_named(path), open_bytes(path) as file:
        line = next((line for line in file if line.strip()), b"")
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
