"""The network as single-device PyTorch; nothing here knows of ranks."""
