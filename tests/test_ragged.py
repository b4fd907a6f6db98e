"""Batches of prompts of several lengths: the same tokens as `transformers` gives, and as each prompt gives alone."""

from __future__ import annotations

import dataclasses
import datetime
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from neox.config.derive import num_parameters
from neox.data.tokenizer import load_tokenizer, train_tokenizer
from neox.generate import Generator
from neox.model.gpt import GPT
from neox.model.init import init_tensor, init_weights
from neox.parallel.inference import deal, first_says, join_ranks, patient_group
from neox.sampling import Sampling
from tests.distributed import run_ranks
from tests.model.families import BASE, FAMILIES, LENGTH, VOCAB
from tests.model.test_families import both

LENGTHS = (3, 1, 12, 7, 20, 12)
COUNT = 14
NEVER = 200
"""An id that the model does not have."""
NAMES = ("GPTNeoX", "Llama, GQA", "Llama, YaRN", "Mistral, window", "Gemma 2", "Falcon RW, ALiBi", "MPT, ALiBi", "OPT")
"""Each kind of position, window and cap; all other families but dynamic NTK agree as well."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["a"], 258, path)
    return path


def prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def theirs_of(model: nn.Module, rows: list[list[int]], end: int | None = None, **options: float) -> list[list[int]]:
    """What transformers adds to the rows, padded on the left, up to and with `end`."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    made = model.generate(  # type: ignore[operator]
        tokens, attention_mask=mask, max_new_tokens=COUNT, do_sample=False, eos_token_id=end, pad_token_id=0, **options
    )[:, longest:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in made]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_rows_are_those_of_transformers(name: str, tokenizer: Path) -> None:
    family = FAMILIES[name]
    theirs, ours = both(family)
    theirs.generation_config.eos_token_id = None  # type: ignore[union-attr]
    loaded = dataclasses.replace(load_tokenizer(tokenizer), vocab_size=VOCAB, eod=NEVER)
    rows = prompts(4)
    greedy = Sampling(COUNT, temperature=0)
    found = Generator(ours, family.ours, loaded).rows(rows, greedy)
    assert found == theirs_of(theirs, rows)
    assert len({token for row in found for token in row}) > 6
    end = found[2][5]  # said in the middle of a row, and perhaps by others
    stopping = Generator(ours, family.ours, dataclasses.replace(loaded, eod=end))
    stopped = stopping.rows(rows, greedy)
    assert stopped == theirs_of(theirs, rows, end) and len(stopped[2]) <= 6
    penalty = Sampling(COUNT, temperature=0, repetition_penalty=1.5)
    penalized = stopping.rows(rows, penalty)
    for row in (0, 3):  # one by one, for theirs falls on the padding too
        assert [penalized[row]] == theirs_of(theirs, [rows[row]], end, repetition_penalty=1.5)


@pytest.mark.parametrize("positions", ["learned", "t5", "sinusoidal"])
def test_each_row_is_as_alone_in_the_room_of_its_own_context(positions: str, tokenizer: Path) -> None:
    """The longest row is full first, and no table has a position for it beyond; the others go on."""
    cfg = dataclasses.replace(BASE, positions=positions)
    model = GPT(cfg, VOCAB)
    init_weights(model, cfg, seed=1)
    loaded = dataclasses.replace(load_tokenizer(tokenizer), vocab_size=VOCAB, eod=NEVER)
    generator = Generator(model, cfg, loaded)
    sampling = Sampling(1000, temperature=0.7, seed=3)
    rows = prompts(5)
    found = generator.rows(rows, sampling)
    assert [len(row) for row in found] == [LENGTH - length for length in LENGTHS]
    assert found == [generator.rows([row], sampling, [number])[0] for number, row in enumerate(rows)]


DEALT = (
    {},
    {"tie_embeddings": True, "positions": "alibi", "shared_norm": True},
    {"parallel_residual": False, "num_kv_heads": 2, "norm": "rmsnorm", "activation": "swiglu", "logit_softcap": 3.0},
    {"parallel_residual": False, "num_kv_heads": 1, "positions": "t5"},
)


def rows_of_ranks(tokenizer: Path, world_size: int) -> list[list[list[int]]]:
    """For each model what the ranks generate together: greedy, and drawn with a stop."""
    out = []
    for changes in DEALT:
        cfg = dataclasses.replace(BASE, **changes)
        with torch.device("meta"):
            model = GPT(cfg, VOCAB)
        deal(model, join_ranks(cfg, world_size), partial(init_tensor, cfg=cfg, seed=1))
        assert sum(p.numel() for p in model.parameters()) < (1 if world_size == 1 else 0.6) * num_parameters(cfg) + 1
        generator = Generator(model, cfg, dataclasses.replace(load_tokenizer(tokenizer), vocab_size=VOCAB, eod=NEVER))
        for sampling in (Sampling(COUNT, temperature=0), Sampling(COUNT, top_p=0.9, seed=2, stop=("1",))):
            out.append(generator.rows(prompts(6), sampling))
    return out


def what_is_typed() -> list[object]:
    """What each rank hears of a person who thinks for longer than a computation may take."""
    group = patient_group()
    assert group is not None and group._get_backend(torch.device("cpu")).options._timeout > datetime.timedelta(days=99)
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(milliseconds=10))
    heard = []
    for prompt in ("Grüße", "", None):
        if dist.get_rank() == 0:
            time.sleep(0.1)
        heard.append(first_says(prompt if dist.get_rank() == 0 else None, group))
    return heard


def rows_and_what_is_typed(tokenizer: Path) -> tuple[list[list[list[int]]], list[object]]:
    return rows_of_ranks(tokenizer, 2), what_is_typed()


def test_ranks_that_share_the_weights_say_the_same_and_wait_for_whoever_types(tokenizer: Path) -> None:
    alone = rows_of_ranks(tokenizer, 1)
    assert run_ranks(rows_and_what_is_typed, 2, tokenizer) == [(alone, ["Grüße", "", None])] * 2
