"""What a checkpoint holds, from its manifest and the sizes of its files; no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from neox.checkpoint import manifest as manifests


def summary(directory: Path) -> dict[str, Any]:
    """JSON-able: step, samples, configuration, code, layout, files, and each logical tensor with its kinds.

    Raises:
        UserError: it is not a checkpoint, or its manifest is damaged, or a file is missing or of another size.
    """
    manifest = manifests.read(directory)
    for file in manifest.files:
        manifests.check_size(directory, file)
    state = manifest.state
    config = state.get("config") or {}
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, list[str]] = {}
    for (kind, name), info in sorted(manifest.tensors().items()):
        shapes[name] = info.shape
        kinds.setdefault(name, []).append(kind)
    return {
        "path": str(directory),
        "step": manifest.step,
        "samples": state.get("samples"),
        "config_sha256": state.get("config_sha256"),
        "code": state.get("code"),
        "layout": config.get("parallel"),
        "num_parameters": sum(math.prod(shape) for name, shape in shapes.items() if "weight" in kinds[name]),
        "num_bytes": sum(file.size for file in manifest.files),
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in manifest.files],
        "tensors": [{"name": name, "shape": list(shape), "kinds": kinds[name]} for name, shape in shapes.items()],
    }
