"""Parquet: each row is a record, of which only the columns that are asked for are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neox.config.errors import UserError
from neox.data.formats import lines
from neox.data.formats.contract import Batch, Fields, Format, Span, batched


def length(path: Path) -> int:
    """Rows."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Rows as JSON lines; a position is the number of a row."""
    return batched(span, _rows(span, fields, batch_bytes), batch_bytes)


def place(span: Span, number: int) -> str:
    """Counted from 1, as lines are."""
    return f"row {span.start + number + 1}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow, which is not installed") from None
    try:
        # Buffered: else a column of a whole row group, which may be gigabytes, is held at once.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except OSError as error:
        reason = error.strerror if error.errno else f"cannot be read, the file is damaged ({error})"
        raise UserError(f"{path}: {reason}") from error
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read, the file is damaged or no Parquet file ({reason})") from error


def _rows(span: Span, fields: Fields, batch_bytes: int) -> Iterator[tuple[int, bytes]]:
    with _opened(span.path) as file:
        names = [_column(file.schema_arrow.names, name) for name in (fields.key, *(c.field for c in fields.where))]
        absent = [name for name in names if name not in file.schema_arrow.names]
        if absent:
            raise UserError(f"{span.path}: no column '{absent[0]}', only {sorted(file.schema_arrow.names)}")
        position = 0
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            end = position + about.num_rows
            if end > span.start and not span.is_before(position) and about.num_rows:
                num_rows = min(max(1, batch_bytes * about.num_rows // max(about.total_byte_size, 1)), 1 << 16)
                columns = list(dict.fromkeys(names))
                for block in file.iter_batches(num_rows, [group], columns, use_threads=False):
                    if position + len(block) > span.start and not span.is_before(position):
                        yield from enumerate(_as_lines(block), position)
                    position += len(block)
            position = end


def _column(names: list[str], field: str) -> str:
    return field if field in names else field.partition(".")[0]


def _as_lines(block: Any) -> Iterator[bytes]:
    """Each row as JSON. Bytes of texts that are not UTF-8 become halves of surrogate pairs, which `decode` refuses."""
    import pyarrow as pa

    columns = {}
    for name, column in zip(block.schema.names, block.columns, strict=True):
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        values = (
            column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
            if is_text
            else column
        )
        columns[name] = [_text(value) for value in values.to_pylist()]
    for row in zip(*columns.values(), strict=True):
        record = dict(zip(columns, row, strict=True))
        yield json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


FORMAT = Format(
    (".parquet",), length, batches, lines.decode, place, lines.parts, is_compressible=False, has_fields=True
)
