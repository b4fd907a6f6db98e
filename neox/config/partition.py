"""What `parallel.partition` deals to pipeline stages evenly: `uniform`, `parameters` or `type:REGEX`."""

from __future__ import annotations

import re

from neox.config.schema import ModelConfig

BLOCK, NORM = "ParallelTransformerLayerPipe", "NormPipe"
EMBEDDING, HEAD = "EmbeddingPipe", "ParallelLinearPipe"
"""GPT-NeoX's classes of pipeline layers, whose names a regular expression was written for."""


def partition_mistake(partition: str) -> str | None:
    """What is wrong with the value, in the words that follow it in a message; None: nothing."""
    kind, colon, pattern = partition.partition(":")
    if not colon and kind in ("uniform", "parameters"):
        return None
    if not colon or kind != "type":
        return "allowed are uniform, parameters and type:REGEX"
    try:
        found = [name for name in (EMBEDDING, BLOCK, NORM, HEAD) if re.search(pattern, name, re.IGNORECASE)]
    except re.error as error:
        return f"is not a regular expression: {error}"
    return None if found else f"is found in none of {EMBEDDING}, {BLOCK}, {NORM}, {HEAD}"


def counted_pieces(model: ModelConfig, partition: str) -> list[int]:
    """Of `type:REGEX`, per block the number of pieces in whose name it is found; as DeepSpeed's PipelineModule counts.

    The embedding is counted with the first block, final norm and head with the last.
    """
    pattern = partition.partition(":")[2]
    head = EMBEDDING if model.tie_embeddings else HEAD
    embedding, block, norm, last = (
        int(re.search(pattern, name, re.IGNORECASE) is not None) for name in (EMBEDDING, BLOCK, NORM, head)
    )
    blocks = [block] * model.num_layers
    blocks[0] += embedding
    blocks[-1] += norm + last
    return blocks
