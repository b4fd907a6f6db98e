"""Cross entropy of next-token logits."""

from torch import Tensor

from kernels.dispatch import find


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] for every position, in fp32 and nats.

    Args:
        logits: [..., vocab]; labels: [...] int64, each in 0…vocab-1.

    Returns:
        [...] fp32.
    """
    out: Tensor = find("cross_entropy", logits.device)(logits, labels)
    return out
