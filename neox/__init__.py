"""Trainer for GPT-NeoX-style language models; importing it loads no torch."""

__version__ = "0.1.0"
