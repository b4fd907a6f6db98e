"""A small tokenizer for the data tests."""

import pytest
from data_inputs import make_texts

from neox.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(make_texts(60), 300, path)
    return path
