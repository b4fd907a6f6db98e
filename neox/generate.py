"""Sampling text from a model with a key-value cache."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from neox.checkpoint import manifest
from neox.checkpoint.config import saved_config
from neox.checkpoint.reshard import load_model_weights
from neox.checkpoint.special_tokens import special_tokens
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
    min_p: float = 0.0
    """Only tokens with at least this share of the likeliest one's probability are candidates."""
    repetition_penalty: float = 1.0
    """Logits of tokens already in the text are divided by it, negative ones multiplied (arXiv 1909.05858)."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    seed: int = 0
    """Sample number i depends on this seed and i alone, not on how many samples are drawn."""

    def __post_init__(self) -> None:
        for name, is_valid, allowed in (
            ("max-tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top-k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top-p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min-p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repetition-penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
            ("stop", all(self.stop), "no empty text"),
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

    def __init__(self, model: GPT, cfg: ModelConfig, tokenizer: LoadedTokenizer, begin: int | None = None) -> None:
        """`begin`: the token that stands where there is no text; None: the end of a document."""
        assert cfg.vocab_size is not None
        if tokenizer.vocab_size > cfg.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model was trained with {cfg.vocab_size}"
            )
        self.model = model.eval()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.begin = tokenizer.eod if begin is None else begin
        self._begin_text: str = tokenizer.tokenizer.id_to_token(self.begin)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; the tokenizer's own special ones are added, unless it already begins with `begin`."""
        added = not text.startswith(self._begin_text)
        return list(self.tokenizer.tokenizer.encode(text, add_special_tokens=added).ids)

    def samples(self, prompt: str, num_samples: int, sampling: Sampling) -> list[Sample]:
        """`num_samples` continuations of `prompt`; the empty prompt begins a document.

        Raises:
            UserError: the prompt fills the context.
        """
        return self.continue_all([prompt], num_samples, sampling)

    def continue_all(
        self, prompts: Sequence[str], num_samples: int, sampling: Sampling, batch_size: int = 16
    ) -> list[Sample]:
        """`num_samples` continuations of each prompt, in their order; those of equal length run as one batch.

        Raises:
            UserError: a prompt fills the context.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        wanted = [(tokens or [self.begin], number) for tokens in encoded for number in range(num_samples)]
        by_length = sorted(range(len(wanted)), key=lambda index: -len(wanted[index][0]))
        found: dict[int, list[int]] = {}
        for _, group in groupby(by_length, key=lambda index: len(wanted[index][0])):
            members = list(group)
            for start in range(0, len(members), batch_size):
                part = members[start : start + batch_size]
                rows = self.rows([wanted[i][0] for i in part], sampling, [wanted[i][1] for i in part])
                found.update(zip(part, rows, strict=True))
        return [self._sample(prompts[i // num_samples], found[i], sampling.stop) for i in range(len(wanted))]

    def _sample(self, prompt: str, tokens: list[int], stops: Sequence[str]) -> Sample:
        text = self.tokenizer.tokenizer.decode(tokens, skip_special_tokens=True)
        cut = before_stop(text, stops)
        return Sample(prompt, cut, tokens, finished=tokens[-1] == self.tokenizer.eod or cut != text)

    def continuations(self, prompt: Sequence[int], num_samples: int, sampling: Sampling) -> list[list[int]]:
        """Tokens that follow the tokens `prompt`, one list per sample, each up to and with the end of document."""
        return self.rows([prompt] * num_samples, sampling)

    @torch.inference_mode()
    def rows(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[list[int]]:
        """What follows each of the prompts, which are of one length and so run as one batch without padding.

        `numbers`: which sample each row is, for its random numbers; None: 0, 1, …
        """
        length = len(prompts[0])
        num_tokens = min(sampling.max_tokens, self.cfg.seq_length - length)
        if num_tokens < 1:
            raise UserError(f"--prompt: {length} tokens leave no room in a context of {self.cfg.seq_length}")
        device = next(self.model.parameters()).device
        generators = [random_generator(sampling.seed, number) for number in numbers or range(len(prompts))]
        cache = KVCache(self.cfg.num_layers, length + num_tokens)
        text = tokens = torch.tensor([list(prompt) for prompt in prompts])
        is_done = torch.zeros(len(prompts), dtype=torch.bool)
        for _ in range(num_tokens):
            hidden = self.model.hidden(tokens.to(device), cache=cache)[:, -1]
            logits = self.model.logits(hidden)[:, : self.tokenizer.vocab_size].float().cpu()
            tokens = pick(penalized(logits, text, sampling.repetition_penalty), sampling, generators)[:, None]
            text = torch.cat([text, tokens], 1)
            is_done |= tokens[:, 0] == self.tokenizer.eod
            if sampling.stop:
                is_done |= torch.tensor([self._is_stopped(row, sampling.stop) for row in text[:, length:].tolist()])
            if is_done.all():
                break
        return [self._until_end(row, sampling.stop) for row in text[:, length:].tolist()]

    def _is_stopped(self, tokens: list[int], stops: Sequence[str]) -> bool:
        text = self.tokenizer.tokenizer.decode(tokens, skip_special_tokens=True)
        return before_stop(text, stops) != text

    def _until_end(self, tokens: list[int], stops: Sequence[str]) -> list[int]:
        """Up to and with the end of document, or the token that completes a stop."""
        eod = self.tokenizer.eod
        tokens = tokens[: tokens.index(eod) + 1] if eod in tokens else tokens
        if not stops or not self._is_stopped(tokens, stops):
            return tokens
        return next(tokens[:end] for end in range(1, len(tokens) + 1) if self._is_stopped(tokens[:end], stops))


def load_generator(checkpoint: Path, tokenizer: Path | None) -> Generator:
    """The model of a checkpoint folder, on the accelerator where there is one, in fp32.

    Without `tokenizer` it is the one that the checkpoint's configuration names.

    Raises:
        UserError: `checkpoint` is none or is damaged, or `tokenizer` is none or does not fit.
    """
    found = manifest.read(checkpoint)
    saved = saved_config(found)
    cfg = saved.model
    if tokenizer is None and saved.data.tokenizer is None:
        raise UserError(f"--tokenizer is required: the configuration of {checkpoint} names none")
    path = tokenizer or Path(str(saved.data.tokenizer))
    loaded = load_tokenizer(path, saved.data.end_of_document)
    special = special_tokens(found.state, path, loaded)
    begin, end = map(loaded.tokenizer.token_to_id, (special.begin, special.end))
    model = GPT(cfg, padded_vocab(cfg))
    load_model_weights(model, checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Generator(model, cfg, dataclasses.replace(loaded, eod=end, eod_token=special.end), begin)


def random_generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of sample `index`."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def pick(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row: logits [rows, vocab] fp32 on the CPU → [rows] int64; one generator per row."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # ≤ 0: no overflow, however cold
    probabilities = candidates(scaled, sampling.top_k, sampling.top_p, sampling.min_p).softmax(-1)
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities, generators, strict=True)]
    return torch.cat(drawn)


def candidates(logits: Tensor, top_k: int | None, top_p: float, min_p: float = 0.0) -> Tensor:
    """`logits` [rows, vocab] with -inf where top-k, top-p (Holtzman et al. 2020), then min-p leave a token out."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of the tokens likelier than this one: 0 for the first
    ordered[before >= top_p] = -torch.inf
    ordered[probabilities < min_p * probabilities[:, :1]] = -torch.inf
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def penalized(logits: Tensor, text: Tensor, penalty: float) -> Tensor:
    """Logits [rows, vocab] less inclined to the tokens of text [rows, length]."""
    if penalty == 1:
        return logits
    text = text.clamp(max=logits.shape[-1] - 1)
    found = logits.gather(-1, text)
    return logits.scatter(-1, text, torch.where(found < 0, found * penalty, found / penalty))


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
