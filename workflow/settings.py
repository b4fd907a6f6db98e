"""Checks an experiment's configuration against its schema; every mistake is one line that names the key."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError, best_match

from neox.config.errors import UserError

SCHEMA = Path(__file__).parent / "schemas" / "experiment.schema.yaml"


def check(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the schema's defaults filled in, in place.

    Raises:
        UserError: one line with the key and what is allowed.
    """
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    error = best_match(_filling_validator()(schema).iter_errors(config), key=_relevance)
    if error is not None:
        raise UserError(f"workflow configuration: {explain(error)}")
    return config


@functools.cache
def _filling_validator() -> Any:
    """A validator that also writes defaults into what it checks (the recipe of jsonschema's own FAQ)."""
    check_properties = Draft202012Validator.VALIDATORS["properties"]

    def fill(validator: Any, properties: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        for name, below in properties.items():
            if isinstance(instance, dict) and "default" in below:
                instance.setdefault(name, type(below["default"])(below["default"]))
        yield from check_properties(validator, properties, instance, schema)

    return validators.extend(Draft202012Validator, {"properties": fill})


def _relevance(error: ValidationError) -> tuple[bool, int]:
    """An unknown key says more than what is missing because of it."""
    return error.validator == "additionalProperties", -len(error.path)


def explain(error: ValidationError) -> str:
    """One line: the dotted key, what is wrong, what is allowed."""
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    choices: Any = error.validator_value
    key = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        allowed = list(schema["properties"])
        unknown = next(name for name in error.instance if name not in allowed)
        near = difflib.get_close_matches(unknown, allowed, n=3) or allowed
        return f"unknown key {f'{key}.{unknown}'.lstrip('.')!r}; allowed here: {', '.join(near)}"
    if error.validator == "oneOf" and all("required" in choice for choice in choices):
        return f"{key} needs exactly one of {', '.join(choice['required'][0] for choice in choices)}"
    about = f"{key}: " if key else ""
    return about + error.message + (f" ({schema['description']})" if "description" in schema else "")
