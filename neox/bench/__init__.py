"""Micro-benchmarks of the collectives that a training step issues."""
