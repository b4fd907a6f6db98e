"""One of the programs that `make bench` compares, in a process of its own: a step for every line it reads.

Started as `python -m tests.bench.subject NAME SHAPE THREADS kept|default`, the last word for the allocator; answers
the line `step` with seconds, CPU seconds and peak memory, and `parts` with where the time of a step goes.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.compile_fx  # DeepSpeed imports it when it starts: 46 MiB that are no step's
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from neox.allocator import keep_freed_memory
from neox.config.derive import padded_vocab, resolve
from neox.config.load import load_config
from neox.config.schema import Config
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.parallel.engine import Engine
from neox.parallel.groups import TensorGroup
from neox.parallel.loss import head_loss
from neox.parallel.topology import Topology
from tests.bench.breakdown import step_parts

SHAPES = {
    "demo": (4, 128, 4, 2048, 128, 8),
    "pythia-14m": (6, 128, 4, 50277, 512, 4),
    "pythia-70m": (6, 512, 8, 50277, 512, 4),
}
"""layers, hidden, heads, vocabulary, sequence, micro-batch"""
Step = Callable[[], object]


def configured(shape: tuple[int, ...]) -> Config:
    """One rank, fp32, clipping on."""
    layers, hidden, heads, vocab, seq, micro = shape
    keys = {"num_layers": layers, "hidden_size": hidden, "num_heads": heads, "vocab_size": vocab, "seq_length": seq}
    overrides = [*(f"model.{key}={value}" for key, value in keys.items()), f"train.micro_batch_size={micro}"]
    return resolve(load_config([], overrides), 1)


def engine(cfg: Config, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
    """A step of the engine, and the number of parameters."""
    ours = Engine(cfg, Topology(1, 1, 1))
    num_parameters = sum(piece.numel for piece in ours.pieces() if piece.kind == "weight")
    return lambda: ours.train_step(itertools.repeat((tokens, labels)), 1e-4), num_parameters


def plain(cfg: Config, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
    """The same model, loss and optimizer without DeepSpeed."""
    model = GPT(cfg.model, padded_vocab(cfg.model))
    init_weights(model, cfg.model, 0)

    def loss() -> torch.Tensor:
        x = model.embed(tokens)
        for layer in model.layers:
            x = layer(x)
        return head_loss((model.final_norm(x), model.head.weight), labels, TensorGroup())

    return _trained(model, loss)


def transformers(cfg: Config, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[Step, int]:
    """GPTNeoXForCausalLM with scaled_dot_product_attention."""
    shape = GPTNeoXConfig(
        vocab_size=padded_vocab(cfg.model),
        hidden_size=cfg.model.hidden_size,
        num_hidden_layers=cfg.model.num_layers,
        num_attention_heads=cfg.model.num_heads,
        intermediate_size=4 * cfg.model.hidden_size,
        max_position_embeddings=cfg.model.seq_length,
        attn_implementation="sdpa",
    )
    model = GPTNeoXForCausalLM(shape).train()

    def loss() -> torch.Tensor:
        logits = model(tokens).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return _trained(model, loss)


def _trained(model: nn.Module, loss: Callable[[], torch.Tensor]) -> tuple[Step, int]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in model.parameters())


SUBJECTS: dict[str, Any] = {"engine": engine, "plain": plain, "transformers": transformers}


def main(name: str, shape_name: str, threads: str, allocator: str) -> None:
    """Two steps to warm up, then an answer to every line of the input until it ends."""
    torch.set_num_threads(int(threads))
    if allocator == "kept":
        keep_freed_memory()
    shape = SHAPES[shape_name]
    batch = torch.randint(shape[3], (shape[5], shape[4] + 1), generator=torch.Generator().manual_seed(0))
    begin_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, num_parameters = SUBJECTS[name](configured(shape), batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    step(), step()
    print(json.dumps({"parameters": num_parameters, "begin_mib": begin_kb / 1024}), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(step) if line == "step\n" else step_parts(step, ffn_size=4 * shape[1])), flush=True)


def timed(step: Step) -> dict[str, float]:
    """One step: seconds by the clock and of the CPUs, and the most memory that the process has ever had."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    step()
    times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
    return {**times, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    main(*sys.argv[1:])
