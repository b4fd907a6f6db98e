"""The whole language model, and the pieces that a pipeline deals out."""

from __future__ import annotations

from torch import Tensor, nn

from neox.config.schema import ModelConfig
from neox.model.block import Block
from neox.model.cache import KVCache
from neox.model.linear import Embedding, Linear
from neox.model.norm import build_norm


def piece_names(cfg: ModelConfig) -> list[str]:
    """Logical names of the model's pieces, in the order that data flows through them."""
    return ["embed", *(f"layers.{index}" for index in range(cfg.num_layers)), "final_norm", "head"]


def build_piece(name: str, cfg: ModelConfig, vocab_size: int) -> nn.Module:
    """One piece of the model, uninitialised."""
    if name == "embed":
        return Embedding(vocab_size, cfg.hidden_size)
    if name == "head":
        return Linear(cfg.hidden_size, vocab_size, bias=False)
    return build_norm(cfg) if name == "final_norm" else Block(cfg)


class GPT(nn.Module):
    """GPT-NeoX: embedding, blocks, final norm, head. Weights are uninitialised: see `neox.model.init.init_weights`."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        """`vocab_size` is the padded vocabulary: rows of the embedding and of the head."""
        super().__init__()
        self.embed = build_piece("embed", cfg, vocab_size)
        self.layers = nn.ModuleList(build_piece(f"layers.{i}", cfg, vocab_size) for i in range(cfg.num_layers))
        self.final_norm = build_piece("final_norm", cfg, vocab_size)
        self.head = build_piece("head", cfg, vocab_size)
        if cfg.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """tokens [b, s] int64 → logits [b, s, vocab]; with a cache, `tokens` continue those in it."""
        x = self.embed(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, cache.layers[index] if cache is not None else None)
        logits: Tensor = self.head(self.final_norm(x))
        return logits
