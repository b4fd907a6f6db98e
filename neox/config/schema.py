"""The configuration: nested frozen dataclasses, with unit, default and source under every field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Shape and equations of the network; nothing here depends on how many ranks run it."""

    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads; must divide hidden_size."""
    seq_length: int = 2048
    """Tokens per training sample, and the longest context the exported model declares."""
    vocab_size: int | None = None
    """Entries of the tokenizer. None: counted in `data.tokenizer`."""
    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this. GPT-NeoX (make_vocab_size_divisible_by) multiplies it by tp,
    which ties the weights' shape to the layout: set 128 × tp here to get the same."""
    intermediate_size: int | None = None
    """True width of the MLP. None: 4 × hidden_size."""
    rotary_pct: float = 0.25
    """Share of each head's dimensions that is rotated; the result must be even."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and before the head."""
    norm_eps: float = 1e-5
    """Added to the variance (GPT-NeoX: layernorm_epsilon, rms_norm_epsilon)."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    """MLP non-linearity. gelu_tanh is what GPT-NeoX computes with bias_gelu_fusion; swiglu adds a gate projection."""
    parallel_residual: bool = True
    """x + attn(norm1 x) + mlp(norm2 x) instead of two residual steps (GPT-NeoX: gpt_j_residual)."""
    tie_embeddings: bool = False
    """Share the embedding with the output head (GPT-NeoX: not no_weight_tying)."""
    bias: bool = True
    """Biases on every linear layer but the head."""
    init: Literal["normal", "small_init"] = "small_init"
    """Embedding, QKV, MLP-in and head: normal std = init_std, or small_init std = sqrt(2 / (5 hidden))."""
    output_init: Literal["scaled_normal", "wang_init"] = "wang_init"
    """Attention-out and MLP-out: scaled_normal std = init_std / sqrt(2 layers), wang_init 2 / (layers sqrt(hidden))."""
    init_std: float = 0.02
    """Standard deviation of `normal` and `scaled_normal`."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks share the work: dp × tp × pp = world size."""

    dp: int | None = None
    """Data-parallel replicas. None: world size / (tp × pp)."""
    tp: int = 1
    """Tensor-parallel ranks per replica; must divide the heads, the MLP width and the padded vocabulary."""
    pp: int = 1
    """Pipeline stages (GPT-NeoX: pipe_parallel_size)."""
    zero_stage: Literal[1] = 1
    """ZeRO stage. DeepSpeed's stage 0 was measured to be numerically wrong in two cases, so 1 is the least."""
    partition: Literal["uniform", "parameters"] = "parameters"
    """How layers are dealt to pipeline stages: equal counts, or equal parameters."""


@dataclass(frozen=True)
class DataConfig:
    """Token files, their split, and the tokenizer that made them."""

    path: str | None = None
    """Prefix of PREFIX.bin and PREFIX.idx (GPT-NeoX: data_path)."""
    tokenizer: str | None = None
    """tokenizer.json of the Hugging Face `tokenizers` library (GPT-NeoX: vocab_file with HFTokenizer)."""
    split: tuple[float, ...] = (969.0, 30.0, 1.0)
    """Shares of the documents for training, validation and test, normalised to one; documents keep their order."""
    seed: int = 1234
    """Seed of the document and sample order."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate curve."""

    name: Literal["adamw"] = "adamw"
    """AdamW with decoupled weight decay; norms and biases are not decayed."""
    lr: float = 6e-4
    """Peak learning rate."""
    min_lr: float = 6e-5
    """Learning rate at the end of the decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest global L2 norm of the gradients; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after warm-up."""
    warmup: float = 0.01
    """Share of decay_steps over which the rate rises linearly from 0 to lr."""
    decay_steps: int | None = None
    """Step at which min_lr is reached. None: train.steps."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and precision of a run."""

    steps: int = 1000
    """Optimizer steps (GPT-NeoX: train_iters)."""
    global_batch_size: int | None = None
    """Samples per optimizer step = micro_batch_size × grad_accum × dp; any two of the three sizes give the third."""
    micro_batch_size: int | None = None
    """Samples per rank and forward pass."""
    grad_accum: int | None = None
    """Micro-batches per step and rank; under a pipeline, the micro-batches in flight."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations; masters, gradients' sum and moments stay fp32."""
    seed: int = 1234
    """Seed of the initial weights."""
    valid_interval: int = 100
    """Steps between validations; 0 never validates."""
    valid_batches: int = 10
    """Global batches per validation."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    interval: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    steps: tuple[int, ...] = ()
    """Further steps to save, kept for ever (GPT-NeoX: extra_save_iters)."""
    keep_last: int | None = None
    """How many of the interval's checkpoints to keep. None keeps all."""


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    interval: int = 10
    """Steps between progress lines; metrics.jsonl has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files."""


@dataclass(frozen=True)
class Config:
    """Everything `neox train` needs to know; each component receives its own section."""

    model: ModelConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
