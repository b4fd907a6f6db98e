"""Parallel training: rank arithmetic, the tensor-parallel table, the pipeline and the DeepSpeed engine."""
