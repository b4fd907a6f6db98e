"""Checkpoints that move between layouts: store, manifest, resharding reader, Hugging Face export."""
