"""The table of families, and their config.json in both directions: nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pragnosia.checkpoints.admission import FAMILIES, unsupported
from pragnosia.checkpoints.family import Family
from pragnosia.errors import CheckpointError, ConfigError, PragnosiaError
from pragnosia.model.configuration import PragnosiaConfig

# Bookkeeping that every config.json may carry, and older names that transformers folds into newer ones.
_BOOKKEEPING = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "is_llama_config",
    "model_type",
    "name_or_path",
    "output_attentions",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    *GenerationConfig().to_dict(),
}
# Off switches: harmless as long as they are off.
_SWITCHES = {"rope_interleaved", "use_mrope"}
# Parts of our configuration that do not change what a model computes.
_NO_FUNCTION = {
    "_name_or_path",
    "architectures",
    "dtype",
    "exits",
    "initializer_range",
    "quantization_config",
    "tokenizer_digest",
    "transformers_version",
    "use_cache",
}


def family_named(name: str) -> Family:
    """The family of that `model_type`. Raises UnsupportedArchitectureError that lists what there is."""
    if name not in FAMILIES:
        raise unsupported(f"model family {name!r}")
    module, _, attribute = FAMILIES[name].partition(":")
    family: Family = getattr(import_module(module), attribute)()
    return family


def read_family(config_json: Mapping[str, Any]) -> Family:
    """The family a config.json belongs to. Raises UnsupportedArchitectureError that names it."""
    kind, listed = str(config_json.get("model_type")), config_json.get("architectures") or ()
    architecture = next(iter(listed), None) if isinstance(listed, list) else listed
    if kind in FAMILIES:
        family = family_named(kind)
        if not architecture or architecture == family.architecture:
            return family
    raise unsupported(f"architecture {architecture or kind} (model_type {kind})")


def read_config(config_json: Mapping[str, Any], origin: str = "config.json") -> PragnosiaConfig:
    """Our configuration of the model a config.json describes. Raises ConfigError for a field nobody knows."""
    family = read_family(config_json)
    _check_fields(origin, family, config_json)
    try:
        # A copy, because transformers edits what it is given.
        return family.read(CONFIG_MAPPING[family.name].from_dict(json.loads(json.dumps(config_json))))
    except (StrictDataclassError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{origin}: {reason}") from error


def write_config(family: Family, config: PragnosiaConfig, origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A config.json of `family` that describes `config`: `origin`, where the model came from, if it still does.

    Raises CheckpointError if the family cannot express the model, and says in what.
    """
    if origin is not None and not _differences(config, read_config(origin)):
        return {key: value for key, value in origin.items() if key != "quantization_config"}
    written, different = _attempt(family, config)
    if different:
        raise CheckpointError(f"{family.name} cannot express this model: {'; '.join(different)}")
    return written


def fitting_family(config: PragnosiaConfig) -> Family:
    """The first family that can express `config`. Raises CheckpointError that says what the nearest one lacks."""
    lacking: list[tuple[bool, int, str]] = []
    for name in FAMILIES:
        family = family_named(name)
        try:
            _, different = _attempt(family, config)
        except CheckpointError as error:  # a model of another kind altogether: never the nearest, if there is another
            lacking.append((True, 0, str(error)))
            continue
        if not different:
            return family
        lacking.append((False, len(different), f"{name}, where {'; '.join(different)}"))
    raise CheckpointError(
        "no family can express this model (only one that computes as a family's models do, as imported ones, can be "
        f"exported); the nearest is {min(lacking)[2]}"
    )


def _attempt(family: Family, config: PragnosiaConfig) -> tuple[dict[str, Any], list[str]]:
    """A config.json of `family`, and where it computes otherwise than `config`. Raises CheckpointError if none is."""
    try:
        source: PreTrainedConfig = CONFIG_MAPPING[family.name](**family.write(config))
        written: dict[str, Any] = json.loads(source.to_json_string()) | {"architectures": [family.architecture]}
        return written, _differences(config, read_config(written))
    except (PragnosiaError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{family.name} cannot express this model: {reason}") from error


def _differences(ours: PragnosiaConfig, theirs: PragnosiaConfig) -> list[str]:
    """Where two configurations compute differently, in words."""
    left, right = _function(ours.to_dict()), _function(theirs.to_dict())
    return [
        f"{key} is {left.get(key)!r}, there {right.get(key)!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _function(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What computes, flattened to dotted keys: without bookkeeping and labels."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in _NO_FUNCTION or f"{path}{key}" == "experts.lobes":
            continue
        flat |= _function(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _check_fields(origin: str, family: Family, config_json: Mapping[str, Any]) -> None:
    """Raises ConfigError for a field that is set and that neither transformers nor we know."""
    theirs = CONFIG_MAPPING[family.name]
    known = {entry.name for entry in fields(theirs)} | {*theirs.attribute_map, *theirs.attribute_map.values()}
    known |= _BOOKKEEPING | family.aliases
    for key, value in config_json.items():
        if key == "quantization_config" and value:
            method = value.get("quant_method") if isinstance(value, Mapping) else value
            if method not in family.quantisations:
                raise ConfigError(f"{origin}: the weights are quantised ({method}); dequantise them first")
        elif key not in known and value is not None and not (key in _SWITCHES and value is False):
            raise ConfigError(
                f"{origin}: {family.name} has no field {key!r} ({value!r}) that we know; it may change the model"
            )
