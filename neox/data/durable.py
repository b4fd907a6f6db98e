"""Files that appear whole or not at all: write to a temporary name beside them, flush, rename."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neox.config.errors import UserError

STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of `paths`; when the block ends well they replace the real ones, in order.

    When it fails nothing of them remains and the old files stand. A full disk becomes a UserError that names the file.
    """
    _make_parents(paths)
    temporaries = tuple(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in paths)
    try:
        yield temporaries
        for temporary in temporaries:
            _flush(temporary)
        # The later files describe the earlier ones: until they stand, their old versions must not.
        for path in paths[1:]:
            path.unlink(missing_ok=True)
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
    except OSError as error:
        if error.errno in STORAGE_ERRORS:
            raise UserError(f"{paths[0]}: {error.strerror}, nothing was written") from error
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, whole or not at all."""
    with replacing(path) as (temporary,):
        dump_json(temporary, value)


def dump_json(temporary: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON to a path that `replacing` gave."""
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def storage_failure(error: Exception) -> str | None:
    """Why storage took no more, if that is what `error` says; safetensors and tokenizers say it in words alone."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return os.strerror(number) if number in STORAGE_ERRORS else None


def _make_parents(paths: tuple[Path, ...]) -> None:
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot make the folder {path.parent}: {error.strerror}") from error
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path}: the folder {path.parent} is not writable")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
