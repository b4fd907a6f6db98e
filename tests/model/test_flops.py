"""FLOPs of training: our arithmetic against every product that torch really carries out."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.dispatch import forced
from neox.config.derive import padded_vocab
from neox.config.flops import flops_per_token, recomputed_flops_per_token
from neox.config.schema import ModelConfig
from neox.model.gpt import GPT
from neox.model.init import init_weights
from neox.parallel.recompute import apply_recompute

LENGTH = 16
SHAPE: dict[str, Any] = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "seq_length": LENGTH, "vocab_size": 128}
VARIANTS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "sequential, biased": {"parallel_residual": False, "bias": True},
    "grouped, wide heads": {"num_kv_heads": 2, "head_dim": 12},
    "multi-query": {"num_kv_heads": 1},
    "gated": {"activation": "swiglu", "intermediate_size": 40},
    "windows": {"layer_pattern": ("window", "global"), "sliding_window": 4},
    "norms behind": {"sandwich_norm": True},
    "soft cap, tied": {"attn_softcap": 20.0, "tie_embeddings": True},
}


def counted(model: ModelConfig, recompute: Literal["none", "selective", "full"]) -> tuple[float, float]:
    """FLOPs per token of linear layers, and of attention over all pairs of positions, masked or not."""
    network = GPT(model, padded_vocab(model))
    init_weights(network, model, seed=1)
    for layer in network.layers:
        apply_recompute(layer, recompute)
    tokens = torch.randint(0, 128, (2, LENGTH))
    # It knows neither fused attention nor oneDNN's products.
    with forced(linear="aten"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(tokens).logsumexp(-1).sum().backward()
    counts = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    assert set(counts) <= {"aten.mm", "aten.addmm", "aten.bmm"}, counts
    return (counts["aten.mm"] + counts.get("aten.addmm", 0)) / tokens.numel(), counts["aten.bmm"] / tokens.numel()


def visible_share(model: ModelConfig) -> float:
    """Share of the pairs of positions that a query may see, over all layers."""
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    windows = {"global": LENGTH, "window": model.sliding_window or LENGTH}
    kinds = [model.layer_pattern[i % len(model.layer_pattern)] for i in range(model.num_layers)]
    seen = [(key <= query) & (query - key < windows[kind]) for kind in kinds]
    return float(torch.stack(seen).float().mean())


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_of_the_products_carried_out(
    variant: str, recompute: Literal["none", "selective", "full"]
) -> None:
    model = ModelConfig(**SHAPE | VARIANTS[variant])
    linear, all_pairs = counted(model, recompute)
    ours = flops_per_token(model) + recomputed_flops_per_token(model, recompute)
    assert ours == linear + all_pairs * visible_share(model)
