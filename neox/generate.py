"""Text from a model with a key-value cache: batches of prompts of any lengths, or one text as it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kernels.attention.documents import Documents
from neox.checkpoint import manifest
from neox.checkpoint.config import saved_config
from neox.checkpoint.reshard import load_model_weights
from neox.checkpoint.special_tokens import special_tokens
from neox.config.derive import padded_vocab
from neox.config.errors import UserError
from neox.config.schema import ModelConfig
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer
from neox.model.cache import KVCache
from neox.model.context import PLAIN, Context
from neox.model.gpt import GPT
from neox.parallel.inference import join_ranks
from neox.sampling import Sampling, before_stop, penalized, pick, random_generator, settled


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


@dataclass
class _Row:
    """A prompt of a batch that goes on."""

    index: int
    """Of the prompt."""
    generator: torch.Generator
    room: int
    """Most tokens to add."""
    added: list[int] = field(default_factory=list)


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

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self.tokenizer.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def continue_all(
        self, prompts: Sequence[str], num_samples: int, sampling: Sampling, batch_size: int = 16
    ) -> list[Sample]:
        """`num_samples` continuations of each prompt, in their order; the empty prompt begins a document.

        Raises:
            UserError: a prompt fills the context.
        """
        encoded = [self.encode(prompt) or [self.begin] for prompt in prompts]
        wanted = [(tokens, number) for tokens in encoded for number in range(num_samples)]
        order = sorted(range(len(wanted)), key=lambda index: -len(wanted[index][0]))  # neighbours need little padding
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            rows = self.rows([wanted[i][0] for i in part], sampling, [wanted[i][1] for i in part])
            found.update(zip(part, rows, strict=True))
        return [self._sample(prompts[i // num_samples], found[i], sampling.stop) for i in range(len(wanted))]

    def _sample(self, prompt: str, tokens: list[int], stops: Sequence[str]) -> Sample:
        whole = self.decode(tokens)
        cut = before_stop(whole, stops)
        text = self._space(prompt, tokens) + cut
        return Sample(prompt, text, tokens, finished=tokens[-1] == self.tokenizer.eod or cut != whole)

    def stream(self, prompt: str, sampling: Sampling, number: int = 0) -> Iterator[str]:
        """The text of sample `number` of a prompt in pieces as they come, each of whole characters.

        Raises:
            UserError: the prompt fills the context.
        """
        tokens: list[int] = []
        given = ""
        for found in self.steps([self.encode(prompt) or [self.begin]], sampling, [number]):
            tokens += found.values()
            text = settled(before_stop(self.decode(tokens), sampling.stop), sampling.stop)
            if len(text) > len(given):
                yield (self._space(prompt, tokens) if not given else "") + text[len(given) :]
                given = text
        yield before_stop(self.decode(tokens), sampling.stop)[len(given) :]

    def _space(self, prompt: str, tokens: Sequence[int]) -> str:
        """The space that decoders in SentencePiece's manner drop where a text begins; one that goes on needs it."""
        before = self.tokenizer.tokenizer.encode("a", add_special_tokens=False).ids if prompt else []
        behind = self.decode([*before, *tokens]).removeprefix(self.decode(before))
        return " " if behind.startswith(" ") and not self.decode(tokens).startswith(" ") else ""

    def rows(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[list[int]]:
        """The tokens that `steps` gives each of the prompts, which run as one batch."""
        found: list[list[int]] = [[] for _ in prompts]
        for tokens in self.steps(prompts, sampling, numbers):
            for row, token in tokens.items():
                found[row].append(token)
        return found

    @torch.inference_mode()
    def steps(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> Iterator[dict[int, int]]:
        """The next token of every prompt that goes on, by its index: up to and with the end of document, or the token
        that completes a stop.

        Shorter prompts are padded in front; nothing looks at the padding, and positions do not count it.

        Args:
            prompts: tokens, at least one in each.
            numbers: which sample each is, for its random numbers; None: 0, 1, …

        Raises:
            UserError: a prompt fills the context.
        """
        rows = self._begun(prompts, sampling, numbers)
        longest = max(map(len, prompts))
        cache = KVCache(self.cfg.num_layers, longest + max(row.room for row in rows))
        tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        padding = torch.tensor([longest - len(prompt) for prompt in prompts])
        said = self._said(prompts)
        while rows:
            logits = penalized(self._next_logits(tokens, padding, cache), said, sampling.repetition_penalty)
            picked = pick(logits, sampling, [row.generator for row in rows])
            for row, token in zip(rows, picked.tolist(), strict=True):
                row.added.append(token)
            yield {row.index: row.added[-1] for row in rows}
            tokens = picked[:, None]
            said.scatter_(1, tokens, True)
            kept = [i for i, row in enumerate(rows) if not self._is_over(row, sampling.stop)]
            if len(kept) < len(rows):
                rows = [rows[i] for i in kept]
                tokens, padding, said = tokens[kept], padding[kept], said[kept]
                cache.select(kept)

    def _begun(self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Sequence[int] | None) -> list[_Row]:
        """A row for each prompt; UserError where one fills the context."""
        rows: list[_Row] = []
        for prompt, number in zip(prompts, numbers or range(len(prompts)), strict=True):
            room = self.cfg.seq_length - len(prompt)
            if room < 1:
                begin, length = self.decode(prompt[:16]), self.cfg.seq_length
                raise UserError(f"prompt {begin!r}…: {len(prompt)} tokens leave no room in a context of {length}")
            rows.append(_Row(len(rows), random_generator(sampling.seed, number), min(sampling.max_tokens, room)))
        return rows

    def _said(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Which tokens are in each prompt: [prompts, vocab] bool."""
        said = torch.zeros(len(prompts), self.tokenizer.vocab_size, dtype=torch.bool)
        for row, prompt in zip(said, prompts, strict=True):
            row[list(prompt)] = True
        return said

    def _next_logits(self, tokens: Tensor, padding: Tensor, cache: KVCache) -> Tensor:
        """[rows, vocab] fp32 on the CPU, behind tokens [rows, new]; `padding` [rows] of those in the cache are none."""
        device = next(self.model.parameters()).device
        context = PLAIN
        if padding.any():
            places = torch.arange(cache.length + tokens.shape[1]) - padding[:, None]
            positions = places[:, cache.length :].clamp(min=0)
            context = Context(Documents((places >= 0).long()), positions).to(device)
        hidden = self.model.hidden(tokens.to(device), context, cache=cache)[:, -1]
        return self.model.logits(hidden)[:, : self.tokenizer.vocab_size].float().cpu()

    def _is_over(self, row: _Row, stops: Sequence[str]) -> bool:
        """Whether the last token ended the document, completed a stop or is the last that there is room for."""
        if row.added[-1] == self.tokenizer.eod or len(row.added) == row.room:
            return True
        if not stops:
            return False
        # What the last token completes: a character's bytes may be 4 tokens; decoders drop a space before the first.
        # Byte fallback reads bytes in runs and garbles one that begins within a character, so 4 beginnings are tried.
        width = 4 * max(map(len, stops)) + 1
        texts = (self.decode(row.added[-width - more :]) for more in range(4))
        return any(before_stop(text, stops) != text for text in texts)


def load_generator(checkpoint: Path, tokenizer: Path | None, world_size: int = 1) -> Generator:
    """The model of a checkpoint folder, on the accelerator where there is one, in fp32.

    Args:
        tokenizer: None: the one that the checkpoint's configuration names.
        world_size: ranks, each of which has its part of every weight and all of what is generated.

    Raises:
        UserError: `checkpoint` is none or is damaged, `tokenizer` is none or does not fit, or the ranks are too many.
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
    tensor = join_ranks(cfg, world_size)
    with torch.device("meta"):
        model = GPT(cfg, padded_vocab(cfg))
    load_model_weights(model, checkpoint, tensor)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Generator(model, cfg, dataclasses.replace(loaded, eod=end, eod_token=special.end), begin)
