"""Adapters on disk as PEFT has them, so that either library reads what the other wrote.

    FOLDER/adapter_config.json          rank, alpha, what is adapted
    FOLDER/adapter_model.safetensors    base_model.model.NAME.lora_{A,B}.weight

NAME is that of a linear module. Of a parameter it is the module that holds it; the first of two parameters stands under
NAME.base_layer, for PEFT wraps the module once for each.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pragnosia.checkpoints.blueprint import described_config
from pragnosia.checkpoints.source import open_safetensors
from pragnosia.checkpoints.writer import Entry, write_json, write_safetensors
from pragnosia.errors import CheckpointError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.tuning.configuration import TARGETS, LoraConfig
from pragnosia.tuning.peft_config import CONFIG, WEIGHTS, PeftConfig, check_adapter, peft_json
from pragnosia.tuning.peft_layout import Factors, foreign, joined, laid_out, taken_in
from pragnosia.tuning.sites import Site, sites
from pragnosia.tuning.spots import Spot, family_of, fitting, readable_rules, rules_in_memory, spots

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


# ---------------------------------------------------------------------------------------------------------------------
# Out


def write_adapter(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    model_folder: str | Path,
    *,
    own_names: bool = False,
) -> None:
    """Write adapters of the model in `model_folder`, in the names of its family if there is one, else in our own.

    With `own_names` in our own in any case: for PEFT on a model directory of ours. Each file is there whole or not at
    all. Raises CheckpointError for factors that do not fit the model.
    """
    folder, described = Path(folder), described_config(model_folder)
    known = sites(described)
    adapted = _adapted(tensors, known, str(model_folder))
    family = None if own_names else family_of(Path(model_folder), described)
    rules = rules_in_memory(described, known, family)
    every = {name: spots(site, rules[name]) for name, site in known.items()}
    # PEFT takes gate_proj and its like for units wherever the model has units; as parameters it leaves them alone.
    as_parameters = family is not None and any(site.num_units for site in known.values())
    entries, ranks = [], {}
    for name, (a, b) in adapted.items():
        for spot in every[name]:
            entries += _entries(_key(spot, adapted, every), laid_out(spot, a, b))
            if a.shape[-2] != config.rank:
                ranks[_target(spot, as_parameters)] = a.shape[-2]
    wanted = [spot for name in adapted for spot in every[name]]
    there = [spot for found in every.values() for spot in found]
    names = {_target(spot, as_parameters) for spot in there}
    modules, parameters = (
        _shortened(
            {_target(spot, as_parameters) for spot in wanted if _is_parameter(spot, as_parameters) == kind},
            names,
            words,
        )
        for kind, words in ((False, 1), (True, 2))
    )
    values = peft_json(config, ranks, modules, parameters, str(model_folder))
    folder.mkdir(parents=True, exist_ok=True)
    _replaced(folder / WEIGHTS, lambda path: write_safetensors(path, entries))
    _replaced(folder / CONFIG, lambda path: write_json(path, values))


def _adapted(tensors: Mapping[str, Tensor], known: Mapping[str, Site], model: str) -> dict[str, Factors]:
    """The factors of each adapted site."""
    found: dict[str, Factors] = {}
    for name, site in known.items():
        if site.a not in tensors and site.b not in tensors:
            continue
        for factor in (site.a, site.b):
            if factor not in tensors:
                raise CheckpointError(f"the adapter has no {factor}, which belongs to its other half")
        a, b = tensors[site.a], tensors[site.b]
        for factor, tensor, shape in zip((site.a, site.b), (a, b), site.factor_shapes(a.shape[-2]), strict=True):
            if tuple(tensor.shape) != shape:
                raise foreign(f"{factor} has shape {tuple(tensor.shape)}, {model} calls for {shape}")
        found[name] = a, b
    if not found:
        raise CheckpointError(f"the adapter adapts nothing that {model} has")
    left = tensors.keys() - {factor for name in found for factor in (known[name].a, known[name].b)}
    if left:
        raise foreign(f"{model} has no place for {min(left)}")
    return found


def _key(spot: Spot, adapted: Iterable[str], every: Mapping[str, list[Spot]]) -> str:
    """The module under which PEFT keeps a spot's factors: it wraps a module once for each of its parameters."""
    if not spot.is_parameter:
        return spot.name
    wrapped = [other.name for name in adapted for other in every[name] if other.container == spot.container]
    later = len(wrapped) - 1 - wrapped.index(spot.name)
    return ".".join([spot.container, *["base_layer"] * later])


def _is_parameter(spot: Spot, as_parameters: bool) -> bool:
    return spot.is_parameter or (as_parameters and ".mlp." in spot.name)


def _target(spot: Spot, as_parameters: bool) -> str:
    """The name PEFT is given to find a spot by."""
    return f"{spot.name}.weight" if _is_parameter(spot, as_parameters) and not spot.is_parameter else spot.name


def _shortened(wanted: set[str], there: set[str], least: int) -> set[str]:
    """Ends of names, of at least so many words, where they pick out the same: `q_proj` for that of every layer."""
    short: set[str] = set()
    for name in wanted:
        words = name.split(".")
        ends = (".".join(words[-count:]) for count in range(least, len(words)))
        fits = (end for end in ends if all(other in wanted for other in there if other.endswith(f".{end}")))
        short.add(next(fits, name))
    return short


def _entries(key: str, there: Factors) -> list[Entry]:
    """What is written under a key."""
    names = (f"base_model.model.{key}.lora_{letter}.weight" for letter in "AB")
    return [
        Entry(name, torch.float32, tuple(tensor.shape), partial(_alone, tensor))
        for name, tensor in zip(names, there, strict=True)
    ]


def _alone(tensor: Tensor) -> Iterator[Tensor]:
    yield tensor.detach().float().cpu().contiguous()


def _replaced(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, then take its place."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial_path)
        partial_path.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial_path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# In


def read_adapter(folder: str | Path, model: str | Path | PragnosiaConfig) -> tuple[dict[str, Tensor], LoraConfig]:
    """Factors and configuration of an adapter of a model, whichever library wrote it, in whichever of its names.

    Sites that are not adapted have no tensors. Ranks may differ between sites, the scale does not: what the file has of
    other scales is moved into b. Raises CheckpointError for another model's adapter, one that is damaged, or one that
    computes something else than W + scale B A.
    """
    folder, peft = Path(folder), check_adapter(folder)
    described = model if isinstance(model, PragnosiaConfig) else described_config(model)
    family = fitting(described) if isinstance(model, PragnosiaConfig) else family_of(Path(model), described)
    known = sites(described)
    config = LoraConfig(rank=peft.rank, alpha=peft.alpha * (math.sqrt(peft.rank) if peft.rslora else 1))
    rules = readable_rules(described, known, family)
    places = _Map((spot for rule in rules for spot in spots(known[rule.ours], rule)), peft)
    found: dict[str, list[tuple[Spot, Factors]]] = {}
    for key, factors in _pairs(folder / WEIGHTS).items():
        spot = places.spot(key)
        called = f"{spot.name}.weight" if peft.targets_parameter(f"{spot.name}.weight") else spot.name
        a, b = taken_in(key, spot, factors, peft.rank_of(called), turned=peft.parameters_lie_turned)
        change = peft.scale_of(called) / config.scale
        found.setdefault(spot.site.tensor, []).append((spot, (a, b if math.isclose(change, 1) else b * change)))
    tensors: dict[str, Tensor] = {}
    for name, site in known.items():
        if name in found:
            tensors[site.a], tensors[site.b] = joined(site, found[name])
    targets = tuple(target for target in TARGETS if any(known[name].target == target for name in found))
    return tensors, LoraConfig(rank=config.rank, alpha=config.alpha, targets=targets)


def _pairs(path: Path) -> dict[str, Factors]:
    """A and B by the name they stand under, in fp32."""
    halves: dict[str, dict[str, Tensor]] = {}
    file = open_safetensors(path)
    for name in file.keys():  # noqa: SIM118  (not a mapping)
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{path}: {name} is no low-rank factor of a linear layer or a bank; train without it")
        tensor = file.get_tensor(name).float()
        if tensor.ndim != 2 or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: {name} is no matrix of finite numbers; the adapter is broken")
        halves.setdefault(match[1], {})[match[2]] = tensor
    for key, pair in halves.items():
        if len(pair) != 2:
            raise CheckpointError(f"{path}: {key} has only one of lora_A and lora_B; the adapter is incomplete")
    if not halves:
        raise CheckpointError(f"{path} holds no adapters")
    return {key: (pair["A"], pair["B"]) for key, pair in halves.items()}


class _Map:
    """What stands under which key."""

    def __init__(self, known: Iterable[Spot], peft: PeftConfig) -> None:
        self._modules: dict[str, Spot] = {}
        self._parameters: dict[str, list[Spot]] = {}
        for spot in dict.fromkeys(known):  # a layout may come from two rules
            if not spot.is_parameter:
                self._modules[spot.name] = spot
            elif peft.targets_parameter(spot.name):
                self._parameters.setdefault(spot.container, []).append(spot)

    def spot(self, key: str) -> Spot:
        """Raises CheckpointError for a key that means nothing in this model."""
        if key in self._modules:
            return self._modules[key]
        container = key.removesuffix(".base_layer")
        targeted = self._parameters.get(container, [])
        if targeted and (key == container or len(targeted) == 2):
            return targeted[-1] if key == container else targeted[0]
        raise foreign(f"it adapts {key}, where this model has no matrix we adapt")
