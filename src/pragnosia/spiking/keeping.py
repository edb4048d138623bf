"""Keeping a brain: its synapses as they are, beside its file, instead of being drawn anew.

    brain.yaml            the configuration, in which `synapses: synapses.safetensors` names the file beside it
    synapses.safetensors  projections.{number}.starts | slots | weights    as synapses.py has them
                          populations.{name}.bias.{drive}                  [mV], where it is not what the seed draws

What was learned (`simulate --learn --out`) and what another simulator wrote (nir_import.py) is kept so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.spiking.configuration import BrainConfig, PopulationConfig
from pragnosia.spiking.files import FILE
from pragnosia.spiking.synapses import Synapses

TENSORS = "synapses.safetensors"
_PARTS = {"starts": torch.int32, "slots": torch.int32, "weights": torch.float32}


def written(config: BrainConfig) -> dict[str, Any]:
    """What `read_brain` makes this configuration of; plain values."""
    populations = {name: _population(one) for name, one in config.populations.items()}
    projections = [_projection(asdict(one)) for one in config.projections]
    rest = {"dt_ms": config.dt_ms, "seed": config.seed}
    kept = {} if config.synapses is None else {"synapses": Path(config.synapses).name}
    return {**rest, **kept, "populations": populations, "projections": projections}


def keep(
    folder: Path,
    config: BrainConfig,
    synapses: Mapping[int, Synapses],
    biases: Mapping[tuple[str, str], Float[Tensor, " N"]] | None = None,
) -> None:
    """Write both files into a folder that is there; `synapses` by projection, `biases` by population and drive."""
    tensors = {
        f"projections.{number}.{part}": getattr(one, part).contiguous()
        for number, one in synapses.items()
        for part in _PARTS
    }
    tensors |= {f"populations.{name}.bias.{drive}": one.clone() for (name, drive), one in (biases or {}).items()}
    save_file(tensors, str(folder / TENSORS), metadata={"format": "pt"})
    values = written(replace(config, synapses=TENSORS))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    (folder / FILE).write_text(text, encoding="utf-8")


def kept_synapses(config: BrainConfig) -> tuple[Synapses, ...]:
    """Of every projection, from the file that the configuration names. Raises ConfigError."""
    path = str(config.synapses)
    found = []
    with _opened(path) as file:
        there = set(file.keys())
        beyond = f"projections.{len(config.projections)}.slots"
        if beyond in there:
            raise ConfigError(f"{path} has more projections than the {len(config.projections)} of its brain file")
        for number in range(len(config.projections)):
            parts = {}
            for part, dtype in _PARTS.items():
                name = f"projections.{number}.{part}"
                if name not in there:
                    raise ConfigError(f"{path} has no {name}; it belongs to another brain file, or was cut short")
                parts[part] = file.get_tensor(name)
                if parts[part].dtype != dtype or parts[part].ndim != 1:
                    raise ConfigError(f"{path}: {name} is no row of {dtype}")
            found.append(Synapses(**parts))
            _check(config, number, found[-1], path)
    return tuple(found)


def kept_bias(config: BrainConfig, name: str, drive: str) -> Float[Tensor, " N"] | None:
    """A population's own currents under a drive [mV]; None where they are drawn. Raises ConfigError."""
    if config.synapses is None:
        return None
    with _opened(str(config.synapses)) as file:
        key = f"populations.{name}.bias.{drive}"
        if key not in set(file.keys()):
            return None
        bias: Tensor = file.get_tensor(key)
    size = config.populations[name].size
    if bias.dtype != torch.float32 or tuple(bias.shape) != (size,):
        raise ConfigError(f"{config.synapses}: {key} has shape {tuple(bias.shape)}, expected ({size},) of float32")
    return bias


def _opened(path: str) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}, in which the brain file says its synapses are") from error
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the synapses in {path}: {' '.join(str(error).split())}") from error


def _check(config: BrainConfig, number: int, one: Synapses, path: str) -> None:
    """Raise ConfigError for synapses that would reach outside of their populations."""
    projection = config.projections[number]
    source, target = config.populations[projection.source], config.populations[projection.target]
    where = f"{path}: projection {number} ({projection.title})"
    starts, slots = one.starts.long(), one.slots.long()
    if len(starts) != source.size + 1:
        raise ConfigError(f"{where} is of {len(starts) - 1} source neurons, {projection.source} has {source.size}")
    if int(starts[0]) != 0 or int(starts[-1]) != len(slots) or bool((starts.diff() < 0).any()):
        raise ConfigError(f"{where}: where each neuron's synapses begin does not rise from 0 to {len(slots)}")
    step = target.receptor.channels * target.size
    low, high = config.delay_steps(projection)
    if len(slots) and not (low * step <= int(slots.min()) and int(slots.max()) < (high + 1) * step):
        raise ConfigError(f"{where} reaches beyond {projection.target} or its delays of {low} to {high} steps")
    if len(one.weights) not in (1, len(slots)) or not bool(torch.isfinite(one.weights).all()):
        raise ConfigError(f"{where}: {len(one.weights)} weights for {len(slots)} synapses, or one that is no number")


def _population(one: PopulationConfig) -> dict[str, Any]:
    parts = {name: {"kind": getattr(one, name).kind, **asdict(getattr(one, name))} for name in ("neuron", "receptor")}
    drive = {name: asdict(given) for name, given in one.drive.items()}
    rest = {name: getattr(one, name) for name in ("winners", "inhibition_mv") if getattr(one, name) is not None}
    return {"size": one.size, **parts, **({"drive": drive} if drive else {}), **rest}


def _projection(values: dict[str, Any]) -> dict[str, Any]:
    low_high = values["delay_ms"]
    values["delay_ms"] = list(low_high) if isinstance(low_high, tuple) else low_high
    return {key: value for key, value in values.items() if value not in (None, "")}
