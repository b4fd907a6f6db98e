"""PyTorch's own files (.bin, .pt, .pth), a range at a time; their pickle may rebuild tensors and plain data alone."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neox.checkpoint.tensor_file import DTYPES, Entry, fill
from neox.config.errors import UserError

NAMES = {dtype: name for name, dtype in DTYPES.items()}

RECONSTRUCT = np.empty(0).__reduce__()[0]
PLAIN: list[Any] = [
    *(np.ndarray, np.dtype, np.dtypes.UInt32DType, np.dtypes.Int64DType, np.dtypes.Float64DType),
    *((RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),  # numpy 1 and 2
]
"""What numpy's random state is made of, which checkpoints of DeepSpeed hold beside the weights."""


class TorchFile:
    """Reads any range of any tensor of a file that holds a dictionary of tensors; none is mapped."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        """`key`: under which the file holds the dictionary; None: it is one.

        Raises:
            UserError: there is no such file, or it is damaged, or asks for more than plain data.
        """
        self.path = path
        found = _load(path)
        if key is not None and isinstance(found, Mapping):
            found = found.get(key)
        if not isinstance(found, Mapping):
            raise UserError(f"{path}: holds no dictionary of tensors")
        self._file = path.open("rb", buffering=0)
        self._tensors = {
            name: value
            for name, value in found.items()
            if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        }
        self.entries = {
            name: Entry(name, NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """As `neox.checkpoint.tensor_file.TensorFile.read`."""
        tensor = self._tensors[name]
        if tensor.dtype not in NAMES:
            raise UserError(f"{self.path}: {name} is {tensor.dtype}; weights are {', '.join(DTYPES)}")
        if not tensor.is_meta:
            return tensor.reshape(-1)[start:stop].clone()
        storage = tensor.untyped_storage()
        begin = storage._checkpoint_offset
        assert begin is not None
        if not tensor.is_contiguous():
            whole = torch.empty(storage.nbytes() // tensor.itemsize, dtype=tensor.dtype)
            fill(whole, self._file, begin, self.path)
            strided = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            return strided.reshape(-1)[start:stop].clone()
        assert 0 <= start <= stop <= tensor.numel()
        out = torch.empty(stop - start, dtype=tensor.dtype)
        fill(out, self._file, begin + (int(tensor.storage_offset()) + start) * tensor.itemsize, self.path)
        return out


def _load(path: Path) -> Any:
    """What torch.save wrote to `path`, by the unpickler of PyTorch that runs no code of the file.

    Of tensors it has only the shapes and where they lie, but in files from before PyTorch 1.6, which are no archives.
    """
    try:
        with path.open("rb") as file:
            device = "meta" if file.read(2) == b"PK" else "cpu"
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {named[1]}, which is not loaded" if named else "it holds more than plain data"
        raise UserError(f"{path}: {reason}") from None
    except (AssertionError, RuntimeError, EOFError, ValueError, KeyError):
        raise UserError(f"{path} is damaged: PyTorch cannot read it") from None
