"""The `data` section: token files, split, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Token files, their split, and the tokenizer that made them."""

    path: str | None = None
    """Prefix of PREFIX.bin and PREFIX.idx (GPT-NeoX: data_path)."""
    tokenizer: str | None = None
    """tokenizer.json of the Hugging Face `tokenizers` library (GPT-NeoX: vocab_file with HFTokenizer)."""
    split: tuple[float, ...] = (969.0, 30.0, 1.0)
    """Shares of the documents for training, validation and test, normalised to one; documents keep their order."""
    seed: int = 1234
    """Seed of the document and sample order."""
