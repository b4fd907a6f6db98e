"""Bytes that one rank needs for model state and activations."""

from __future__ import annotations

from dataclasses import dataclass

from neox.config.derive import ffn_size, num_parameters, padded_vocab
from neox.config.optimizers import OPTIMIZERS
from neox.config.schema import Config, ModelConfig
from neox.config.shape import attention_weights, head_dim, is_gated, num_kv_heads

NUM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes per rank of the fullest pipeline stage."""

    weights: float
    """Parameters in the training precision."""
    gradients: float
    """Their gradients, summed in fp32."""
    optimizer: float
    """fp32 masters and what the optimizer keeps, sharded over dp by ZeRO-1."""
    activations: float
    """What backward needs, as parallel.recompute has it."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_per_rank(config: Config) -> Memory:
    """Estimate for a resolved configuration.

    Model state: ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3). Activations: Korthikanti et al., arXiv
    2205.05198, equation 2, with the s × s scores only where attention cannot be fused; the first stage holds pp
    micro-batches in flight (1F1B). What backward makes again is there for one block at a time.
    """
    model, parallel = config.model, config.parallel
    assert parallel.dp is not None and config.train.micro_batch_size is not None
    shards = parallel.tp * parallel.pp
    parameters = num_parameters(model) / shards
    width = NUM_BYTES[config.train.precision]
    masters = 0 if config.train.precision == "fp32" else 4
    tokens = config.train.micro_batch_size * model.seq_length
    projected = 2 * head_dim(model) * (model.num_heads + num_kv_heads(model))  # queries, keys, values and output
    inner = (3 if is_gated(model) else 2) * ffn_size(model)
    attention = (width * projected + bytes_per_score(model) * model.num_heads * model.seq_length) / parallel.tp
    kept = model.hidden_size
    masks = 2 * kept if model.hidden_dropout else 0
    per_token = width * (4 * kept + inner / parallel.tp) + attention + masks
    again = {"none": 0.0, "selective": attention, "full": per_token - width * kept}[parallel.recompute]
    in_flight = min(parallel.pp, config.train.grad_accum or 1)
    layers = model.num_layers / parallel.pp
    # One chunk of fp32 logits (kernels/linear_cross_entropy) and the sum of the head's gradient, which is fp32 too.
    rows = padded_vocab(model) / parallel.tp
    head = 4 * (min(tokens * rows, 1 << 24) + rows * model.hidden_size)
    return Memory(
        weights=width * parameters,
        gradients=4 * parameters,
        optimizer=(masters * parameters + 4 * num_moments(config) / shards) / parallel.dp,
        activations=tokens * ((per_token - again) * layers * in_flight + again) + head,
    )


def num_moments(config: Config) -> int:
    """fp32 numbers that the optimizer keeps for the whole model; Adafactor's, one per row and column, are not counted.

    Muon keeps two for all but the matrices of the blocks, as AdamW does.
    """
    model, total = config.model, num_parameters(config.model)
    if config.optim.momentum == 0:
        return 0
    if config.optim.name == "muon":
        matrices = attention_weights(model) + (3 if is_gated(model) else 2) * model.hidden_size * ffn_size(model)
        return 2 * total - model.num_layers * matrices
    return OPTIMIZERS[config.optim.name].num_moments * total


def bytes_per_score(model: ModelConfig) -> int:
    """Bytes that backward needs of each score of attention: none where it is fused; soft caps and dropout write them.

    In fp32: the probabilities, the caps' tanh, and of dropout its mask and what is left.
    """
    is_capped, is_dropped = model.attn_softcap is not None, model.attention_dropout > 0
    return 4 * (is_capped or is_dropped) + 4 * is_capped + 5 * is_dropped
