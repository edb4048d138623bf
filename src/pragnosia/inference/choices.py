"""Where a model runs, within what and in which type, as users of transformers and accelerate say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pragnosia.errors import UserError

DeviceMap = str | int | torch.device | Mapping[str, Any] | None
_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def chosen_device(device: str | torch.device | int | None, device_map: DeviceMap, *, in_budget: bool = False) -> str:
    """The one device that is meant: "cpu" where nothing is said.

    An automatic map means the GPU if there is one, within a memory budget the CPU. A map over several places is
    `spread_places`' matter. Raises UserError for what is no device.
    """
    if device_map is None:
        return "cpu" if device is None else _named(device)
    mapped = _mapped(device_map, in_budget)
    if device is not None and torch.device(_named(device)) != torch.device(mapped):
        raise UserError(f"device is {device!r} and device_map says {mapped!r}; give one of the two")
    return mapped


def chosen_dtype(dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None = None) -> torch.dtype | str:
    """A type of torch's, or "auto": as stored. `torch_dtype` is transformers' older name for the same."""
    first, second = (_dtype(given) for given in (dtype, torch_dtype))
    if "auto" not in (first, second) and first != second:
        raise UserError(f"dtype is {dtype} and torch_dtype is {torch_dtype}; give one of the two")
    return second if first == "auto" else first


def chosen_bits(eight: bool, four: bool, quantization_config: Any = None) -> str | None:
    """The format that a model is packed into as it is loaded, int8 or int4; None: it is not.

    `quantization_config` is transformers' BitsAndBytesConfig, or a dict of its fields, of which only the number of
    bits matters here. Raises UserError for wishes that exclude each other.
    """
    if quantization_config is not None:
        fields = quantization_config if isinstance(quantization_config, Mapping) else vars(quantization_config)
        told = [bool(fields.get(name, fields.get(f"_{name}"))) for name in ("load_in_8bit", "load_in_4bit")]
        if not any(told):
            raise UserError(
                "quantization_config asks for neither load_in_8bit nor load_in_4bit, the two that exist here; a model "
                "that is quantised already needs none, and `pragnosia pack` has more formats"
            )
        eight, four = eight or told[0], four or told[1]
    if eight and four:
        raise UserError("load_in_8bit and load_in_4bit exclude each other; give one")
    return "int8" if eight else "int4" if four else None


def chosen_budgets(
    memory: int | str | None, vram: int | str | None, max_memory: Mapping[Any, int | str] | None
) -> tuple[int | str | None, int | str | None]:
    """Budgets of host and GPU; accelerate's `max_memory` names them {"cpu": "4GiB", 0: "4GiB"}. Raises UserError."""
    if max_memory is None:
        return memory, vram
    if memory is not None or vram is not None:
        raise UserError("max_memory is another name of memory and vram; give one or the other")
    named = {_named(place): size for place, size in max_memory.items()}
    gpus = [place for place in named if place != "cpu"]
    if "cpu" not in named or len(gpus) > 1 or not all(place.startswith("cuda") for place in gpus):
        raise UserError(
            f"max_memory names {', '.join(named) or 'nothing'}; give the host's, and at most one GPU's beside it: "
            'max_memory={"cpu": "4GiB", 0: "4GiB"}'
        )
    return named["cpu"], named[gpus[0]] if gpus else None


def spread_places(device_map: DeviceMap) -> dict[str, str] | None:
    """A map over several places by module names: "cpu", "disk" and at most one GPU. None where it names one device.

    Raises UserError for a map that has no meaning here.
    """
    if device_map == "disk":
        device_map = {"": "disk"}
    if not isinstance(device_map, Mapping):
        return None
    places = _places(device_map)
    named = sorted(set(places.values()))
    if named in ([], ["meta"]):
        raise UserError(f'device_map names {named[0] if named else "no place"}; name "cpu", "disk" or a GPU')
    if len(named) == 1 and named != ["disk"]:
        return None
    gpus = [place for place in named if place not in ("cpu", "disk")]
    if len(gpus) > 1 or not all(place.startswith("cuda:") for place in gpus):
        raise UserError(
            f"device_map spreads the model over {', '.join(gpus)}; here it may be on one CUDA GPU, the CPU and the "
            "disk: leave the others out"
        )
    return places


def _mapped(device_map: DeviceMap, in_budget: bool) -> str:
    if isinstance(device_map, Mapping):
        (place,) = set(_places(device_map).values())
        return place
    if device_map in _AUTOMATIC:
        return "cuda" if torch.cuda.is_available() and not in_budget else "cpu"
    assert device_map is not None
    return _named(device_map)


def _places(device_map: Mapping[str, Any]) -> dict[str, str]:
    """By module name; of GPUs, the one that torch takes unless told otherwise is the first."""
    places = {str(name): _named(place) for name, place in device_map.items()}
    return {name: "cuda:0" if place == "cuda" else place for name, place in places.items()}


def _named(place: Any) -> str:
    """A number is a GPU's."""
    if isinstance(place, int) and not isinstance(place, bool):
        return f"cuda:{place}"
    if not isinstance(place, str | torch.device):
        raise UserError(f"a device is {place!r}; expected a name, as cpu or cuda:0, or a GPU's number")
    return str(place)


def _dtype(given: torch.dtype | str | None) -> torch.dtype | str:
    if given is None or given == "auto":
        return "auto"
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype is {given!r}; expected auto, float32 or bfloat16")
    return found
