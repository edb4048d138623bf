"""Pruning: units that are worth least go, or melt into the one they are most like; their rows are gone for real.

    keep     the units of each lobe that are worth most (worth.py)
    merge    of each lobe the two most alike, by the cosine of their weights, become their mean, weighted by how often
             each woke; again and again until so many are left

A configuration has one number of units for all layers, and one for each lobe, so every layer loses as many; which, is
its own matter. The router's rows go with their units, and tokens that woke who is gone wake the next. What pruning
costs, a short training recovers (training/recovery.py). One-shot expert pruning: REAP, arXiv 2510.13999; merging by how
often experts wake: MC-SMoE, arXiv 2310.01334, whose alignment of neurons is left out: near-duplicates are aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.cortex import Cortex
from pragnosia.model.organs import UnitsConfig
from pragnosia.plasticity.growth import Rows, grown_config, unit_origins, units_of
from pragnosia.plasticity.origin import Change
from pragnosia.plasticity.transplant import check_whole, transplant
from pragnosia.plasticity.worth import Worth, worth

WAYS = ("reap", "magnitude", "load", "dead", "merge")
NEEDS_TEXT = ("reap", "load", "dead")


def prune(
    model: Cortex, keep: float | int | None = None, *, by: str = "reap", windows: Sequence[Tensor] = ()
) -> Change:
    """Keep a share of the units (0.5) or so many (8), in place. `dead` needs no share: those nobody woke go.

    Raises ConfigError for a way there is not, for fewer units than wake, or where nothing would go.
    """
    if by not in WAYS:
        raise ConfigError(unknown_name("way to prune", by, WAYS))
    check_whole(model)
    organ = units_of(model.config)
    if by == "dead":
        if keep is not None:
            raise ConfigError("dead units go because nobody woke them, not up to a share; leave the share out")
        loads = worth(model, "load", windows)
        left = _without_the_dead(organ, loads, sum(map(len, windows)))
        return keep_units(model, [best(organ, load, left) for load in loads], what="prune dead")
    if keep is None:
        raise ConfigError(f"pruning by {by} has to be told how many units stay: a share, as 0.5, or a number")
    left = kept_counts(organ, keep)
    if by == "merge":
        loads = worth(model, "load", windows) if windows else [torch.ones(organ.num_units)] * len(_banks(model))
        return merge_units(model, left, loads)
    return keep_units(model, [best(organ, one, left) for one in worth(model, by, windows)], what=f"prune {by}")


def keep_units(model: Cortex, kept: Sequence[Sequence[int]], *, what: str = "keep_units") -> Change:
    """Keep these units of each sparse layer, ascending, as many of each lobe everywhere; the others are gone.

    Raises ConfigError.
    """
    check_whole(model)
    config = model.config
    organ = units_of(config)
    counts = {tuple(_per_lobe(organ, own)) for own in kept}
    if len(kept) != len(config.sparse_layers) or len(counts) != 1:
        raise ConfigError(f"every sparse layer must keep as many units of each lobe; got {sorted(counts)}")
    left = dict(zip(dict(organ.lobes or {}), counts.pop(), strict=True))
    _check_left(organ, sum(left.values()))
    rows = [Rows(list(own), list(own)) for own in kept]
    shape = grown_config(config, left)
    return transplant(model, shape, unit_origins(config, shape, rows, {}), what=what)


def merge_units(model: Cortex, left: dict[str, int], loads: Worth) -> Change:
    """Let the most alike become one, until so many of each lobe are left. Raises ConfigError."""
    check_whole(model)
    config = model.config
    organ = units_of(config)
    _check_left(organ, sum(left.values()))
    rows, mixes = [], []
    for bank, load in zip(_banks(model), loads, strict=True):
        vectors = torch.cat([_unit_rows(weight) for weight in (bank.up, bank.down)], 1)
        leaders: list[int] = []
        means: list[Tensor] = []
        first = 0
        for label, size in dict(organ.lobes or {}).items():
            own = slice(first, first + size)
            groups = merged(vectors[own] @ vectors[own].T, load[own] + 1.0, left[label])
            for group in groups:
                mean = torch.zeros(organ.num_units)
                members = torch.tensor(group) + first
                mean[members] = (load[members] + 1.0) / float((load[members] + 1.0).sum())
                leaders.append(int(members[load[members].argmax()]))
                means.append(mean)
            first += size
        rows.append(Rows(leaders, leaders))
        mixes.append(torch.stack(means))
    shape = grown_config(config, left)
    return transplant(model, shape, unit_origins(config, shape, rows, {}, mixes), what="prune merge")


def merged(inner: Float[Tensor, "U U"], load: Float[Tensor, " U"], left: int) -> list[list[int]]:
    """Groups of units, ascending by their first, by repeatedly joining the two whose means are most alike.

    `inner` are inner products of what is compared: those of means follow from them.
    """
    inner, load = inner.double().clone(), load.double().clone()
    groups: list[list[int]] = [[unit] for unit in range(len(load))]
    while len(groups) > left:
        size = inner.diagonal().clamp_min(1e-30).sqrt()
        alike = (inner / (size[:, None] * size)).fill_diagonal_(float("-inf"))
        one, other = sorted(divmod(int(alike.argmax()), len(groups)))
        share = load[one] / (load[one] + load[other])
        for _ in range(2):  # rows, then columns
            inner[one] = share * inner[one] + (1 - share) * inner[other]
            inner = inner.T.clone()
        stays = torch.arange(len(groups)) != other
        load[one] += load[other]
        inner, load = inner[stays][:, stays], load[stays]
        groups[one] += groups.pop(other)
    return [sorted(group) for group in groups]


def kept_counts(organ: UnitsConfig, keep: float | int) -> dict[str, int]:
    """How many units of each lobe stay, of a share or a number of all. Raises ConfigError."""
    lobes = dict(organ.lobes or {})
    total = organ.num_units
    number = keep if isinstance(keep, int) and not isinstance(keep, bool) else round(total * keep)
    if not keep > 0 or number > total:
        raise ConfigError(f"cannot keep {keep:g} of {total} units; give a share between 0 and 1, or a smaller number")
    _check_left(organ, number)
    left, ends = {}, [0]
    for size in lobes.values():
        ends.append(ends[-1] + size)
    shares = [round(end * number / total) for end in ends]
    for place, label in enumerate(lobes):
        left[label] = max(1, shares[place + 1] - shares[place])
    if sum(left.values()) == total:
        raise ConfigError(f"keeping {keep:g} of {total} units leaves all of them; keep fewer")
    return left


def best(organ: UnitsConfig, values: Float[Tensor, " U"], left: dict[str, int]) -> list[int]:
    """Of each lobe the units that are worth most, ascending."""
    kept, first = [], 0
    for label, size in dict(organ.lobes or {}).items():
        kept += (values[first : first + size].topk(left[label]).indices + first).tolist()
        first += size
    return sorted(kept)


def _without_the_dead(organ: UnitsConfig, loads: Worth, tokens: int) -> dict[str, int]:
    left, first = {}, 0
    for label, size in dict(organ.lobes or {}).items():
        dead = min(int((load[first : first + size] == 0).sum()) for load in loads)
        left[label] = max(1, size - dead)
        first += size
    short = organ.thalamus.num_awake - sum(left.values())
    for label, size in dict(organ.lobes or {}).items():  # as many as wake must be there
        back = min(max(short, 0), size - left[label])
        left[label], short = left[label] + back, short - back
    if sum(left.values()) == organ.num_units:
        raise ConfigError(
            f"no unit can go: in some layer all {organ.num_units} woke on {tokens} tokens; give a share to keep, as 0.5"
        )
    return left


def _check_left(organ: UnitsConfig, count: int) -> None:
    awake = organ.thalamus.num_awake
    if count < awake:
        left = f"{count} unit{'' if count == 1 else 's'} would be left"
        raise ConfigError(f"{left}, and {awake} wake for every token; keep at least {awake} of {organ.num_units}")


def _per_lobe(organ: UnitsConfig, kept: Sequence[int]) -> list[int]:
    if sorted(set(kept)) != list(kept) or not all(0 <= unit < organ.num_units for unit in kept):
        raise ConfigError(f"units to keep are {list(kept)}; give each of 0 to {organ.num_units - 1} once, ascending")
    counts, first = [], 0
    for size in dict(organ.lobes or {}).values():
        counts.append(sum(first <= unit < first + size for unit in kept))
        first += size
    return counts


def _banks(model: Cortex) -> list[Any]:
    return [experts.bank for experts in model.experts()]


def _unit_rows(weight: Tensor) -> Float[Tensor, "U N"]:
    """A unit's weights as one row; all units together have length 1 on average, so that up and down count alike."""
    rows = weight.detach().float().flatten(1).cpu()
    scaled: Tensor = rows / rows.norm(dim=1).mean().clamp_min(1e-30)
    return scaled
