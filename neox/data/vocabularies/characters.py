"""GPT-NeoX's CharLevelTokenizer: the bytes of the text, 0 to end documents, 512 ids."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from neox.data.tokenizer import END_OF_DOCUMENT

NUM_IDS = 512


def convert() -> Tokenizer:
    """BPE without merges; byte 0, which stands for no text, has the id of the end of a document, as there."""
    characters = {character: byte for byte, character in enumerate(byte_characters()) if byte}
    unused = {f"<|unused_{number}|>": number for number in range(256, NUM_IDS)}
    model = models.BPE(vocab={END_OF_DOCUMENT: 0} | characters | unused, merges=[], unk_token=END_OF_DOCUMENT)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_DOCUMENT, normalized=False)])
    return tokenizer


def byte_characters() -> list[str]:
    """What byte-level tokenizers write for each of the 256 bytes: itself where it prints, else one from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]
