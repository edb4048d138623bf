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
from pragnosia.inference.accelerator import AcceleratorBank
from pragnosia.inference.budget import Tuning, make_plan
from pragnosia.inference.device_layers import LayersOnDevice
from pragnosia.inference.device_slots import DeviceSlots, SlotStats
from pragnosia.inference.device_units import UnitsOnDevice
from pragnosia.inference.far_table import RowsOnDisk
from pragnosia.inference.layers import Layers, LayersOnDisk, OnDisk, put_layers
from pragnosia.inference.plan import Plan
from pragnosia.inference.shelf import EMBEDDING, AsItLies, Shelf, open_shelf
from pragnosia.inference.sizes import ROWS
from pragnosia.inference.sparsity import lay_silent, silent_layers
from pragnosia.inference.split import HOST, cross_over, layer_of
from pragnosia.inference.vram import accelerator
from pragnosia.kernels.activations import ACTIVATIONS, Activation
from pragnosia.kernels.far import FarRows
from pragnosia.kernels.formats import Format
from pragnosia.kernels.pool import HALF_LIFE, PooledBank, UnitPool
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex, initialise
from pragnosia.tuning.units import LoraBank, UnitsOnDisk

if TYPE_CHECKING:
    from pragnosia.model.modeling import PragnosiaForCausalLM

UNLIMITED = 1 << 60
"""A budget in which every unit has a slot."""
Progress = Callable[[int, int], None]
"""Called with bytes loaded so far, and in all."""
Where = Callable[[str], torch.device]
"""By the name of a tensor or of a module that has some."""


class StreamedBank(nn.Module):
    """Stands where a `Bank` stands; its units lie on disk. Biases are small and resident."""

    up_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(self, bank: PooledBank, up_bias: Tensor | None, down_bias: Tensor | None) -> None:
        super().__init__()
        self.bank, self.activation, self.num_units = bank, bank.activation.name, bank.num_units
        self.num_speaking = bank.activation.num_speaking
        self.register_buffer("up_bias", up_bias)
        self.register_buffer("down_bias", down_bias)

    @property
    def neurons(self) -> Activation:
        """As of a `Bank`."""
        return self.bank.activation

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


def load_streamed(  # noqa: PLR0913  what a plan is made of, and what for
    folder: str | Path,
    budget: int,
    *,
    context: int | None = None,
    progress: Progress | None = None,
    vram: int = 0,
    device: torch.device | None = None,
    reserve: int = 0,
    speaks: bool = False,
) -> tuple[Cortex, Plan]:
    """A model within `budget` bytes of host memory and `vram` bytes of a device, by default the GPU that is there.

    `reserve` bytes of the budget are for what the caller does with it; `speaks` as for `build`.

    Raises BudgetError, CheckpointError or ConfigError.
    """
    if vram and device is None:
        device = accelerator()
    shelf = open_shelf(folder)
    plan = make_plan(shelf, budget, context=context, vram=vram, device=device, reserve=reserve)
    return build(shelf, plan, progress=progress, device=device, speaks=speaks)


def planned(
    folder: str | Path, budget: int, *, context: int | None = None, tuning: Tuning | None = None
) -> tuple[Shelf, Plan]:
    """What lies in a directory, and the plan for it; nothing is loaded yet."""
    shelf = open_shelf(folder)
    return shelf, make_plan(shelf, budget, context=context, tuning=tuning)


def build(
    shelf: Shelf,
    plan: Plan,
    *,
    progress: Progress | None = None,
    device: torch.device | None = None,
    speaks: bool = False,
) -> tuple[Cortex, Plan]:
    """The model of a plan; `device` is the accelerator of a plan that has one.

    One that `speaks`, and learns nothing, lies on the CPU as a model does that is loaded whole to speak.
    """
    device = device if plan.vram and device is not None else torch.device("cpu")
    table = shelf.table
    layers = shelf.layers() if plan.dense else []
    lies_silent = speaks and not plan.vram
    away = ({EMBEDDING} if table is not None else set()) | ({ROWS} if plan.rows_stay else set())
    names = {name: size for name, size in shelf.resident.items() if name not in away}
    slots = plan.vram_slots if plan.vram else plan.slots
    if slots >= plan.num_units:  # nothing has to go: the layers are as resident as the rest
        names |= {part.name: part.num_bytes for layer in layers for part in layer}
        layers = []
    border = shelf.config.num_hidden_layers - plan.host.count
    model = built(shelf.config, shelf.put, names, progress, lambda name: HOST if _beyond(border, name) else device)
    if plan.host.count:
        cross_over(model, border, device)
    if table is not None:
        table.device = device
        model.model.embed_tokens = table
    if plan.rows_stay:
        rows = shelf.rows
        assert rows is not None
        model.model.hippocampus = RowsOnDisk(rows, plan.row_slots)
    if lies_silent:
        lay_silent(model)
        layers = silent_layers(shelf.config, layers)
    if layers:
        pool = UnitPool(len(layers), 1, plan.record, plan.slots)
        on_device = LayersOnDevice(pool, layers, plan.vram_slots, device) if plan.vram else None
        store: Layers = on_device or LayersOnDisk(pool, layers)
        put_layers(model, layers, store)
    if not plan.dense:
        _put_units(model, shelf, plan, device)
    return model, plan


def built(
    config: PragnosiaConfig,
    put: Callable[[Cortex, str], None],
    names: Mapping[str, int],
    progress: Progress | None,
    where: Where | None = None,
) -> PlainCortex:
    """A model of which only these tensors are there, each `where` it shall be; `put` reads one into its place."""
    model = PlainCortex.unfilled(config)
    _fill(model, put, names, progress, where)
    return model


def _fill(
    model: PlainCortex | PragnosiaForCausalLM,
    put: Callable[[Cortex, str], None],
    names: Mapping[str, int],
    progress: Progress | None,
    where: Where | None = None,
) -> None:
    """Put these tensors into a model that has none, each `where` it shall be."""
    done, total = 0, sum(names.values())
    for name, num_bytes in names.items():
        put(model, name)
        if where is not None:  # at once: the host may not have room for all
            _move(model, name, where(name))
        done += num_bytes
        if progress is not None:
            progress(done, total)
    _fill_buffers(model)
    if where is not None:
        for owner, _ in list(model.named_modules()):  # what was in no file
            _move(model, f"{owner}.", where(owner))
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
        if isinstance(module, AcceleratorBank):
            return module.slots.pool
        if isinstance(module, OnDisk):
            return module.weights.layers.pool
        if isinstance(module, LoraBank) and isinstance(module.units, UnitsOnDisk | UnitsOnDevice):
            return module.units.bank.pool
    return None


def far_rows(model: Cortex) -> FarRows | None:
    """The rows of long-term memory that lie on disk."""
    table: Any = getattr(getattr(model, "model", None), "hippocampus", None)  # exact mode's model has none
    return table.far if isinstance(table, RowsOnDisk) else None


def slots_of(model: Cortex) -> SlotStats | None:
    """What the slots of a model's units on an accelerator did."""
    units = (module.units for module in model.modules() if isinstance(module, AcceleratorBank | LoraBank))
    return next((each.slots.stats() for each in units if isinstance(each, UnitsOnDevice)), None)


def _put_units(model: Cortex, shelf: Shelf, plan: Plan, device: torch.device) -> None:
    """Put a streamed bank in every sparse layer."""
    organ = shelf.config.units
    assert organ is not None
    # a model that learns goes up and down through its layers: what was used last is used first
    half_life = 0.5 if plan.learning else HALF_LIFE
    counts = len(shelf.sparse), organ.num_units
    pool = UnitPool(*counts, plan.record, plan.slots, half_life=half_life)
    slots = DeviceSlots(pool, *counts, plan.vram_slots, device, half_life=half_life) if plan.vram else None
    border = shelf.config.num_hidden_layers - plan.host.count
    for number, name in enumerate(shelf.sparse):
        for unit in range(organ.num_units):
            extents, sums = shelf.unit(name, number, unit)
            pool.place(number, unit, extents, sums)
        put_bank(model, name, number, pool, shelf.format, None if _beyond(border, name) else slots)


def put_bank(
    model: Cortex,
    name: str,
    number: int,
    pool: UnitPool,
    entry: Format,
    slots: DeviceSlots | None = None,
) -> None:
    """The `number`th bank of a pool, in the place of the bank of this name; with `slots`, on their device."""
    organ: Any = model.config.units
    experts: Any = model.get_submodule(name.rpartition(".")[0])
    shape = (organ.num_units, model.config.hidden_size, organ.unit_width)
    bank = PooledBank(pool, number, *shape, entry, ACTIVATIONS[organ.activation].limited(organ.num_speaking))
    old = experts.bank
    biases = _data(old.up_bias), _data(old.down_bias)
    experts.bank = StreamedBank(bank, *biases) if slots is None else AcceleratorBank(bank, slots, *biases)


def _beyond(border: int, name: str) -> bool:
    """Whether a tensor or module belongs to a layer from `border` on."""
    layer = layer_of(name)
    return layer is not None and layer >= border


def _move(model: nn.Module, name: str, device: torch.device) -> None:
    """Take what was just put there to the device; a packed table and the head that shares its rows move together."""
    moved: dict[int, Tensor] = {}
    owners = [name.rpartition(".")[0], *(["lm_head"] if name == EMBEDDING else [])]
    for owner in map(model.get_submodule, owners):
        for kind in (owner._parameters, owner._buffers):
            for key, tensor in kind.items():
                if tensor is not None and not tensor.is_meta and tensor.device != device:
                    there = moved.setdefault(id(tensor), tensor.detach().to(device))
                    is_weight = kind is owner._parameters
                    kind[key] = nn.Parameter(there, requires_grad=False) if is_weight else there  # type: ignore[assignment]


def _data(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _fill_buffers(model: Cortex) -> None:
    """What is in no file: steering, rotary frequencies."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=torch.float32), persistent=False)
    initialise(model.model.positions, model.config)
