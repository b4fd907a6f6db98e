"""From text to batches: corpora, tokenizers, token files, sample order."""
