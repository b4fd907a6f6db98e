"""`neox generate`: text sampled from a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    parser.add_argument("--input", type=Path, metavar="FILE", help='JSON lines {"prompt"} or {"text"} to continue')
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
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines here instead of printing text")


def run(args: argparse.Namespace) -> int:
    """Prints one block of text per sample, or writes {"prompt", "text", "tokens", "finished"} lines to --output."""
    import dataclasses
    import json

    from neox.config.errors import UserError
    from neox.data.durable import replacing
    from neox.generate import Sampling, load_generator

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = Sampling(stop=tuple(args.stop), **{name: getattr(args, name) for name in names})
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    prompts = args.prompt + (read_prompts(args.input) if args.input else []) or [""]
    generator = load_generator(args.checkpoint, args.tokenizer)
    samples = generator.continue_all(prompts, args.num_samples, sampling, args.batch_size)
    if args.output is not None:
        with replacing(args.output) as (temporary,):
            lines = [json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
            temporary.write_text("".join(lines), encoding="utf-8")
        return 0
    for number, sample in enumerate(samples, 1):
        print(f"--- sample {number} of {len(samples)} ---\n{sample.prompt}{sample.text}")
    return 0


def read_prompts(path: Path) -> list[str]:
    """The text of each line: of its key "prompt", or of "text" where the first line has none."""
    from neox.config.errors import UserError
    from neox.data.reading import Reading, read_texts

    try:
        return list(read_texts([path], Reading("jsonl", "prompt", min_length=0)))
    except UserError as error:
        if "'prompt'" not in str(error):
            raise
        return list(read_texts([path], Reading("jsonl", min_length=0)))
