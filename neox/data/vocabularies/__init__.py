"""Tokenizers of other libraries as a tokenizer.json, one module each, with the original to hold the result against."""
