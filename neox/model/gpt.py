"""The whole language model, and the pieces that a pipeline deals out."""

from __future__ import annotations

from torch import Tensor, nn

from neox.config.schema import ModelConfig
from neox.config.shape import layer_kind
from neox.model.block import BLOCKS
from neox.model.cache import KVCache
from neox.model.context import PLAIN, Context
from neox.model.dropout import Dropout
from neox.model.linear import Embedding, Linear
from neox.model.norm import build_norm
from neox.model.positions import POSITIONS


def piece_names(cfg: ModelConfig) -> list[str]:
    """Logical names of the model's pieces, in the order that data flows through them."""
    positions = ["positions"] if cfg.positions in POSITIONS else []
    dropout = ["embed_dropout"] if cfg.hidden_dropout else []
    layers = [f"layers.{index}" for index in range(cfg.num_layers)]
    return ["embed", *positions, *dropout, *layers, "final_norm", "head"]


def takes_context(name: str) -> bool:
    """Whether the piece called `name` is given the micro-batch's context beside the activations."""
    return name not in ("embed", "final_norm", "head")


def build_piece(name: str, cfg: ModelConfig, vocab_size: int) -> nn.Module:
    """One piece of the model, uninitialised."""
    piece = _build(name, cfg, vocab_size)
    for path, module in piece.named_modules():
        if isinstance(module, Dropout):
            module.name = f"{name}.{path}" if path else name
    return piece


def _build(name: str, cfg: ModelConfig, vocab_size: int) -> nn.Module:
    if name == "embed":
        return Embedding(vocab_size, cfg.hidden_size)
    if name == "positions":
        return POSITIONS[cfg.positions](cfg)
    if name == "embed_dropout":
        return Dropout(cfg.hidden_dropout)
    if name == "head":
        return Linear(cfg.hidden_size, vocab_size, bias=False)
    return build_norm(cfg) if name == "final_norm" else BLOCKS[layer_kind(cfg, int(name.rpartition(".")[2]))](cfg)


def cap_logits(logits: Tensor, cfg: ModelConfig) -> Tensor:
    """The head's output, softly capped where the configuration asks."""
    cap = cfg.logit_softcap
    return logits if cap is None else cap * (logits / cap).tanh()


class GPT(nn.Module):
    """Embedding, blocks, final norm, head. Weights are uninitialised: see `neox.model.init.init_weights`."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        """`vocab_size` is the padded vocabulary: rows of the embedding and of the head."""
        super().__init__()
        self.cfg = cfg
        self.embed = build_piece("embed", cfg, vocab_size)
        self.positions = build_piece("positions", cfg, vocab_size) if cfg.positions in POSITIONS else None
        self.embed_dropout = build_piece("embed_dropout", cfg, vocab_size)
        self.layers = nn.ModuleList(build_piece(f"layers.{i}", cfg, vocab_size) for i in range(cfg.num_layers))
        self.final_norm = build_piece("final_norm", cfg, vocab_size)
        self.head = build_piece("head", cfg, vocab_size)
        if cfg.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, context: Context = PLAIN, *, cache: KVCache | None = None) -> Tensor:
        """tokens [b, s] int64 → logits [b, s, vocab]; with a cache, `tokens` continue those in it."""
        return self.logits(self.hidden(tokens, context, cache=cache))

    def hidden(self, tokens: Tensor, context: Context = PLAIN, *, cache: KVCache | None = None) -> Tensor:
        """tokens [b, s] int64 → what the last block gives, [b, s, h]; with a cache, `tokens` continue those in it."""
        x = self.embed(tokens)
        if self.positions is not None:
            x = self.positions(x, context, cache.length if cache is not None else 0)
        x = self.embed_dropout(x, context)
        for index, layer in enumerate(self.layers):
            x = layer(x, context, cache.layers[index] if cache is not None else None)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[…, h] of `hidden` → [… , vocab]."""
        return cap_logits(self.head(self.final_norm(x)), self.cfg)
