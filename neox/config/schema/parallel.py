"""The `parallel` section: how ranks share the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BUCKET_NUMEL = 50_000_000
"""Elements that DeepSpeed sends at once: 200 MB of fp32 gradients. By default it takes ten times as many."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks share the work: dp × tp × pp = world size."""

    dp: int | None = None
    """Data-parallel replicas. None: world size / (tp × pp)."""
    tp: int = 1
    """Tensor-parallel ranks per replica; must divide the heads, the MLP width and the padded vocabulary."""
    sequence_parallel: bool = False
    """Whether the tensor-parallel ranks share out the sequence too, outside attention and MLP: 1 / tp of the memory for
    activations there, and a reduce-scatter and an all-gather where there was an all-reduce. tp must divide
    model.seq_length."""
    pp: int = 1
    """Pipeline stages (GPT-NeoX: pipe_parallel_size)."""
    zero_stage: Literal[1, 2, 3] = 1
    """What the replicas share out among them: 1 the optimizer's state, 2 the gradients too, 3 the weights too (ZeRO;
    GPT-NeoX: zero_optimization.stage). 2 and 3 need pp = 1. DeepSpeed's stage 0 was measured to be wrong."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the host's memory: masters and moments, which are updated there too (optimizer), or with
    zero_stage 3 the weights as well (parameters). Needs pp = 1 (GPT-NeoX: cpu_offload, offload_optimizer,
    offload_param)."""
    partition: str = "parameters"
    """How blocks are dealt to pipeline stages, at least one to each: equal counts (uniform), equal parameters
    (parameters), or equal numbers of pieces in whose name in GPT-NeoX a regular expression is found (type:REGEX; the
    names are EmbeddingPipe, ParallelTransformerLayerPipe, NormPipe, ParallelLinearPipe). The embedding goes with the
    first block, final norm and head with the last (GPT-NeoX: pipe_partition_method)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What backward makes again instead of keeping it: nothing, attention between its projections (selective, which
    saves little where attention is fused), or every block from its input (full; GPT-NeoX: checkpoint_activations)."""
