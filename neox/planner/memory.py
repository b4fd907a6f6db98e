"""Bytes that one rank needs for model state and activations."""

from __future__ import annotations

from dataclasses import dataclass

from neox.config.derive import ffn_size, num_parameters, padded_vocab
from neox.config.optimizers import OPTIMIZERS, largest_group
from neox.config.schema import Config, ModelConfig
from neox.config.schema.parallel import BUCKET_NUMEL
from neox.config.shape import attention_weights, head_dim, is_gated, num_kv_heads

NUM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes per rank of the fullest pipeline stage, where the model is; `host` apart."""

    weights: float
    """Parameters in the training precision; with ZeRO-3 this rank's share, and what is gathered for use."""
    gradients: float
    """Their gradients, summed in fp32; from ZeRO-2 on this rank's share."""
    optimizer: float
    """fp32 masters, what the optimizer keeps and log.noise_scale_steps sums up, shared out over dp; fp32 weights are
    their own masters."""
    activations: float
    """What backward needs, as parallel.recompute has it."""
    buffers: float
    """What gradients are sent and stepped on from."""
    host: float
    """The copy that a checkpoint is written from, and what parallel.offload puts there. Not part of `total`."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


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
    tokens = config.train.micro_batch_size * model.seq_length
    kv_heads = max(num_kv_heads(model) / parallel.tp, 1)
    projected = 2 * head_dim(model) * (model.num_heads / parallel.tp + kv_heads)  # queries, keys, values and output
    inner = (3 if is_gated(model) else 2) * ffn_size(model)
    scores = bytes_per_score(model) * model.num_heads * model.seq_length / parallel.tp
    kept = model.hidden_size / (parallel.tp if parallel.sequence_parallel else 1)  # equation 4
    masks = 2 * kept if model.hidden_dropout else 0
    per_token = width * (4 * kept + projected + inner / parallel.tp) + scores + masks
    again = {"none": 0.0, "selective": scores, "full": per_token - width * kept}[parallel.recompute]
    in_flight = min(parallel.pp, config.train.grad_accum or 1)
    layers = model.num_layers / parallel.pp
    # One chunk of fp32 logits (kernels/linear_cross_entropy: on GPUs, as for 16 bits, a larger one, and it twice), and
    # the sum of the head's gradient, which is fp32 too.
    rows = padded_vocab(model) / parallel.tp
    logits = 4 * min(tokens * rows, 1 << 23) if width == 4 else (4 + width) * min(tokens * rows, 1 << 27)
    head = logits + 4 * rows * model.hidden_size
    activations = tokens * ((per_token - again) * layers * in_flight + again) + head
    return _model_state(config, parameters, activations)


def _model_state(config: Config, parameters: float, activations: float) -> Memory:
    """`parameters` are those of one replica's stage and tensor-parallel rank."""
    parallel, width = config.parallel, NUM_BYTES[config.train.precision]
    dp = parallel.dp or 1
    stage, share, is_offloaded = parallel.zero_stage, parameters / dp, parallel.offload != "none"
    masters = 0 if config.train.precision == "fp32" and not is_offloaded else 4 * share
    moments = 4 * num_moments(config) / (parallel.tp * parallel.pp * dp)
    saved = 8 * share if config.optim.name == "adamw8bit" else moments  # which a checkpoint has in fp32
    summed = 4 * share if config.log.noise_scale_steps else 0
    weights = width * parameters
    bucket = 4 * min(BUCKET_NUMEL, parameters) if dp > 1 else 0
    copied = 4 * min(share, largest_group(config))
    buffers = max(bucket + copied - activations, 0)  # stage 1 needs them when the activations are gone again
    if stage > 1:
        buffers = 2 * bucket  # gradients laid end to end while backward goes on, and what is on its way
    if stage == 3:
        gathered = width * min(_largest_piece(config) + BUCKET_NUMEL, parameters)  # in use, and fetched ahead
        weights = gathered + (0 if parallel.offload == "parameters" else width * share)
    on_host = masters + moments + summed + 4 * share if is_offloaded else 0  # the gradients that the host steps on, too
    if parallel.offload == "parameters":
        on_host += width * share
    return Memory(
        weights=weights,
        gradients=4 * (parameters if stage == 1 else share),
        optimizer=0 if is_offloaded else masters + moments + summed,
        activations=activations,
        buffers=buffers,
        host=4 * share + saved + on_host,
    )


def _largest_piece(config: Config) -> float:
    """Parameters of a block or of the embedding, on one tensor-parallel rank."""
    model = config.model
    embedding = padded_vocab(model) * model.hidden_size
    blocks = num_parameters(model) - (1 if model.tie_embeddings else 2) * embedding
    return max(embedding, blocks / model.num_layers) / config.parallel.tp


def num_moments(config: Config) -> float:
    """fp32 numbers that the optimizer keeps for the whole model; Adafactor's, one per row and column, are not counted.

    Muon keeps two for all but the matrices of the blocks, as AdamW does.
    """
    model, total = config.model, num_parameters(config.model)
    if config.optim.name == "sgd" and config.optim.momentum == 0:
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
