"""`neox data conversations` and `neox data mask`: token files with labels that say what counts in the loss."""

from __future__ import annotations

import argparse
from pathlib import Path

from neox.config.errors import UserError


def add_conversations(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `conversations`; they are those of GPT-NeoX's preprocess_data_with_chat_template.py."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=".jsonl, plain or compressed")
    help = "of transformers, with a chat template"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FOLDER", help=help)
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="of PREFIX_KEY_document and so on")
    help = "fields with the turns (default: conversation); for pairs: chosen rejected"
    parser.add_argument("--key", nargs="+", default=["conversation"], metavar="KEY", help=help)
    help = "whose turns count in the loss (default: %(default)s)"
    parser.add_argument("--generation-role", default="assistant", metavar="ROLE", help=help)
    counting = parser.add_mutually_exclusive_group()
    counting.add_argument("--only-last", action="store_true", help="of those turns only the last counts")
    counting.add_argument("--for-rm", action="store_true", help="only a second end of text counts, for reward models")
    counting.add_argument("--no-mask", action="store_true", help="every token counts: no label file, no end of text")
    parser.add_argument("--reward-key", metavar="KEY", help="field with a number, or one for each token")
    parser.add_argument("--binary-reward", action="store_true", help="it is true (1) or false (-1)")
    help = "records without a conversation (default: %(default)s)"
    parser.add_argument("--on-broken", choices=("stop", "skip"), default="stop", help=help)


def conversations(args: argparse.Namespace) -> str:
    """Do it; returns what to print."""
    from neox.data.conversations import Counting, Rewards, tokenize_conversations
    from neox.data.tokenizer import ChatTokenizer

    if args.binary_reward and not args.reward_key:
        raise UserError("--binary-reward: needs --reward-key")
    if len(set(args.key)) < len(args.key):
        raise UserError(f"--key {' '.join(args.key)}: names a field twice")
    counting = Counting(args.generation_role, args.only_last, args.for_rm, args.no_mask)
    rewards = Rewards(args.reward_key, args.binary_reward) if args.reward_key else None
    tokenizer = ChatTokenizer(args.tokenizer)
    is_lenient = args.on_broken == "skip"
    made = tokenize_conversations(args.inputs, tokenizer, args.output, args.key, counting, rewards, is_lenient)
    return "\n".join(
        f"{each['prefix']}: {each['documents']} conversations, {each['tokens']} tokens, {each['counted']} count"
        for each in made
    )


def add_mask(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `mask`."""
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="a token file")
    help = "ids of the delimiter: all up to and with the first does not count in the loss"
    parser.add_argument("--before-token", required=True, metavar="ID,ID", help=help)
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="the label file")


def mask(args: argparse.Namespace) -> str:
    """Do it; returns what to print."""
    from neox.data.labels import mask_before

    parts = args.before_token.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--before-token {args.before_token}: must be token ids with commas between them, like 50,187")
    documents, masked = mask_before(args.prefix, list(map(int, parts)), args.output)
    return f"{args.output}: {documents} documents, {masked} with the delimiter, the others count whole"
