"""Causal attention by the flash-attn package (Dao 2023, arXiv 2307.08691), which packs documents instead of masking."""

import importlib.util

import torch
from torch import Tensor

from kernels.attention import sdpa
from kernels.attention.documents import Documents

DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


def is_available(device_type: str) -> bool:
    """Whether the package is there, for a GPU."""
    return device_type == "cuda" and importlib.util.find_spec("flash_attn") is not None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    documents: Documents | None,
    dropout_p: float,
    dropout_rows: Tensor | None,
) -> Tensor:
    """See `kernels.attention.attention`; what the package has no place for is left to PyTorch's operator."""
    has_place = q.dtype in DTYPES and q.shape[-1] <= MAX_HEAD_DIM and (bias is None or bias.dim() == 1)
    is_continued = documents is not None and q.shape[-2] != k.shape[-2]
    is_uncapped = softcap is not None and torch.version.hip is not None  # csrc/flash_attn_ck takes a cap and ignores it
    if not has_place or dropout_rows is not None or is_continued or is_uncapped:
        return sdpa.attention(q, k, v, bias, window, softcap, documents, dropout_p, dropout_rows)
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    options = {
        "causal": True,  # with fewer queries than keys, the last of both are aligned
        "window_size": (-1, -1) if window is None else (window - 1, 0),  # keys before and after the query's own
        "softcap": softcap or 0.0,
        "alibi_slopes": bias,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [batch, seq, heads, head_dim]
    if documents is None:
        out: Tensor = flash_attn_func(q, k, v, **options)
    else:
        packed = (x.flatten(0, 1) for x in (q, k, v))
        bounds, longest = documents.bounds, documents.longest
        out = flash_attn_varlen_func(*packed, bounds, bounds, longest, longest, **options).view(q.shape)
    return out.transpose(1, 2)
