"""Development: a model that grows up has fewer layers at first, and more or fewer units awake than when it is adult.

    layers of a stage <= layers of the next <= ... = layers of the adult

What a configuration describes is the adult; `young` is the shape that training begins with. Layers are added by
`growth.deepen`, which keeps the function; `set_awake` changes how many units a token wakes, which does not.
Gradual depth: Du et al. 2024, arXiv 2405.15319; sparse to dense and back: Sukhbaatar et al. 2023, arXiv 2310.07096.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pragnosia.errors import ConfigError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex

_PLACED = ("exits", "gates", "fleeting", "working_memory", "workspace")
"""Organs that stand in layers with a number."""


def young(adult: PragnosiaConfig, layers: int, awake: int | None = None) -> PragnosiaConfig:
    """The adult's configuration with so many layers, and so many units awake. Raises ConfigError."""
    values = adult.to_dict()
    if layers != adult.num_hidden_layers:
        check_growable(adult)
        values["num_hidden_layers"] = layers
        for name in ("mixers", "feed_forwards", "layer_types"):
            values[name] = values[name][:layers]
    if awake is not None:
        check_awake(adult, awake)
        name = "experts" if adult.columns is None else "columns"
        values[name]["thalamus"]["num_awake"] = awake
    made: PragnosiaConfig = PragnosiaConfig.from_dict(values)
    return made


def check_growable(adult: PragnosiaConfig) -> None:
    """Raise ConfigError unless all layers are of one kind: which of them a young model has would be a guess."""
    kinds: Any
    for name in ("mixers", "feed_forwards", "layer_types"):
        kinds = getattr(adult, name)
        if len(set(kinds)) > 1:
            raise ConfigError(
                f"stages cannot add layers to this model: {name} names {', '.join(dict.fromkeys(kinds))}; "
                "layers of one kind can be added, or give every stage all layers"
            )
    for name in _PLACED:
        if getattr(getattr(adult, name), "layers", None):
            raise ConfigError(
                f"stages cannot add layers to this model: {name}.layers names layers by number, which would change; "
                f"leave {name} out, or give every stage all layers"
            )


def check_awake(adult: PragnosiaConfig, awake: int) -> None:
    """Raise ConfigError unless so many units can be awake."""
    organ = adult.units
    if organ is None or not adult.sparse_layers:
        raise ConfigError(f"a stage wakes {awake} units, and the model is dense; leave awake out")
    if not 1 <= awake <= organ.num_units:
        raise ConfigError(
            f"a stage wakes {awake} units a token, the model has {organ.num_units}; give 1 to all of them"
        )


def awake_of(config: PragnosiaConfig) -> int | None:
    """Units that a token wakes in a layer; None for a dense model."""
    return None if config.units is None or not config.sparse_layers else config.units.thalamus.num_awake


def set_awake(model: Cortex, awake: int) -> None:
    """Let every token wake so many units from now on, in the model and its configuration. Raises ConfigError."""
    config = model.config
    check_awake(config, awake)
    name = "experts" if config.columns is None else "columns"
    organ = getattr(config, name)
    organ = replace(organ, thalamus=replace(organ.thalamus, num_awake=awake))
    for held in (config, model.model.config):
        setattr(held, name, organ)
    for layer in model.experts():
        layer.thalamus.organ = organ.thalamus
        if hasattr(layer.thalamus, "max_awake"):
            layer.thalamus.max_awake = min(organ.num_units, organ.thalamus.max_awake or 2 * awake)
