"""A training step of ours beside transformers' GPTNeoX, in turns, in one process: run by `make bench`."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from neox.config.derive import padded_vocab, resolve
from neox.config.load import load_config
from neox.config.schema import Config
from neox.parallel.engine import Engine
from neox.parallel.topology import Topology

SHAPES = {
    "demo tiny": (2, 64, 4, 2048, 128, 8),
    "demo small": (4, 128, 4, 2048, 128, 8),
    "14M": (6, 128, 4, 50277, 512, 2),
}
"""layers, hidden, heads, vocabulary, sequence, micro-batch"""
ROUNDS = 7


def configured(shape: tuple[int, ...]) -> Config:
    """One rank, fp32, clipping on."""
    layers, hidden, heads, vocab, seq, micro = shape
    keys = {"num_layers": layers, "hidden_size": hidden, "num_heads": heads, "vocab_size": vocab, "seq_length": seq}
    overrides = [*(f"model.{key}={value}" for key, value in keys.items()), f"train.micro_batch_size={micro}"]
    return resolve(load_config([], overrides), 1)


def ours(cfg: Config, batch: torch.Tensor) -> Callable[[], object]:
    """A step of the engine: forward, backward, clipping, AdamW."""
    engine = Engine(cfg, Topology(1, 1, 1))
    pair = (batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    return lambda: engine.train_step(itertools.repeat(pair), 1e-4)


def theirs(cfg: Config, batch: torch.Tensor) -> Callable[[], object]:
    """The same with transformers' model and torch's fused AdamW."""
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=padded_vocab(cfg.model),
            hidden_size=cfg.model.hidden_size,
            num_hidden_layers=cfg.model.num_layers,
            num_attention_heads=cfg.model.num_heads,
            intermediate_size=4 * cfg.model.hidden_size,
            max_position_embeddings=cfg.model.seq_length,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens, labels = batch[:, :-1], batch[:, 1:]

    def step() -> None:
        logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """One line per shape: tokens per second of both, medians over rounds in turns."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"training step, fp32, {torch.get_num_threads()} threads, median of {ROUNDS} rounds in turns, tokens/s")
    print(f"{'shape':<12}{'ours':>10}{'transformers':>14}{'ratio':>8}")
    for name, shape in SHAPES.items():
        cfg = configured(shape)
        batch = torch.randint(shape[3], (shape[5], shape[4] + 1))
        steps = {"ours": ours(cfg, batch), "theirs": theirs(cfg, batch)}
        seconds: dict[str, list[float]] = {key: [] for key in steps}
        for round_number in range(ROUNDS + 1):
            for key, step in steps.items():
                begin = time.perf_counter()
                step()
                if round_number:  # the first warms up
                    seconds[key].append(time.perf_counter() - begin)
        rate = {key: batch[:, 1:].numel() / statistics.median(times) for key, times in seconds.items()}
        print(f"{name:<12}{rate['ours']:>10.0f}{rate['theirs']:>14.0f}{rate['ours'] / rate['theirs']:>8.2f}")


if __name__ == "__main__":
    main()
