"""LoRA: a frozen model learns through small additions of low rank.

    y = W x + s B A x          A (r, in) starts at random, B (out, r) at 0, s = alpha / r

`attach` puts adapters into a model, in memory or streamed; its names are those of the places they stand in, so that
`adapters(model)` is all that was learned. Hu et al. 2022, arXiv 2106.09685, eq. 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.model.attention import Attention
from pragnosia.model.bank import Bank
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex
from pragnosia.model.dendrites import Dendrites
from pragnosia.model.feed_forward import FeedForward
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.units import FrozenUnits, LoraBank, UnitsInMemory, UnitsOnDisk, low_rank

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@final
class LoraLinear(nn.Module):
    """Stands where a linear layer stands, plain or packed."""

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank))
        nn.init.uniform_(self.lora_a, -(self.in_features**-0.5), self.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        y: Tensor = self.base(x)
        return y + low_rank(x, self.lora_a, self.lora_b, self.scale)


def attach(model: Cortex, config: LoraConfig, device: torch.device | None = None) -> dict[str, nn.Parameter]:
    """Freeze a model and give it adapters, on `device`; all of them by name.

    They begin as random as on the host. Raises ConfigError where nothing could have one.
    """
    model.requires_grad_(requires_grad=False)
    for name, linear in list(_linears(model, config)):
        model.set_submodule(name, _moved(LoraLinear(linear, config.rank, config.scale), device))
    if "units" in config.targets:
        _attach_units(model, config, device)
    found = adapters(model)
    if not found:
        raise ConfigError(f"this model has no {' or '.join(config.targets)} to adapt; choose other --targets")
    return found


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Everything that was attached, by the name of its place (what is `recomputed` stands a step further in)."""
    return {
        f"{path.replace('.piece', '')}.{name}": weight
        for path, module in model.named_modules()
        if isinstance(module, LoraLinear | LoraBank)
        for name, weight in module.named_parameters(recurse=False)
    }


@torch.no_grad()
def load_adapters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill what was attached. Raises CheckpointError where it does not fit."""
    own = adapters(model)
    if own.keys() != tensors.keys():
        odd = min(own.keys() ^ tensors.keys())
        raise CheckpointError(f"the adapter is of another model or other targets (first difference: {odd})")
    for name, weight in own.items():
        if weight.shape != tensors[name].shape:
            raise CheckpointError(
                f"the adapter's {name} has shape {tuple(tensors[name].shape)}, this model's {tuple(weight.shape)}; "
                "it belongs to another model"
            )
        weight.copy_(tensors[name])


def attach_tensors(model: Cortex, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Give a model the adapters of a file, of whatever ranks, at the places it names and no others."""
    chosen = {name.rpartition(".")[0] for name in tensors}
    model.requires_grad_(requires_grad=False)
    for name, linear in list(_linears(model, config)):
        place = name.replace(".piece", "")
        if place in chosen:
            model.set_submodule(name, LoraLinear(linear, 1, config.scale))
    if "units" in config.targets:
        _attach_units(model, config)
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraBank):
            place = path.replace(".piece", "")
            for name, weight in module.named_parameters(recurse=False):
                learned = tensors.get(f"{place}.{name}")
                # a file may adapt one of a bank's two matrices: the other's adapter adds nothing
                weight.data = torch.zeros_like(weight) if learned is None else learned


def count_parameters(shape: PragnosiaConfig, config: LoraConfig) -> int:
    """Numbers that adapters of a model have."""
    with torch.device("meta"):
        attached = attach(PlainCortex.unfilled(shape), config)
    return sum(weight.numel() for weight in attached.values())


def _linears(model: Cortex, config: LoraConfig) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers to adapt, with their names."""
    for path, module in model.named_modules():
        # dendrites are many matrices of which few speak, and have no names in PEFT's format: they stay as they are
        if isinstance(module, Attention) and "attention" in config.targets and not isinstance(module.v_proj, Dendrites):
            yield from ((f"{path}.{name}", getattr(module, name)) for name in _PROJECTIONS)
        if isinstance(module, FeedForward) and "dense" in config.targets:
            yield from ((f"{path}.{name}", getattr(module, name)) for name in ("up", "down"))


def _moved(module: nn.Module, device: torch.device | None) -> nn.Module:
    """What learns of a module, taken to a device as soon as it is made: the host may not have room for all."""
    for weight in module.parameters(recurse=False) if device is not None else ():
        weight.data = weight.data.to(device)
    return module


def _frozen(bank: Any) -> FrozenUnits:
    """A bank's units, wherever they lie."""
    if isinstance(bank, Bank):
        return UnitsInMemory(bank)
    if hasattr(bank, "units"):  # on an accelerator, which knows its own way to them
        on_device: FrozenUnits = bank.units
        return on_device
    return UnitsOnDisk(bank.bank)


def _attach_units(model: Cortex, config: LoraConfig, device: torch.device | None = None) -> None:
    attached: list[LoraBank] = []
    for experts in model.experts():
        bank: Any = experts.bank
        units = _frozen(bank)
        up_bias, down_bias = (None if bias is None else bias.detach() for bias in (bank.up_bias, bank.down_bias))
        adapted: Any = _moved(LoraBank(units, up_bias, down_bias, config.rank, config.scale), device)
        experts.bank = adapted
        attached.append(adapted)
    for former, latter in pairwise(attached):
        former.after, latter.before = (latter,), (former,)
