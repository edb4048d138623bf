"""Sparsity: how small an input of each linear layer may be to sleep, and the directory of a model that sleeps so.

    OUT/config.json, model.safetensors, tokenizer    ours, the weights unchanged
    OUT/sparsity.json                                level, and for each layer's site its threshold and who slept

A model of ReLU neurons needs no thresholds: what is exactly zero sleeps at no cost in quality (`lay_silent`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pragnosia.checkpoints.admission import SPARSITY, read_json
from pragnosia.checkpoints.blueprint import Blueprint
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import Entry, new_directory, write_json, write_weights
from pragnosia.data import vocabulary_digest
from pragnosia.errors import CheckpointError
from pragnosia.inference.shelf import Stored
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.awake import by_input
from pragnosia.model.awake_linear import AwakeLinear
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.model.feed_forward import FeedForward
from pragnosia.model.linear import Linear

VERSION = 1
_DOWN = ".feed_forward.down.weight"


@dataclass(frozen=True)
class Site:
    """The input of one linear layer."""

    threshold: float
    """Up to this magnitude an input sleeps."""
    asleep: float
    """The share of inputs that did, on text held out."""


@dataclass(frozen=True)
class Sparsity:
    """What sparsity.json says."""

    level: float
    """The share of inputs that was to sleep."""
    tokens: int
    """On which the thresholds were found."""
    sites: Mapping[str, Site]
    """By the name of the layer."""

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {"version": VERSION, **asdict(self)}


def read_sparsity(folder: Path) -> Sparsity | None:
    """What lies beside a model; None where it is wide awake. Raises CheckpointError for a file that is none."""
    path = folder / SPARSITY
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        version = values.pop("version")
        if version != VERSION:
            raise CheckpointError(f"{path} is of version {version}, expected {VERSION}; sparsify the model again")
        sites = {name: Site(float(site["threshold"]), float(site["asleep"])) for name, site in values["sites"].items()}
        found = Sparsity(float(values["level"]), int(values["tokens"]), sites)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no list of thresholds ({error}); sparsify the model again") from error
    if not all(math.isfinite(site.threshold) and site.threshold >= 0 for site in sites.values()):
        raise CheckpointError(f"{path} names a threshold below 0 or none at all; sparsify the model again")
    return found


def sites_of(model: Cortex) -> dict[str, Linear | AwakeLinear]:
    """The linear layers whose inputs may sleep: all within the stack's layers. Units of banks sleep by themselves."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("model.layers.") and isinstance(module, Linear | AwakeLinear)
    }


@torch.no_grad()
def put_to_sleep(model: Cortex, sites: Mapping[str, Site]) -> None:
    """Put thresholds into a model, one layer after the other. Raises CheckpointError for a layer it does not have."""
    there = sites_of(model)
    for name, site in sites.items():
        module = there.get(name)
        if module is None:
            raise CheckpointError(f"{SPARSITY} names {name}, which the model does not have; sparsify the model again")
        model.set_submodule(name, AwakeLinear(module.weight, module.bias, site.threshold, site.asleep))


@torch.no_grad()
def lay_silent(model: Cortex) -> None:
    """Lay what silent neurons would say so that it need not be read: `down` of ReLU layers, neuron by neuron.

    Same numbers, same answers; a model that learns afterwards learns as before.
    """
    for module in model.modules():
        if isinstance(module, FeedForward) and module.activation.silences and isinstance(module.down, Linear):
            weight = module.down.weight  # on "meta" where it comes from disk
            weight.data = weight.data if weight.is_meta else by_input(weight.data)


def silent_layers(config: PragnosiaConfig, layers: Sequence[Sequence[Stored]]) -> list[list[Stored]]:
    """The same for layers that come from disk: their `down` is turned as it is read, so that sums run alike."""
    organ = config.feed_forward
    if organ is None or not ACTIVATIONS[organ.activation].silences:
        return [list(parts) for parts in layers]
    return [[_turned(part) if part.name.endswith(_DOWN) else part for part in parts] for parts in layers]


def _turned(part: Stored) -> Stored:
    """A matrix of plain numbers, input by input; packed rows stay as they are."""
    if part.format is not None:
        return part
    (extent,) = part.extents
    each = part.dtype.itemsize
    return replace(part, by_input=True, extents=[extent._replace(row_bytes=part.shape[1] * each, turned=each)])


def write_sparsified(print_: Blueprint, out: Path, sparsity: Sparsity) -> int:
    """A directory of ours with a model's weights and its thresholds, whole or not at all; bytes of weights.

    Raises CheckpointError where it cannot be written.
    """
    config = print_.config
    entries = [
        Entry(name, print_.dtype(name), shape, partial(print_.rules[name].to_ours, print_.source))
        for name, shape in print_.shapes.items()
    ]
    with new_directory(out) as folder:
        write_weights(folder, entries)
        carry(print_.folder, folder)
        config.architectures = ["PragnosiaForCausalLM"]
        config.dtype = config.dtype or print_.dtype("model.norm.weight")
        config.tokenizer_digest = config.tokenizer_digest or vocabulary_digest(folder)
        config.save_pretrained(folder)
        write_json(folder / SPARSITY, sparsity.to_json())
    return sum(entry.nbytes for entry in entries)
