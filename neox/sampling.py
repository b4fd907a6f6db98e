"""How the next token is picked: greedy, or drawn from the candidates that the filters leave."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neox.config.errors import UserError


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
            ("min-p", 0 <= self.min_p <= 1, "at least 0 and at most 1"),
            ("repetition-penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
            ("stop", all(self.stop), "no empty text"),
        ):
            if not is_valid:
                raise UserError(f"--{name} {getattr(self, name.replace('-', '_'))}: must be {allowed}")


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


def penalized(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Logits [rows, vocab] less inclined to the tokens that are already in the text, `said` [rows, vocab] bool."""
    if penalty == 1:
        return logits
    return torch.where(said, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def settled(text: str, stops: Sequence[str]) -> str:
    """What of a text that goes on stays as it is: no half of a character, and no beginning of a stop, ends it."""
    text = text.rstrip("\ufffd")
    begun = (length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
    return text[: len(text) - max(begun, default=0)]
