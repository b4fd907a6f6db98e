"""What glibc does with memory that is freed: a training step's stays with the process, that of tokenising goes back."""

from __future__ import annotations

import ctypes
import os

# mallopt(3): the names' numbers in glibc's malloc.h, and the environment variables that set the same.
_SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # large tensors come from the heap, which is kept, not from mappings, which are not
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # the top of the heap is never given back
    "MALLOC_TOP_PAD_": (-2, 1 << 28),  # the heap grows by 256 MiB at a time
}
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8


def keep_freed_memory() -> None:
    """Tells glibc's allocator to keep what is freed; does nothing elsewhere. What the environment sets, stands.

    By default each step on a CPU gives its large tensors back to the kernel and takes page faults to get them again.
    What only the environment can set when the process starts is in that of the ranks (site_configs/local/site.yaml).
    """
    for variable, (parameter, value) in _SETTINGS.items():
        if variable not in os.environ:
            _mallopt(parameter, value)


def give_back_freed_memory() -> None:
    """Tells glibc's allocator to give large blocks back when they are freed; does nothing elsewhere.

    By default one that was freed makes all of its size come from the heap, where what is small keeps holes open.
    """
    for parameter, value in ((_MMAP_THRESHOLD, 1 << 18), (_ARENA_MAX, 1)):
        _mallopt(parameter, value)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
