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
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Tells glibc's allocator to keep what is freed; does nothing elsewhere. What the environment sets, stands.

    By default each step on a CPU gives its large tensors back to the kernel and takes page faults to get them again.
    What only the environment can set when the process starts is in that of the ranks (site_configs/local/site.yaml).
    """
    for variable, (parameter, value) in _SETTINGS.items():
        if variable not in os.environ:
            _mallopt(parameter, value)


def give_back_freed_memory() -> None:
    """Tells glibc's allocator to give large blocks back when they are freed, and what is free now; nothing elsewhere.

    By default one that was freed makes all of its size come from the heap, where what is small keeps holes open. Blocks
    of a few MiB are kept: they are wanted again at once, and new pages for them were a twentieth of the time.
    """
    for parameter, value in ((_MMAP_THRESHOLD, 1 << 22), (_TRIM_THRESHOLD, 1 << 23), (_ARENA_MAX, 1)):
        _mallopt(parameter, value)
    _call("malloc_trim", 0)


def _mallopt(parameter: int, value: int) -> None:
    _call("mallopt", parameter, value)


def _call(name: str, *arguments: int) -> None:
    """Calls a function of glibc, where that is what there is."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
