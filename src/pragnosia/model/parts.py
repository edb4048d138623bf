"""The tables: name -> mixer, feed-forward, router. `module:Class` names code outside the tree.

A mixer is made by `Class(config, layer)`, answers `forward(x, memory, moment) -> (y, memory)` and knows its
`fresh_memory(batch, room, like)`. A feed-forward is made by `Class(config, layer)` and answers
`forward(x, moment) -> (y, routing or None)`. A router is a `thalamus.Thalamus`, made by `Class(width, units, organ)`.
docs/extend.md adds one in a single file.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pragnosia.errors import ConfigError, unknown_name

MIXERS = {
    "attention": "pragnosia.model.attention:Attention",
    "dendrites": "pragnosia.model.dendrites:DendriticAttention",
}
FEED_FORWARDS = {
    "dense": "pragnosia.model.feed_forward:FeedForward",
    "experts": "pragnosia.model.experts:Experts",
    "columns": "pragnosia.model.columns:Columns",
    "memory": "pragnosia.model.hippocampus:Hippocampus",
    "spiking": "pragnosia.model.spiking_feed_forward:SpikingFeedForward",
}
THALAMI = {
    "softmax": "pragnosia.model.thalamus:SoftmaxThalamus",
    "sigmoid": "pragnosia.model.thalamus:SigmoidThalamus",
    "threshold": "pragnosia.model.thalamus:ThresholdThalamus",
}


def part(table: Mapping[str, str], name: str) -> Any:
    """The class behind a table's name or a `module:Class`. Raises ConfigError that says what there is."""
    target = table.get(name, name)
    module, separator, attribute = target.partition(":")
    if not separator:
        raise ConfigError(unknown_name("part", name, table) + "; or write module:Class")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot load part {name!r}: {error}") from error
