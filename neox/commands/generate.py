"""`neox generate`: text sampled from a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "sample text from a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the prompts and the sampling."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR", help="a step_* folder of a run")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="tokenizer.json of the run")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to continue, may be repeated (default: none)",
    )
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="samples per prompt (default 1)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="most tokens to add (default 64)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="… from those that make up P (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers (default 0)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines here instead of printing text")


def run(args: argparse.Namespace) -> int:
    """Prints one block of text per sample, or writes {"prompt", "text", "tokens", "finished"} lines to --output."""
    import dataclasses
    import json

    from neox.data.durable import replacing
    from neox.generate import Sampling, load_generator

    sampling = Sampling(args.max_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    generator = load_generator(args.checkpoint, args.tokenizer)
    samples = [s for prompt in args.prompt or [""] for s in generator.samples(prompt, args.num_samples, sampling)]
    if args.output is not None:
        with replacing(args.output) as (temporary,):
            lines = [json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
            temporary.write_text("".join(lines), encoding="utf-8")
        return 0
    for number, sample in enumerate(samples, 1):
        print(f"--- sample {number} of {len(samples)} ---\n{sample.prompt}{sample.text}")
    return 0
