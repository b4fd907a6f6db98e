"""The `data` section: token files, how they are split or blended, and the order of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Token files, their split or blend, and the tokenizer that made them."""

    path: str | None = None
    """Prefix of PREFIX.bin and PREFIX.idx, which `split` divides (GPT-NeoX: data_path). This, or train_paths."""
    tokenizer: str | None = None
    """tokenizer.json of the Hugging Face `tokenizers` library (GPT-NeoX: vocab_file with HFTokenizer)."""
    end_of_document: str | None = None
    """The token that ends documents. None: the first that the tokenizer has of <|endoftext|>, <|end_of_text|>, </s>,
    <eos>, <|eos|>, [EOS]."""
    split: tuple[float, ...] = (969.0, 30.0, 1.0)
    """Shares of the documents for training, validation and test, normalised to one; documents keep their order."""
    train_paths: tuple[str, ...] = ()
    """Prefixes of whole token files to train on, instead of `path` and `split` (GPT-NeoX: train_data_paths)."""
    train_weights: tuple[float, ...] = ()
    """Shares of the samples that each of train_paths gives, normalised to one. Empty: equal shares."""
    valid_paths: tuple[str, ...] = ()
    """Prefixes of whole token files to validate on; needed with train_paths where train.valid_interval is not 0."""
    valid_weights: tuple[float, ...] = ()
    """As train_weights, for valid_paths."""
    test_paths: tuple[str, ...] = ()
    """Prefixes of the token files held back for a test; training does not open them, `neox data index` does."""
    test_weights: tuple[float, ...] = ()
    """As train_weights, for test_paths."""
    train_label_paths: tuple[str, ...] = ()
    """Prefixes of token files of labels, one for each of train_paths and as long: -100 where a token does not count in
    the loss (GPT-NeoX: train_label_data_paths). Empty: the tokens themselves. The loss is the mean over all tokens of
    the global batch that count; with `compat` it is the mean of micro-batches' means, as there, whatever their size."""
    valid_label_paths: tuple[str, ...] = ()
    """As train_label_paths, for valid_paths."""
    test_label_paths: tuple[str, ...] = ()
    """As train_label_paths, for test_paths."""
    packing: Literal["packed", "pack_until_overflow", "unpacked"] = "packed"
    """How documents become samples (GPT-NeoX: pack_impl): laid end to end and cut; whole ones while they fit, then
    padded; one in each sample, padded. Padding counts in the loss with `compat` and without label files, as there."""
    mask_eod: bool = False
    """Whether the token after each end of document does not count in the loss (GPT-NeoX: eod_mask_loss)."""
    mask_documents: bool = False
    """Whether attention sees nothing before the last end of document, which belongs to the document that it ends, in
    training and validation (early GPT-NeoX and Megatron-LM: reset_attention_mask)."""
    reset_positions: bool = False
    """Whether positions begin at 0 again after each end of document (early GPT-NeoX and Megatron-LM:
    reset_position_ids)."""
    allow_chopped: bool = True
    """Whether unpacked and pack_until_overflow take documents longer than a sample, and cut them."""
    weight_by_documents: bool = False
    """Weigh token files by their number of documents n: n^alpha, normalised (GPT-NeoX: weight_by_num_documents, which
    also multiplies by 1 - n/N; `compat` does too)."""
    weight_alpha: float = 1.0
    """Exponent alpha of weight_by_documents; below 1 small files are seen more often (GPT-NeoX: weighted_sampler_alpha;
    arXiv 1911.02116 has 0.3)."""
    index_dir: str | None = None
    """Folder of the index maps, which hold the order of the samples. None: beside each token file, as GPT-NeoX."""
    cache_dir: str | None = None
    """Folder for what is read of token files behind a URL (s3, https): their indices, index maps and blocks of tokens.
    Ranks of a node may share it; needed where a prefix is a URL."""
    cache_gb: float = 10.0
    """Gigabytes of tokens that cache_dir keeps, of all URLs together, those read last."""
    seed: int = 1234
    """Seed of the document and sample order."""
