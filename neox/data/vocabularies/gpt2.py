"""GPT-2's pair of vocab.json and merges.txt."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from neox.config.errors import UserError
from neox.config.vocabulary import ENDS_OF_DOCUMENT, read_vocabulary


def convert(vocabulary: Path, merges: Path) -> Tokenizer:
    """Byte-level BPE; a token that ends documents is one of its own where text spells it, as in GPT-NeoX."""
    ids = read_vocabulary(str(vocabulary))
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library has no narrower class
        raise UserError(f"{vocabulary} and {merges}: not GPT-2's vocabulary and merges ({error})") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ENDS_OF_DOCUMENT[:1] if token in ids]
    )
    return tokenizer
