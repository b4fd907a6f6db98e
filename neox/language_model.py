"""What an evaluation harness asks of a language model, in its words: strings in, numbers and strings out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from neox.config.errors import UserError
from neox.generate import Generator
from neox.sampling import Sampling, before_stop
from neox.score import Request, Scorer

MAX_TOKENS = 256
"""Tokens of an answer whose task does not say how many, as in lm-evaluation-harness."""


class LanguageModel:
    """Our model with its tokenizer; the same tokens go in and count as with lm-evaluation-harness's HFLM."""

    def __init__(self, generator: Generator, batch_size: int) -> None:
        self._generator, self._batch_size = generator, batch_size
        self._length = generator.cfg.seq_length
        self._begin, self._encode = generator.begin, generator.encode
        self._scorer = Scorer(generator.model, self._length, batch_size)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-likelihood in nats, and whether greedy decoding says the same."""
        scores = self._scorer.scores([self._request(context, continuation) for context, continuation in pairs])
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each whole text: every token once, the first after what begins texts, in full windows."""
        windows = [(number, window) for number, text in enumerate(texts) for window in self._windows(text)]
        totals = [0.0] * len(texts)
        for (number, _), score in zip(windows, self._scorer.scores([window for _, window in windows]), strict=True):
            totals[number] += score.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Greedy answers to (context, {"until": [stop, …], "max_gen_toks": n}), without the stop.

        A context that leaves no room for its answer loses its first tokens.
        """
        answers: list[str] = [""] * len(requests)
        groups: dict[Sampling, list[tuple[int, list[int]]]] = defaultdict(list)
        for number, (context, options) in enumerate(requests):
            if options.get("do_sample") or options.get("temperature"):
                raise UserError("a task samples its answers: only greedy ones are given here")
            num_tokens = int(options.get("max_gen_toks") or MAX_TOKENS)
            tokens = self._encode(context)[-max(1, self._length - num_tokens) :] or [self._begin]
            greedy = Sampling(num_tokens, temperature=0.0, stop=stops_of(options))
            groups[greedy].append((number, tokens))
        for sampling, members in groups.items():
            members.sort(key=lambda member: -len(member[1]))
            for start in range(0, len(members), self._batch_size):
                part = members[start : start + self._batch_size]
                rows = self._generator.rows([tokens for _, tokens in part], sampling)
                for (number, _), row in zip(part, rows, strict=True):
                    answers[number] = before_stop(self._generator.decode(row), sampling.stop)
        return answers

    def _request(self, context: str, continuation: str) -> Request:
        """Spaces at the context's end belong to the continuation, or tokens would differ from those of plain text."""
        if not context.strip():
            text = context + continuation
            tokens = tuple(self._generator.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)
            # What already begins so does not begin twice.
            return Request(tokens[:1], tokens[1:]) if tokens[0] == self._begin else Request((self._begin,), tokens)
        given = tuple(self._encode(context.rstrip()))
        return Request(given, tuple(self._encode(context + continuation))[len(given) :])

    def _windows(self, text: str) -> list[Request]:
        """The text cut into windows of the model's length; the last one sees as much as fits before its tokens."""
        tokens = [self._begin, *self._encode(text)]
        windows = []
        for start in range(1, len(tokens), self._length):
            end = min(start + self._length, len(tokens))
            first = start - 1 if start == 1 else max(0, end - 1 - self._length)
            windows.append(Request(tuple(tokens[first:start]), tuple(tokens[start:end])))
        return windows


def stops_of(options: dict[str, Any]) -> tuple[str, ...]:
    """The texts that end an answer; UserError where a task names something else."""
    until = options.get("until") or []
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise UserError(f"a task's generation_kwargs: until: {until!r} is no text and no list of texts")
    return tuple(stop for stop in stops if stop)
