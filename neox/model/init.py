"""Initial weights from a tensor's name alone, so that every layout starts from the same model.

The rules are GPT-NeoX's (megatron/model/init_functions.py): embedding, QKV, MLP-in and head by `init`; attention-out
and MLP-out by `output_init`; biases 0; norm weights 1.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from neox.config.schema import ModelConfig

_OUTPUT = re.compile(r".*\.(attn\.out|mlp\.down)\.weight")
_NORM = re.compile(r"(.*_|.*\.)?norm\.weight")


STDS: dict[str, Callable[[ModelConfig], float]] = {
    "normal": lambda cfg: cfg.init_std,
    "scaled_normal": lambda cfg: cfg.init_std / math.sqrt(2 * cfg.num_layers),
    "single_residual_scaled_normal": lambda cfg: cfg.init_std / math.sqrt(cfg.num_layers),
    "small_init": lambda cfg: math.sqrt(2 / (5 * cfg.hidden_size)),
    "wang_init": lambda cfg: 2 / (cfg.num_layers * math.sqrt(cfg.hidden_size)),
}
"""Standard deviations of the normal rules that know the model, not the matrix."""


def init_rule(name: str, cfg: ModelConfig) -> str:
    """The rule of the weight matrix called `name`."""
    return cfg.output_init if _OUTPUT.fullmatch(name) else cfg.init


def init_matrix(rule: str, shape: tuple[int, ...], cfg: ModelConfig, generator: torch.Generator) -> Tensor:
    """A weight matrix [out, in], fp32, by one of the rules that `model.init` lists."""
    if rule in STDS:
        return torch.randn(shape, generator=generator).mul_(STDS[rule](cfg))  # in place: it may be of gigabytes
    out: Tensor
    if rule == "xavier_normal":
        out = nn.init.xavier_normal_(torch.empty(shape), generator=generator)
    elif rule == "xavier_uniform":
        out = nn.init.xavier_uniform_(torch.empty(shape), generator=generator)
    else:
        gain = math.sqrt(2 / (cfg.num_layers if rule == "scaled_orthogonal" else 1))
        out = nn.init.orthogonal_(torch.empty(shape), gain, generator=generator)
    return out


def init_tensor(name: str, shape: tuple[int, ...], cfg: ModelConfig, seed: int) -> Tensor:
    """The whole logical tensor `name`, fp32 on the CPU; depends on nothing but the arguments."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if _NORM.fullmatch(name):
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return init_matrix(init_rule(name, cfg), shape, cfg, generator)


@torch.no_grad()
def init_weights(model: nn.Module, cfg: ModelConfig, seed: int) -> None:
    """Fills every parameter of a whole `GPT` in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(init_tensor(name, tuple(parameter.shape), cfg, seed))
