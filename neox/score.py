"""Log-likelihoods of texts after contexts: batched by length, with what several requests share computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from neox.model.cache import KVCache
from neox.model.gpt import GPT

Item = TypeVar("Item")


class Request(NamedTuple):
    """Tokens to score, after tokens that are given; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """What the model says of one continuation."""

    log_likelihood: float
    """Of the whole continuation, in nats."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest."""


class Scorer:
    """Scores requests with one model; the head runs only over what is scored."""

    def __init__(self, model: GPT, max_length: int, batch_size: int) -> None:
        """`max_length`: the longest context of the model; longer requests lose their first tokens."""
        self.model, self.max_length, self.batch_size = model.eval(), max_length, batch_size
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def scores(self, requests: Sequence[Request]) -> list[Score]:
        """One score for each request, in their order."""
        found: dict[Request, Score] = {}
        groups = self._sharing(requests)
        shared = {Request(context, c) for context, group in groups.items() for c in group}
        for batch in self._batches(sorted(set(requests) - shared, key=_longest_first)):
            found.update(zip(batch, self._score(batch), strict=True))
        for context, continuations in groups.items():
            for part in self._batches(continuations):
                answered = self._score_sharing(context, part)
                found.update(zip((Request(context, c) for c in part), answered, strict=True))
        return [found[request] for request in requests]

    def _sharing(self, requests: Sequence[Request]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
        """Contexts that several requests share, where nothing has to be cut off, and their continuations."""
        groups: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
        for request in requests:
            if len(request.context) > 1 and len(request.context) + len(request.continuation) <= self.max_length + 1:
                groups[request.context].add(request.continuation)
        return {context: sorted(group) for context, group in groups.items() if len(group) > 1}

    def _batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]

    def _score(self, batch: Sequence[Request]) -> list[Score]:
        rows = [(r.context + r.continuation)[-self.max_length - 1 : -1] for r in batch]
        hidden = self.model.hidden(self._padded(rows))
        continuations = [r.continuation for r in batch]
        parts = [x[len(row) - len(c) : len(row)] for x, row, c in zip(hidden, rows, continuations, strict=True)]
        return self._judge(parts, continuations)

    def _score_sharing(self, context: tuple[int, ...], continuations: Sequence[tuple[int, ...]]) -> list[Score]:
        """The context once, but for its last token, then all continuations after its keys and values."""
        longest = max(map(len, continuations))
        cache = KVCache(self.model.cfg.num_layers, len(context) - 1 + longest)
        self.model.hidden(self._padded([context[:-1]]), cache=cache)
        cache.select([0] * len(continuations))
        hidden = self.model.hidden(self._padded([(context[-1], *c[:-1]) for c in continuations]), cache=cache)
        return self._judge([hidden[i, : len(c)] for i, c in enumerate(continuations)], continuations)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[rows, longest] int64; nothing looks at the padding behind a row."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._device)

    def _judge(self, hidden: list[Tensor], continuations: Sequence[tuple[int, ...]]) -> list[Score]:
        """hidden: [tokens of it, h] for each continuation, from which each token is foretold."""
        logs = self.model.logits(torch.cat(hidden)).float().log_softmax(-1)
        targets = torch.tensor([token for c in continuations for token in c], device=self._device)
        lengths = [len(c) for c in continuations]
        hits = (logs.argmax(-1) == targets).split(lengths)
        chosen = logs.gather(1, targets[:, None])[:, 0].split(lengths)
        return [Score(float(log.sum()), bool(hit.all())) for log, hit in zip(chosen, hits, strict=True)]


def _longest_first(request: Request) -> tuple[int, Request]:
    """Neighbours in this order need little padding, and memory runs out at once or never."""
    return -len(request.context) - len(request.continuation), request
