"""Configuration files and overrides become one validated `Config`; unknown keys are refused with the nearest names."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from neox.config.errors import UserError
from neox.config.schema import Config, ModelConfig
from neox.config.values import convert, hints_of

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)


class _Loader(yaml.SafeLoader):
    """Reads `6e-4` as a number, which YAML 1.1 does not, and refuses a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                mark = key_node.start_mark
                raise UserError(f"{mark.name}:{mark.line + 1}: key {key_node.value!r} is written twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Splits a command line's mixed list into configuration files and `key.sub=value` overrides.

    An argument is an override when it looks like one and no file has that name.
    """
    files: list[Path] = []
    overrides: list[str] = []
    for argument in arguments:
        if OVERRIDE.fullmatch(argument) and not Path(argument).exists():
            overrides.append(argument)
        else:
            files.append(Path(argument))
    return files, overrides


def load_config(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Config:
    """Merges files left to right, then overrides, and checks every key, type and choice.

    GPT-NeoX's flat files are recognised by their keys. Together they are one configuration, with GPT-NeoX's defaults,
    and so come before any file of ours.

    Raises:
        UserError: a file is missing or not a mapping; a key is unknown; a value has the wrong type.
    """
    merged: dict[str, Any] = {}
    for path, data in _read_all([Path(path) for path in files]):
        build(Config, data, where=f"{path}: ", partial=True)
        merged = merge(merged, data)
    for override in overrides:
        key, _, text = override.partition("=")
        nested: Any = _parse_value(override, text)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        build(Config, nested, where=f"{override}: ", partial=True)
        merged = merge(merged, nested)
    config: Config = build(Config, merged)
    return config


def load_model(files: Sequence[Path]) -> ModelConfig:
    """The `model` section of GPT-NeoX's flat files, of which nothing else is looked at.

    Raises:
        UserError: as `load_config`, and where the model is not one that this trainer computes.
    """
    from neox.config.legacy import read_model

    named = ", ".join(map(str, files))
    model: ModelConfig = build(ModelConfig, read_model([(p, read_yaml(p)) for p in files]), f"{named}: ", "model.")
    return model


def _read_all(paths: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """What each file says in our sections, with its name; GPT-NeoX's files are one entry, the first."""
    contents = [(path, read_yaml(path)) for path in paths]
    if not any(key not in hints_of(Config) for _, data in contents for key in data):
        return [(str(path), data) for path, data in contents]
    from neox.config.legacy import is_flat, read_flat

    flat = [is_flat(data, list(hints_of(Config)), path) for path, data in contents]
    num_flat = sum(flat)
    if any(flat[num_flat:]):
        late = paths[num_flat + flat[num_flat:].index(True)]
        raise UserError(f"{late}: a GPT-NeoX file must come before the files with our sections: give it first")
    ours = [(str(path), data) for path, data in contents[num_flat:]]
    if not num_flat:
        return ours
    return [(", ".join(map(str, paths[:num_flat])), read_flat(contents[:num_flat])), *ours]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in one YAML or JSON file; an empty file is an empty mapping."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read configuration file {path}: {reason}") from None
    loader.name = str(path)
    try:
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    if not isinstance(data or {}, dict):
        raise UserError(f"{path}: expected a mapping of keys to values at the top level")
    return data or {}


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"{override}: the value is not valid YAML") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings merge key by key, anything else replaces."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def build(cls: Any, data: Mapping[str, Any], where: str = "", prefix: str = "", partial: bool = False) -> Any:
    """An instance of dataclass `cls` from plain data; `partial` only checks what is there and returns None."""
    hints = hints_of(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in hints:
            raise UserError(where + unknown_key(f"{prefix}{key}"))
        name, hint = f"{prefix}{key}", hints[key]  # a section, or the type of a value
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{where}{name} is a section: write {name}.<key>, one of {', '.join(section_keys(hint))}"
                )
            values[key] = build(hint, value, where, f"{name}.", partial)
        else:
            values[key] = convert(hint, value, f"{where}{name}")
    if partial:
        return None
    return cls(**{**_missing(cls, values, where, prefix), **values})


def section_keys(cls: Any) -> list[str]:
    """The keys of one section, in the order of the schema."""
    return [item.name for item in dataclasses.fields(cls)]


def _missing(cls: Any, values: Mapping[str, Any], where: str, prefix: str) -> dict[str, Any]:
    """Sections that were left out but have required keys are built empty, so that the error names the key."""
    sections = {}
    for item in dataclasses.fields(cls):
        no_default = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.name in values or not no_default:
            continue
        section: Any = hints_of(cls)[item.name]
        if not dataclasses.is_dataclass(section):
            raise UserError(f"{where}{prefix}{item.name} is required")
        sections[item.name] = build(section, {}, where, f"{prefix}{item.name}.")
    return sections


def unknown_key(name: str) -> str:
    """The error text for a key that does not exist, with the nearest ones that do."""
    section = name.rpartition(".")[0]
    names = key_names()
    here = [known for known in names if section and known.startswith(f"{section}.")]
    last = {known.rpartition(".")[2]: known for known in names}
    near = difflib.get_close_matches(name, [*names, *hints_of(Config)], n=3, cutoff=0.6)
    near += [last[m] for m in difflib.get_close_matches(name.rpartition(".")[2], list(last), n=2, cutoff=0.6)]
    near = list(dict.fromkeys(near)) or here or list(hints_of(Config))
    return f"unknown key {name!r}; nearest: {', '.join(near)}"


@functools.cache
def key_names() -> list[str]:
    """Every dotted key there is, in the order of the schema."""
    return [
        dotted
        for name, hint in hints_of(Config).items()
        for dotted in ([f"{name}.{key}" for key in section_keys(hint)] if dataclasses.is_dataclass(hint) else [name])
    ]


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested data: what a YAML file would hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    out: dict[str, Any] = plain(dataclasses.asdict(config))
    return out


def from_dict(data: Mapping[str, Any]) -> Config:
    """The reverse of `to_dict`, with the same checks as a file."""
    config: Config = build(Config, data)
    return config


def dump(config: Config) -> str:
    """The whole configuration as sorted YAML; reading it back gives an equal `Config`."""
    return yaml.safe_dump(to_dict(config), sort_keys=True, default_flow_style=None, width=120)


def config_hash(config: Config) -> str:
    """sha256, in hex, of `dump(config)`."""
    return hashlib.sha256(dump(config).encode()).hexdigest()
