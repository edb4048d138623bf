"""The stream: a model whose units lie on disk and come when they wake, within a budget of memory.

Everything a token always needs is resident; the units share a fixed pool of slots (kernels/pool.py). A directory of
ours or of a supported family runs as it lies. The answers are those of the model in memory, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.blueprint import Blueprint, blueprint
from pragnosia.errors import CheckpointError
from pragnosia.inference.budget import Plan, is_streamed, make_plan
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import plain_format
from pragnosia.kernels.pool import Extent, PooledBank, UnitPool
from pragnosia.model.experts import Experts
from pragnosia.model.modeling import PragnosiaForCausalLM

Progress = Callable[[int, int], None]
"""Called with bytes loaded so far, and in all."""


class StreamedBank(nn.Module):
    """Stands where a `Bank` stands; its units lie on disk. Biases are small and resident."""

    up_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(self, bank: PooledBank, up_bias: Tensor | None, down_bias: Tensor | None) -> None:
        super().__init__()
        self.bank, self.activation, self.num_units = bank, bank.activation.name, bank.num_units
        self.register_buffer("up_bias", up_bias)
        self.register_buffer("down_bias", down_bias)

    def forward(self, x: Tensor, units: Tensor, strengths: Tensor) -> Tensor:
        """As `Bank.forward`. Raises CheckpointError where a unit cannot be read."""
        try:
            return self.bank(x, units, strengths, self.up_bias, self.down_bias)
        except OSError as error:
            raise CheckpointError(f"{error}; what was said so far stays") from error


def load_foreign(folder: str | Path, *, progress: Progress | None = None) -> PragnosiaForCausalLM:
    """A directory of ours or of a supported family, whole in memory. Raises CheckpointError or ConfigError."""
    print_ = blueprint(folder)
    return _built(print_, list(print_.shapes), progress)


def load_streamed(
    folder: str | Path, budget: int, *, context: int | None = None, progress: Progress | None = None
) -> tuple[PragnosiaForCausalLM, Plan]:
    """A model within `budget` bytes. Raises BudgetError, CheckpointError or ConfigError."""
    return build(*planned(folder, budget, context=context), progress=progress)


def planned(folder: str | Path, budget: int, *, context: int | None = None) -> tuple[Blueprint, Plan]:
    """What lies in a directory, and the plan for it; nothing is loaded yet."""
    print_ = blueprint(folder)
    return print_, make_plan(print_, budget, context=context)


def build(print_: Blueprint, plan: Plan, *, progress: Progress | None = None) -> tuple[PragnosiaForCausalLM, Plan]:
    """The model of a plan."""
    model = _built(print_, [name for name in print_.shapes if not is_streamed(name)], progress)
    _attach(model, print_, plan)
    return model, plan


def _built(print_: Blueprint, names: list[str], progress: Progress | None) -> PragnosiaForCausalLM:
    """A model of which only these tensors are there."""
    with torch.device("meta"):
        model = PragnosiaForCausalLM(print_.config)
    done, total = 0, sum(print_.num_bytes(name) for name in names)
    for name in names:
        tensor = print_.read(name)
        _put(model, name, tensor)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    _fill_buffers(model)
    model.tie_weights()
    return model.eval()  # type: ignore[no-any-return,no-untyped-call]


def pool_of(model: PragnosiaForCausalLM) -> UnitPool | None:
    """The pool that a streamed model draws on."""
    return next((m.bank.pool for m in model.modules() if isinstance(m, StreamedBank)), None)


def _attach(model: PragnosiaForCausalLM, print_: Blueprint, plan: Plan) -> None:
    """Put a streamed bank in every sparse layer."""
    layers: list[Any] = list(model.model.layers)
    sparse = [(f"model.layers.{i}.feed_forward.bank", layer.feed_forward) for i, layer in enumerate(layers)]
    sparse = [(name, organ) for name, organ in sparse if isinstance(organ, Experts)]
    units = sparse[0][1].bank.num_units
    pool = UnitPool(len(sparse), units, plan.record, plan.slots)
    for number, (name, experts) in enumerate(sparse):
        old: Any = experts.bank
        for unit in range(units):
            extents = [*print_.unit(f"{name}.up", unit), *print_.unit(f"{name}.down", unit)]
            pool.place(number, unit, [Extent(*extent) for extent in extents])
        width, unit_width = old.down.shape[1:]
        stored, activation = plain_format(print_.dtype(f"{name}.up")), ACTIVATIONS[old.activation]
        bank = PooledBank(pool, number, units, width, unit_width, stored, activation)
        experts.bank = StreamedBank(bank, *(_data(bias) for bias in (old.up_bias, old.down_bias)))


def _data(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """A parameter or buffer, in the place of its shadow."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    if attribute in module._parameters:
        module.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
    else:
        module.register_buffer(attribute, tensor)


def _fill_buffers(model: PragnosiaForCausalLM) -> None:
    """What is in no file: steering, rotary frequencies."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=torch.float32), persistent=False)
    model._init_weights(model.model.positions)
