"""Fused kernels beside their plain references; `kernels.dispatch` chooses between them."""

__version__ = "0.1.0"  # transformers probes any top-level package of this name for a version
