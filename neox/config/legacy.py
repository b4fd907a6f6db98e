"""GPT-NeoX's flat files, accepted as they are: recognised, merged and turned into our sections key by key."""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neox.config.errors import UserError
from neox.config.legacy_convert import Flat
from neox.config.legacy_convert_run import CONVERTERS, MODEL_CONVERTERS
from neox.config.legacy_table import MODEL
from neox.config.legacy_table_run import KEYS, TYPES
from neox.config.schema import Config
from neox.config.values import convert, hints_of

SHARED = "checkpoint"
"""The one name that is both a section of ours and a GPT-NeoX key (DeepSpeed's options)."""

SAME = {"gas": "gradient_accumulation_steps"}
"""GPT-NeoX 1.0's second name, in most of Pythia's files; it may stand beside the first where both agree."""

RENAMED = {
    "save_interval": "checkpoint_factor",
    "warmup_iters": "warmup",
    "decay_lr_to": "min_lr",
    "autotuning_config": "autotuning",
}
"""Keys of earlier GPT-NeoX versions, which GPT-NeoX itself refuses by now."""

COMPAT = (
    "compat is neox_v2, GPT-NeoX's commit ea7aefd8; Pythia and GPT-NeoX-20B were trained with version 1.0: give "
    "compat=neox_v1; compat=none is free of both versions' faults"
)

MODEL_READS = ("model_parallel_size", "seed", "hidden_dropout", "attention_dropout")
"""Keys of other tables that the model's shape is read from too."""

Sources = Mapping[str, tuple[str, Any]]


def is_flat(data: Mapping[Any, Any], sections: Sequence[str], path: Path) -> bool:
    """Whether a file is one of GPT-NeoX's; one that holds keys of both kinds is refused."""
    names = [_underscored(key) for key in data]
    flat = [name for name in names if name in KEYS and name != SHARED]
    ours = [name for name in names if name in sections and name != SHARED]
    if flat and ours:
        raise UserError(f"{path}: {flat[0]!r} is a GPT-NeoX key and {ours[0]!r} a section of ours: use two files")
    return bool(flat)


def collect(files: Sequence[tuple[Path, Mapping[Any, Any]]]) -> dict[str, tuple[str, Any]]:
    """All keys with underscores, each with the file it came from; a key may be written once, as in GPT-NeoX."""
    found: dict[str, tuple[str, Any]] = {}
    for path, data in files:
        for key, value in data.items():
            written = _underscored(key)
            name = SAME.get(written, written)
            if name in found and found[name][1] == value and (written in SAME or name in SAME.values()):
                continue
            if name in found:
                raise UserError(f"{path}: GPT-NeoX key {name!r} is already set in {found[name][0]}: keep one of them")
            if name not in KEYS:
                near = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, KEYS, n=3, cutoff=0.6)
                raise UserError(f"{path}: unknown GPT-NeoX key {key!r}; nearest: {', '.join(near) or 'none'}")
            found[name] = (str(path), value)
    return found


def translate(sources: Sources) -> tuple[dict[str, Any], list[str]]:
    """Our nested sections, and the notices: what was set and has no place here, or works differently.

    Raises:
        UserError: a value asks for what this trainer does not do; the line names file, key, reason and alternative.
    """
    _check(sources)
    notices: dict[str, list[str]] = {}
    for name, (_, value) in sources.items():
        key = KEYS[name]
        if key.category == "elsewhere" and value is not None and value != key.default:
            notices.setdefault(key.text, []).append(name)
    flat = Flat(sources, "train_iters")
    values = {key.text: flat.get(name) for name, key in KEYS.items() if key.category == "copied"}
    for converter in CONVERTERS:
        values.update(converter(flat))
    lines = [f"{', '.join(names)}: {text}" for text, names in notices.items()]
    return _nested({key: value for key, value in values.items() if value is not None}), [*lines, *flat.notices]


def _check(sources: Sources) -> None:
    """UserError where a value asks for what this trainer does not do."""
    for name, (path, value) in sources.items():
        key = KEYS[name]
        if value is None or value == key.default:
            continue
        if key.category == "refused" or (key.category == "off" and not _is_off(value, key.accepted)):
            raise UserError(f"{path}: GPT-NeoX key {name} = {shown(value)}: {key.text}")
        if (hint := _hint(name)) is not None:
            convert(hint, value, f"{path}: GPT-NeoX key {name}")


def _hint(name: str) -> Any:
    """The type that a key's value has; None where its converter says, or where nothing reads it."""
    key = KEYS[name]
    if key.category == "copied":
        section, _, field = key.text.partition(".")
        return hints_of(hints_of(Config)[section])[field]
    return TYPES.get(name, type(key.default)) if key.category in ("converted", "derived") else None


def read_flat(files: Sequence[tuple[Path, Mapping[Any, Any]]]) -> dict[str, Any]:
    """Our sections from GPT-NeoX's files; notices go to stderr, once, from the first rank alone."""
    data, notices = translate(collect(files))
    data["compat"] = "neox_v2"
    notices.append(COMPAT)
    if os.environ.get("RANK", "0") == "0":
        for line in notices:
            _say(f"neox: notice: {', '.join(path.name for path, _ in files)}: {line}")
    return data


@functools.cache
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def read_model(files: Sequence[tuple[Path, Mapping[Any, Any]]]) -> dict[str, Any]:
    """Our `model` section from GPT-NeoX's files, whatever the rest of them asks for."""
    found = collect(files)
    sources = {name: found[name] for name in found if name in MODEL or name in MODEL_READS}
    _check(sources)
    flat = Flat(sources)
    values = {key.text: flat.get(name) for name, key in MODEL.items() if key.category == "copied"}
    for converter in MODEL_CONVERTERS:
        values.update(converter(flat))
    nested = _nested({key: value for key, value in values.items() if value is not None})
    return dict(nested["model"])


def shown(value: Any) -> str:
    """A value for a one-line message, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _underscored(key: Any) -> str:
    return str(key).replace("-", "_")


def _is_off(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Whether a value is one of those accepted, or a DeepSpeed block that says enabled: false."""
    disabled = isinstance(value, Mapping) and value.get("enabled") is False
    return value in accepted or (disabled and {"enabled": False} in accepted)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for dotted, value in values.items():
        section, _, name = dotted.partition(".")
        out.setdefault(section, {})[name] = value
    return out
