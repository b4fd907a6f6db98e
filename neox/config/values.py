"""A value of a file as the type that its key asks for, or one line that says what is allowed."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from neox.config.errors import UserError


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Field → type of a section."""
    return get_type_hints(cls)


def convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint` asks for; numbers are finite.

    Raises:
        UserError: it begins with `name` and says what is allowed.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(next(arg for arg in args if arg is not type(None)), value, name)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        if value is False and "off" in args:  # what YAML reads where off is written
            return "off"
        raise UserError(f"{name} = {value!r}: allowed are {', '.join(map(str, args))}")
    if origin is tuple:
        return _convert_tuple(args, value, name)
    return _convert_scalar(hint, value, name)


def _convert_tuple(args: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    many = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (many or len(value) == len(args)):
        count = "a list" if many else f"a list of {len(args)}"
        raise UserError(f"{name} = {value!r}: expected {count} of {args[0].__name__}")
    return tuple(_convert_scalar(args[0], item, f"{name}[{i}]") for i, item in enumerate(value))


def _convert_scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # of integers, too, which a float may have no place for
            raise UserError(f"{name} = {value}: expected a finite number")
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{name} = {value!r}: expected {hint.__name__}, got {type(value).__name__}")
