"""Initial weights from a tensor's name alone, so that every layout starts from the same model.

The rules are GPT-NeoX's (megatron/model/init_functions.py): embedding, QKV, MLP-in and head by `init`; attention-out
and MLP-out by `output_init`; biases 0; norm weights 1.
"""

from __future__ import annotations

import hashlib
import math
import re

import torch
from torch import Tensor, nn

from neox.config.schema import ModelConfig

_OUTPUT = re.compile(r".*\.(attn\.out|mlp\.down)\.weight")
_NORM = re.compile(r"(.*_|.*\.)?norm\.weight")


def init_std(name: str, cfg: ModelConfig) -> float:
    """Standard deviation of the weight matrix called `name`."""
    if _OUTPUT.fullmatch(name):
        if cfg.output_init == "wang_init":
            return 2 / (cfg.num_layers * math.sqrt(cfg.hidden_size))
        return cfg.init_std / math.sqrt(2 * cfg.num_layers)
    return math.sqrt(2 / (5 * cfg.hidden_size)) if cfg.init == "small_init" else cfg.init_std


def init_tensor(name: str, shape: tuple[int, ...], cfg: ModelConfig, seed: int) -> Tensor:
    """The whole logical tensor `name`, fp32 on the CPU; depends on nothing but the arguments."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if _NORM.fullmatch(name):
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator) * init_std(name, cfg)


@torch.no_grad()
def init_weights(model: nn.Module, cfg: ModelConfig, seed: int) -> None:
    """Fills every parameter of a whole `GPT` in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(init_tensor(name, tuple(parameter.shape), cfg, seed))
