"""The stream: a model whose units lie on disk and come when they wake, within a budget of memory.

Everything a token always needs is resident; the units share a fixed pool of slots (kernels/pool.py). A directory of
ours or of a supported family runs as it lies. The answers are those of the model in memory, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import CheckpointError
from pragnosia.inference.budget import Plan, Tuning, make_plan
from pragnosia.inference.layers import OnDisk, put_layers
from pragnosia.inference.shelf import EMBEDDING, AsItLies, Shelf, open_shelf
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import Format
from pragnosia.kernels.pool import HALF_LIFE, Extent, PooledBank, UnitPool
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex, initialise
from pragnosia.tuning.units import LoraBank, UnitsOnDisk

if TYPE_CHECKING:
    from pragnosia.model.modeling import PragnosiaForCausalLM

UNLIMITED = 1 << 60
"""A budget in which every unit has a slot."""
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
            raise CheckpointError(f"{error}") from error


def load_whole(
    folder: str | Path, dtype: torch.dtype | None = None, *, progress: Progress | None = None
) -> PragnosiaForCausalLM:
    """A directory of ours or of a supported family, whole in memory; `dtype` is what quantised numbers become.

    Raises CheckpointError or ConfigError.
    """
    from pragnosia.model.modeling import PragnosiaForCausalLM  # slow to import, and only wanted here

    shelf = AsItLies(blueprint(folder, dtype))
    with torch.device("meta"):
        model = PragnosiaForCausalLM(shelf.config)
    _fill(model, shelf.put, {name: shelf.print_.num_bytes(name) for name in shelf.print_.shapes}, progress)
    return model


def load_streamed(
    folder: str | Path, budget: int, *, context: int | None = None, progress: Progress | None = None
) -> tuple[Cortex, Plan]:
    """A model within `budget` bytes. Raises BudgetError, CheckpointError or ConfigError."""
    return build(*planned(folder, budget, context=context), progress=progress)


def planned(
    folder: str | Path, budget: int, *, context: int | None = None, tuning: Tuning | None = None
) -> tuple[Shelf, Plan]:
    """What lies in a directory, and the plan for it; nothing is loaded yet."""
    shelf = open_shelf(folder)
    return shelf, make_plan(shelf, budget, context=context, tuning=tuning)


def build(shelf: Shelf, plan: Plan, *, progress: Progress | None = None) -> tuple[Cortex, Plan]:
    """The model of a plan."""
    table = shelf.table
    layers = shelf.layers() if plan.dense else []
    names = {name: size for name, size in shelf.resident.items() if table is None or name != EMBEDDING}
    if plan.slots >= plan.num_units:  # nothing has to go: the layers are as resident as the rest
        names |= {part.name: part.num_bytes for layer in layers for part in layer}
        layers = []
    model = built(shelf.config, shelf.put, names, progress)
    if table is not None:
        model.model.embed_tokens = table
    if layers:
        put_layers(model, layers, UnitPool(len(layers), 1, plan.record, plan.slots))
    if not plan.dense:
        _put_units(model, shelf, plan)
    return model, plan


def built(
    config: PragnosiaConfig, put: Callable[[Cortex, str], None], names: Mapping[str, int], progress: Progress | None
) -> PlainCortex:
    """A model of which only these tensors are there; `put` reads one into its place."""
    model = PlainCortex.unfilled(config)
    _fill(model, put, names, progress)
    return model


def _fill(
    model: PlainCortex | PragnosiaForCausalLM,
    put: Callable[[Cortex, str], None],
    names: Mapping[str, int],
    progress: Progress | None,
) -> None:
    """Put these tensors into a model that has none."""
    done, total = 0, sum(names.values())
    for name, num_bytes in names.items():
        put(model, name)
        done += num_bytes
        if progress is not None:
            progress(done, total)
    _fill_buffers(model)
    if isinstance(model.model.embed_tokens, nn.Embedding):  # a packed table is shared as it is put
        model.tie_weights()
    model.eval()


def pool_of(model: Cortex) -> UnitPool | None:
    """The pool that a streamed model draws on."""
    pool: UnitPool | None = getattr(model, "unit_pool", None)  # exact mode's
    if pool is not None:
        return pool
    for module in model.modules():
        if isinstance(module, StreamedBank):
            return module.bank.pool
        if isinstance(module, OnDisk):
            return module.weights.layers.pool
        if isinstance(module, LoraBank) and isinstance(module.units, UnitsOnDisk):
            return module.units.bank.pool
    return None


def _put_units(model: Cortex, shelf: Shelf, plan: Plan) -> None:
    """Put a streamed bank in every sparse layer."""
    organ = shelf.config.experts
    assert organ is not None
    # a model that learns goes up and down through its layers: what was used last is used first
    half_life = 0.5 if plan.learning else HALF_LIFE
    pool = UnitPool(len(shelf.sparse), organ.num_units, plan.record, plan.slots, half_life=half_life)
    for number, name in enumerate(shelf.sparse):
        for unit in range(organ.num_units):
            extents, sums = shelf.unit(name, number, unit)
            pool.place(number, unit, [Extent(*extent) for extent in extents], sums)
        put_bank(model, name, number, pool, shelf.format)


def put_bank(model: Cortex, name: str, number: int, pool: UnitPool, entry: Format) -> None:
    """The `number`th bank of a pool, in the place of the bank of this name."""
    organ = model.config.experts
    experts: Any = model.get_submodule(name.rpartition(".")[0])
    shape = (organ.num_units, model.config.hidden_size, organ.unit_width)
    bank = PooledBank(pool, number, *shape, entry, ACTIVATIONS[organ.activation])
    old = experts.bank
    experts.bank = StreamedBank(bank, *(_data(bias) for bias in (old.up_bias, old.down_bias)))


def _data(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _fill_buffers(model: Cortex) -> None:
    """What is in no file: steering, rotary frequencies."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=torch.float32), persistent=False)
    initialise(model.model.positions, model.config)
