"""Sampling text from a model with a key-value cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neox.checkpoint import manifest
from neox.checkpoint.config import saved_config
from neox.checkpoint.reshard import load_model_weights
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer
from neox.model.cache import KVCache
from neox.model.gpt import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked, and how many."""

    max_tokens: int = 64
    """Most tokens to add; a document's end or a full context stops earlier."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens are candidates. None: all."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens that together have this probability are candidates."""
    seed: int = 0
    """Sample number i depends on this seed and i alone, not on how many samples are drawn."""

    def __post_init__(self) -> None:
        for name, is_valid, allowed in (
            ("max-tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top-k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top-p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not is_valid:
                raise UserError(f"--{name} {getattr(self, name.replace('-', '_'))}: must be {allowed}")


@dataclass(frozen=True)
class Sample:
    """One continuation."""

    prompt: str
    text: str
    """What follows the prompt, without special tokens."""
    tokens: list[int]
    """The tokens of `text`, and the end-of-document token when it was reached."""
    finished: bool
    """Whether the document ended; false: cut off by max_tokens or the context length."""


class Generator:
    """Continues prompts with one model and its tokenizer."""

    def __init__(self, model: GPT, cfg: ModelConfig, tokenizer: LoadedTokenizer) -> None:
        assert cfg.vocab_size is not None
        if tokenizer.vocab_size > cfg.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model was trained with {cfg.vocab_size}"
            )
        self.model = model.eval()
        self.cfg = cfg
        self.tokenizer = tokenizer

    def samples(self, prompt: str, num_samples: int, sampling: Sampling) -> list[Sample]:
        """`num_samples` continuations of `prompt`; the empty prompt begins a document.

        Raises:
            UserError: the prompt fills the context.
        """
        tokens = self.tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids or [self.tokenizer.eod]
        return [self._sample(prompt, row) for row in self.continuations(tokens, num_samples, sampling)]

    def _sample(self, prompt: str, tokens: list[int]) -> Sample:
        text = self.tokenizer.tokenizer.decode(tokens, skip_special_tokens=True)
        return Sample(prompt, text, tokens, finished=tokens[-1] == self.tokenizer.eod)

    def continuations(self, prompt: Sequence[int], num_samples: int, sampling: Sampling) -> list[list[int]]:
        """Tokens that follow the tokens `prompt`, one list per sample, each up to and with the end of document."""
        return self.rows([prompt] * num_samples, sampling)

    @torch.inference_mode()
    def rows(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """What follows each of the prompts, which are of one length and so run as one batch without padding."""
        num_samples, length = len(prompts), len(prompts[0])
        num_tokens = min(sampling.max_tokens, self.cfg.seq_length - length)
        if num_tokens < 1:
            raise UserError(f"--prompt: {length} tokens leave no room in a context of {self.cfg.seq_length}")
        device = next(self.model.parameters()).device
        generators = [random_generator(sampling.seed, index) for index in range(num_samples)]
        cache = KVCache(self.cfg.num_layers, length + num_tokens)
        tokens = torch.tensor([list(prompt) for prompt in prompts], device=device)
        is_done = torch.zeros(num_samples, dtype=torch.bool)
        added = []
        for _ in range(num_tokens):
            logits = self.model(tokens, cache=cache)[:, -1, : self.tokenizer.vocab_size]
            tokens = pick(logits.float().cpu(), sampling, generators)[:, None].to(device)
            added.append(tokens.cpu())
            is_done |= added[-1][:, 0] == self.tokenizer.eod
            if is_done.all():
                break
        return [self._until_end(row) for row in torch.cat(added, 1).tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        eod = self.tokenizer.eod
        return tokens[: tokens.index(eod) + 1] if eod in tokens else tokens


def load_generator(checkpoint: Path, tokenizer: Path | None) -> Generator:
    """The model of a checkpoint folder, on the accelerator where there is one, in fp32.

    Without `tokenizer` it is the one that the checkpoint's configuration names.

    Raises:
        UserError: `checkpoint` is none or is damaged, or `tokenizer` is none or does not fit.
    """
    saved = saved_config(manifest.read(checkpoint))
    cfg = saved.model
    if tokenizer is None and saved.data.tokenizer is None:
        raise UserError(f"--tokenizer is required: the configuration of {checkpoint} names none")
    loaded = load_tokenizer(tokenizer or Path(str(saved.data.tokenizer)))
    model = GPT(cfg, padded_vocab(cfg))
    load_model_weights(model, checkpoint)
    return Generator(model.to("cuda" if torch.cuda.is_available() else "cpu"), cfg, loaded)


def random_generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of sample `index`."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def pick(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row: logits [rows, vocab] fp32 on the CPU → [rows] int64; one generator per row."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # ≤ 0: no overflow, however cold
    probabilities = candidates(scaled, sampling.top_k, sampling.top_p).softmax(-1)
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities, generators, strict=True)]
    return torch.cat(drawn)


def candidates(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """`logits` [rows, vocab] with -inf where top-k, then top-p (Holtzman et al. 2020), leave a token out."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of the tokens likelier than this one: 0 for the first
    ordered[before >= top_p] = -torch.inf
    return torch.empty_like(logits).scatter_(-1, order, ordered)
