"""Bytes that one rank needs for model state and activations."""

from __future__ import annotations

from dataclasses import dataclass

from neox.config.derive import ffn_size, num_parameters, padded_vocab
from neox.config.schema import Config
from neox.config.shape import head_dim, is_gated, num_kv_heads

NUM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes per rank of the fullest pipeline stage."""

    weights: float
    """Parameters in the training precision."""
    gradients: float
    """Their gradients, summed in fp32."""
    optimizer: float
    """fp32 masters and two Adam moments, sharded over dp by ZeRO-1."""
    activations: float
    """What backward needs, no recomputation."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_per_rank(config: Config) -> Memory:
    """Estimate for a resolved configuration.

    Model state: ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3). Activations: Korthikanti et al., arXiv
    2205.05198, equation 2 without dropout masks and, as attention is fused, without the s × s scores; the first stage
    holds pp micro-batches in flight (1F1B), and the head's fp32 logits are counted once.
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
    per_token = width * (4 * model.hidden_size + (projected + inner) / parallel.tp)
    in_flight = min(parallel.pp, config.train.grad_accum or 1)
    layers = model.num_layers / parallel.pp
    logits = 2 * 4 * tokens * padded_vocab(model) / parallel.tp
    return Memory(
        weights=width * parameters,
        gradients=4 * parameters,
        optimizer=(masters + 8) * parameters / parallel.dp,
        activations=tokens * per_token * layers * in_flight + logits,
    )
