"""Keys and values of the tokens already seen, for generation."""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """Keys and values of one layer, in buffers that are allocated once, at the first use."""

    def __init__(self, max_length: int) -> None:
        self.length = 0
        self._max_length = max_length
        self._buffers: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k and v [b, heads, new, head_dim] and returns all so far, [b, heads, length, head_dim].

        Raises:
            ValueError: the cache is full.
        """
        start, self.length = self.length, self.length + k.shape[2]
        if self.length > self._max_length:
            raise ValueError(f"the cache holds {self._max_length} tokens, not {self.length}")
        if self._buffers is None:
            batch, heads, _, head_dim = k.shape
            shape = (batch, heads, self._max_length, head_dim)
            self._buffers = k.new_empty(shape), v.new_empty(shape)
        for buffer, new in zip(self._buffers, (k, v), strict=True):
            buffer[:, :, start : self.length] = new
        keys, values = self._buffers
        return keys[:, :, : self.length], values[:, :, : self.length]

    def select(self, rows: list[int]) -> None:
        """Keeps these sequences alone, in this order; one may be named several times."""
        if self._buffers is not None:
            keys, values = (buffer[rows] for buffer in self._buffers)
            self._buffers = keys, values


class KVCache:
    """One `LayerCache` per layer; pass the same object to successive `GPT.forward` calls."""

    def __init__(self, num_layers: int, max_length: int) -> None:
        """Room for `max_length` tokens in each of `num_layers` layers."""
        self.layers = [LayerCache(max_length) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.layers[0].length

    def select(self, rows: list[int]) -> None:
        """Goes on with these of the sequences alone; those named several times then go on differently."""
        for layer in self.layers:
            layer.select(rows)
