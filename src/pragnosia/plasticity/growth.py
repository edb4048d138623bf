"""Growth: more units in every bank, and the function stays what it was.

    add     U + n units, as many awake as before: the newborn sleep, below every other unit's balance or threshold
    split   k U units, k A awake: each unit is k twins that wake together and share out its strength

A newborn of `add` begins as a copy of a parent with noise on what it weighs and on what wakes it; the balance, or in
training `training.growing.settle`, lets it wake. Twins have one row of the router each, so that they score alike, and
what they write differs by a pattern that sums to nothing (an uneven fan-out): the sum is what it was, their slopes are
not alike. After Net2Net, Chen et al. 2016, arXiv 1511.05641. Deeper and wider: depth.py, width.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.bank import NEWBORN
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.model.organs import ColumnsConfig, UnitsConfig
from pragnosia.plasticity.depth import deepen
from pragnosia.plasticity.origin import Amend, Axis, Change, Origin
from pragnosia.plasticity.transplant import changed, check_whole, shapes, transplant
from pragnosia.plasticity.width import widen

__all__ = ["add_units", "deepen", "grown_config", "split_rows", "split_units", "widen"]

BALANCE_RATE = 1e-3
"""Of a router that had no balance: a newborn sleeps by it."""
DEPTH = 1.0
"""How far a newborn's balance lies below the least of the others: a score is never more than 1."""
NOISE = 0.5
UNEVEN = 0.1
_KEYED = ("softmax", "sigmoid", "threshold")


def grown_config(config: PragnosiaConfig, lobes: Mapping[str, int], **router: Any) -> PragnosiaConfig:
    """The configuration with so many units in each lobe, and changes to the router. Raises ConfigError."""
    organ: Any = units_of(config)
    thalamus = replace(organ.thalamus, **router)
    num_units = sum(lobes.values())
    if isinstance(organ, ColumnsConfig):
        size: dict[str, Any] = {"width": num_units * organ.column_width}
    else:
        size = {"num_units": num_units}
    name = "columns" if isinstance(organ, ColumnsConfig) else "experts"
    organ = replace(organ, lobes=dict(lobes), thalamus=thalamus, **size)
    return changed(config, **{name: organ.write()})


def units_of(config: PragnosiaConfig) -> UnitsConfig:
    """The organ whose units there may be more or fewer of. Raises ConfigError for a dense model."""
    organ = config.units
    if organ is None or not config.sparse_layers:
        raise ConfigError("this model is dense: it has no units; upcycle it first, or let it grow in layers or width")
    if organ.thalamus.kind not in _KEYED:
        raise ConfigError(unknown_name("router whose units may change in number", organ.thalamus.kind, _KEYED))
    return organ


@dataclass(frozen=True)
class Rows:
    """What becomes of the rows of units in one layer: for each now, where it came from and what it began as."""

    source: list[int]
    start: list[int]

    def axis(self, dim: int) -> Axis:
        """Along one dimension."""
        return Axis.of(dim, self.source, self.start)


def unit_origins(
    config: PragnosiaConfig,
    shape: PragnosiaConfig,
    rows: Sequence[Rows],
    amends: Mapping[str, Sequence[Amend | None]],
    mixes: Sequence[Tensor] | None = None,
) -> dict[str, Origin]:
    """Of every tensor along the units, in every sparse layer; `amends` by the tensor's last name, layer by layer.

    With `mixes` (U_new, U_old) parameters are means of the old units, and only what is no parameter is one of them.
    """
    had, has = shapes(config), shapes(shape)
    origins = {}
    for number, (layer, moved) in enumerate(zip(shape.sparse_layers, rows, strict=True)):
        prefix = f"model.layers.{layer}.feed_forward."
        for name in has:
            part = name.removeprefix(prefix)
            if not name.startswith(prefix) or part.startswith(("shared.", "thalamus.gist.")) or has[name].dim() == 0:
                continue
            axes = (moved.axis(1 if part == "thalamus.thresholds" else 0),)
            amend = amends.get(part, (None,) * len(rows))[number]
            there = name in had and part != "thalamus.steering"
            mixed = mixes is not None and part not in ("thalamus.thresholds", "thalamus.balance")
            origins[name] = Origin(
                name if there else None,
                axes if there else (),
                amend=amend,
                mix=mixes[number] if there and mixed and mixes is not None else None,
            )
    return origins


def add_units(
    model: Cortex,
    count: int | Mapping[str, int],
    *,
    parents: Sequence[Sequence[int]] | None = None,
    lobe: str | None = None,
    noise: float = NOISE,
    seed: int = 0,
) -> Change:
    """`count` more units in every sparse layer, in all or by lobe; each layer's start from its `parents`, or in turn.

    With `lobe` they stand in a new lobe of this name: silent, the model is what it was, however long they learn alone.

    The function stays, and so does the work: the newborn sleep. `noise` is relative to the parent's own spread.
    Raises ConfigError.
    """
    check_whole(model)
    config = model.config
    organ = units_of(config)
    more = shared_out(organ, count) if lobe is None else _new_lobe(organ, lobe, count)
    total = sum(more.values())
    if lobe is not None and parents is None:
        parents = [[number % organ.num_units for number in range(total)]] * len(config.sparse_layers)
    chosen = _parents(config, organ, more, parents)
    rows = [_with_newborns(organ, more, own) for own in chosen]
    router, quiet, even = organ.thalamus, {}, _even(organ, rows)
    if router.kind != "threshold":
        if router.kind == "softmax" and not even and not _indifferent(model, organ):
            raise ConfigError(
                f"{total} more units cannot be added: every unit counts in this softmax router's strengths or balance, "
                f"so all must be split alike; give a multiple of {organ.num_units}, with every unit a parent as often"
            )
        quiet["balance_rate"] = router.balance_rate or BALANCE_RATE
    copies = (organ.num_units + total) // organ.num_units
    exact = router.kind == "softmax" and even and not _indifferent(model, organ)
    if exact and not router.renormalise:
        quiet["scale"] = router.scale * copies
    shape = grown_config(config, {label: _lobes(organ).get(label, 0) + born for label, born in more.items()}, **quiet)
    new = [torch.tensor(moved.source) == NEWBORN for moved in rows]
    amends: dict[str, list[Amend | None]] = {
        "bank.up": [_noisy(rows, noise) for rows in new],
        "thalamus.weight": [None if exact else _noisy(rows, noise) for rows in new],
        "thalamus.balance": [_asleep(rows, copies if exact else 1) for rows in new],
        "thalamus.thresholds": [_unreachable(rows) for rows in new],
    }
    return transplant(model, shape, unit_origins(config, shape, rows, amends), what="add_units", seed=seed)


def split_units(model: Cortex, factor: int = 2, *, uneven: float = UNEVEN, seed: int = 0) -> Change:
    """Every unit is `factor` twins now, which wake together: total and active size grow alike, the function stays.

    What a twin writes differs by `uneven`, relative, in a pattern that sums to nothing. Raises ConfigError.
    """
    check_whole(model)
    _check_factor(factor)
    config = model.config
    organ = units_of(config)
    router = organ.thalamus
    change: dict[str, Any] = {"num_awake": router.num_awake * factor}
    if router.max_awake is not None:
        change["max_awake"] = router.max_awake * factor
    if router.kind != "softmax" and not router.renormalise:
        change["scale"] = router.scale / factor
    shape = grown_config(config, {label: size * factor for label, size in _lobes(organ).items()}, **change)
    start = [unit for unit in range(organ.num_units) for _ in range(factor)]
    source = [unit if twin == 0 else NEWBORN for unit in range(organ.num_units) for twin in range(factor)]
    rows = [Rows(source, start)] * len(config.sparse_layers)
    every = len(rows)
    amends: dict[str, list[Amend | None]] = {"bank.down": [_uneven(factor, uneven)] * every}
    if router.kind == "softmax" and router.balance_rate:
        amends["thalamus.balance"] = [_divided(factor)] * every  # as every score is
    return transplant(model, shape, unit_origins(config, shape, rows, amends), what="split_units", seed=seed)


def split_rows(model: Cortex, factor: int = 2, *, uneven: float = UNEVEN, seed: int = 0) -> Change:
    """Every key of long-term memory is `factor` twins, so that every row is factor^2, recalled together.

    Raises ConfigError for a model without one, or where that many cannot be recalled.
    """
    check_whole(model)
    _check_factor(factor)
    config = model.config
    organ = config.hippocampus
    if organ is None:
        raise ConfigError("this model has no long-term memory: there are no rows to split; configure a hippocampus")
    side, new_side = organ.side, organ.side * factor
    awake = organ.num_awake * factor**2
    if awake > new_side:
        raise ConfigError(
            f"split by {factor}, a head would have to recall {awake} rows, of {new_side**2} it can recall at most "
            f"{new_side}; hippocampus.num_awake is {organ.num_awake}, at most {side // factor} can be split so"
        )
    shape = changed(config, hippocampus=replace(organ, num_rows=new_side**2, num_awake=awake).write())
    halves = 2 * organ.num_heads
    places = torch.arange(new_side)
    first = places % factor == 0
    keys = (torch.arange(halves)[:, None] * side + places // factor).flatten()
    keys_axis = Axis(0, torch.where(first.repeat(halves), keys, NEWBORN), keys)
    kept = (first[:, None] & first).flatten()
    cells = ((places // factor)[:, None] * side + places // factor).flatten()
    rows_axis = Axis(0, torch.where(kept, cells, NEWBORN), cells)
    name = "model.hippocampus.rows"
    origins = {name: Origin(name, (rows_axis,), amend=_uneven_cells(new_side, factor, uneven))}
    for layer, kind in enumerate(config.feed_forwards):
        if kind == "memory":
            keys_name = f"model.layers.{layer}.feed_forward.keys"
            origins[keys_name] = Origin(keys_name, (keys_axis,))
    return transplant(model, shape, origins, what="split_rows", seed=seed)


def shared_out(organ: UnitsConfig, count: int | Mapping[str, int]) -> dict[str, int]:
    """How many more units each lobe gets: as given, or in proportion. Raises ConfigError."""
    lobes = _lobes(organ)
    if isinstance(count, Mapping):
        for label, number in count.items():
            if label not in lobes:
                raise ConfigError(unknown_name("lobe", str(label), lobes))
            if number < 0:
                raise ConfigError(f"cannot add {number} units to lobe {label!r}; give 0 or more")
        more = {label: int(count.get(label, 0)) for label in lobes}
    else:
        ends = [0]
        for size in lobes.values():
            ends.append(ends[-1] + size)
        shares = [end * count // organ.num_units for end in ends]
        more = {label: shares[i + 1] - shares[i] for i, label in enumerate(lobes)}
    if sum(more.values()) < 1:
        raise ConfigError(f"cannot add {sum(more.values())} units; give at least 1")
    return more


def _new_lobe(organ: UnitsConfig, lobe: str, count: int | Mapping[str, int]) -> dict[str, int]:
    """How many more units each lobe gets where all stand in a new one. Raises ConfigError."""
    if lobe in _lobes(organ):
        raise ConfigError(f"there is a lobe {lobe!r} already; give the new one another name, or add to it by its name")
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"cannot add {count} units to the new lobe {lobe!r}; give a number, at least 1")
    return dict.fromkeys(_lobes(organ), 0) | {lobe: count}


def _lobes(organ: UnitsConfig) -> dict[str, int]:
    assert organ.lobes is not None
    return dict(organ.lobes)


def _parents(
    config: PragnosiaConfig, organ: UnitsConfig, more: Mapping[str, int], given: Sequence[Sequence[int]] | None
) -> list[list[int]]:
    """For each sparse layer the unit that each newborn starts from, lobe by lobe. Raises ConfigError."""
    layers = len(config.sparse_layers)
    if given is None:
        own, first = [], 0
        for label, size in _lobes(organ).items():
            own += [first + number % size for number in range(more[label])]
            first += size
        return [own] * layers
    total = sum(more.values())
    if len(given) != layers or any(len(own) != total for own in given):
        raise ConfigError(
            f"parents are given for {len(given)} layers of {[len(own) for own in given]} units; "
            f"expected {layers} layers of {total}"
        )
    for unit in (unit for own in given for unit in own):
        if not 0 <= unit < organ.num_units:
            raise ConfigError(f"there is no unit {unit} to start from; there are units 0 to {organ.num_units - 1}")
    return [list(own) for own in given]


def _with_newborns(organ: UnitsConfig, more: Mapping[str, int], parents: list[int]) -> Rows:
    """Each lobe's units, then its newborn: a lobe lies side by side."""
    source: list[int] = []
    start: list[int] = []
    first, waiting = 0, list(parents)
    for label, size in _lobes(organ).items():
        own = list(range(first, first + size))
        born, waiting = waiting[: more[label]], waiting[more[label] :]
        source += own + [NEWBORN] * len(born)
        start += own + born
        first += size
    return Rows(source + [NEWBORN] * len(waiting), start + waiting)  # who still waits stands in a new lobe


def _even(organ: UnitsConfig, rows: Sequence[Rows]) -> bool:
    """Whether every unit is there equally often."""
    counts = [torch.bincount(torch.tensor(moved.start), minlength=organ.num_units) for moved in rows]
    return all(bool((count == count[0]).all()) for count in counts)


def _indifferent(model: Cortex, organ: UnitsConfig) -> bool:
    """Whether a softmax router's choice and strengths stay as they are where its scores shrink alike."""
    balances: list[Any] = [getattr(experts.thalamus, "balance", None) for experts in model.experts()]
    return organ.thalamus.renormalise and all(balance is None or not bool(balance.any()) for balance in balances)


def _check_factor(factor: int) -> None:
    if factor < 2:
        raise ConfigError(f"cannot split by {factor}; give a whole number, 2 or more")


def _noisy(new: Tensor, noise: float) -> Amend:
    """What a newborn differs by from its parent."""

    def amend(now: Tensor, generator: torch.Generator) -> None:
        rows = now[new.to(now.device)]
        spread = rows.float().flatten(1).std(1).view(-1, *[1] * (rows.dim() - 1))
        drawn = torch.randn(rows.shape, generator=generator, device=now.device)
        now[new.to(now.device)] = (rows.float() + noise * spread * drawn).to(now.dtype)

    return amend


def _asleep(new: Tensor, copies: int) -> Amend:
    """Below every other unit, whatever the scores; and where scores shrink, the balance shrinks with them."""

    def amend(now: Tensor, generator: torch.Generator) -> None:
        born = new.to(now.device)
        now /= copies
        now[born] = now[~born].min() - DEPTH

    return amend


def _unreachable(new: Tensor) -> Amend:
    """A threshold that no score lies above."""

    def amend(now: Tensor, generator: torch.Generator) -> None:
        now[:, new.to(now.device)] = 1.0

    return amend


def _divided(factor: int) -> Amend:
    def amend(now: Tensor, generator: torch.Generator) -> None:
        now /= factor

    return amend


def _uneven(factor: int, uneven: float) -> Amend:
    """Twins side by side: each number times 1 + a pattern that sums to nothing over them."""

    def amend(now: Tensor, generator: torch.Generator) -> None:
        twins = now.view(-1, factor, *now.shape[1:])
        twins.mul_((1 + uneven * _balanced(twins, generator, 1)).to(now.dtype))

    return amend


def _uneven_cells(side: int, factor: int, uneven: float) -> Amend:
    """The same for rows that lie in a square of twins."""

    def amend(now: Tensor, generator: torch.Generator) -> None:
        count = side // factor
        cells = now.view(count, factor, count, factor, -1).transpose(1, 2).flatten(2, 3)  # a copy
        cells = cells * (1 + uneven * _balanced(cells, generator, 2)).to(now.dtype)
        now.copy_(cells.unflatten(2, (factor, factor)).transpose(1, 2).reshape(now.shape))

    return amend


def _balanced(like: Tensor, generator: torch.Generator, dim: int) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, device=like.device)
    return drawn - drawn.mean(dim, keepdim=True)
