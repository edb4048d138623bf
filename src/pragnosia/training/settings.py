"""Settings: a run's YAML with `--set a.b=c` applied, as plain values; what they mean stands in configuration.py.

torch is not loaded, so that a missing file or a slip in `--set` is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pragnosia.errors import ConfigError

# Two ways to say the same: an override of one takes the other's place.
_EITHER = (("steps", "tokens"), ("tokens", "steps"))


def read_settings(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Values from a YAML file or a mapping, with `key.key=value` overrides. Raises ConfigError."""
    values = _load(Path(source)) if isinstance(source, Path | str) else _copied(source)
    overridden = {_override(values, override) for override in overrides}
    for given, other in _EITHER:
        if given in overridden and other not in overridden and values[given] is not None:
            values.pop(other, None)
    return values


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected sections such as model, data")
    return values


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _override(values: dict[str, Any], override: str) -> str:
    """Set one nested key in place; its path."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"cannot read the override {override!r}; write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value of {override!r}: it is not YAML") from error
    *sections, key = path.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"cannot set {path!r}: {section!r} is {inner!r}, not a section")
        values = inner
    values[key] = value
    return path
