"""Factors as PEFT lays them out, and as we do.

    linear module                      A (r, in)           B (out, r)
    parameter of three axes (U, …)     A (U r, in)         B (out, r U): unit by unit in A, the units fastest in B

Modules that are joined in ours (gate and up) share A when we write. Where another library gave each its own, ours is
both, one below the other: a = (A0; A1), b = diag(B0, B1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pragnosia.errors import CheckpointError
from pragnosia.tuning.sites import Site
from pragnosia.tuning.spots import Spot

Factors = tuple[Tensor, Tensor]
"""a and b, or A and B."""


def laid_out(spot: Spot, a: Tensor, b: Tensor) -> Factors:
    """A and B at one spot of a site's factors."""
    if not spot.is_parameter:
        rows = b.shape[-2] // spot.num_parts
        return a, b[spot.part * rows : (spot.part + 1) * rows]
    if spot.interleaved:
        b = torch.stack(b.chunk(2, dim=1), dim=2).flatten(1, 2)
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1, 2)


def taken_in(key: str, spot: Spot, factors: Factors, rank: int, *, turned: bool) -> Factors:
    """a and b of what lies at a spot. Raises CheckpointError for other shapes than model and rank call for.

    `turned`: parameters were taken for (U, in, out) whichever way they are, as PEFT did before 0.19.
    """
    a, b = factors
    *_, rows, columns = spot.site.shape
    units = spot.site.shape[0] if spot.is_parameter else 1
    if a.shape[0] == b.shape[1] != rank * units and a.shape[0] % units == 0:
        raise CheckpointError(f"{key} has rank {a.shape[0] // units}, adapter_config.json says {rank}")
    if not spot.is_parameter:
        _check_shapes(key, factors, (rank, columns), (rows // spot.num_parts, rank))
        return a, b
    if turned and not spot.transposed:
        _check_shapes(key, factors, (rank * units, rows), (columns, rank * units))
        b, a = a.view(units, rank, rows).mT, b.view(columns, rank, units).permute(2, 1, 0)
    else:
        _check_shapes(key, factors, (rank * units, columns), (rows, rank * units))
        a, b = a.view(units, rank, columns), b.view(rows, rank, units).permute(2, 0, 1)
    if spot.interleaved:
        b = torch.cat((b[:, 0::2], b[:, 1::2]), dim=1)
    return a.contiguous(), b.contiguous()


def joined(site: Site, found: list[tuple[Spot, Factors]]) -> Factors:
    """A site's factors of those of its parts; a part that is not adapted adds nothing.

    Raises CheckpointError for a part that is there twice.
    """
    kinds = {(spot.is_parameter, spot.num_parts) for spot, _ in found}
    if len(kinds) > 1 or len({(spot.unit, spot.part) for spot, _ in found}) < len(found):
        raise CheckpointError(f"the adapter adapts {site.tensor} twice, under two names; it is broken")
    if found[0][0].is_parameter:
        return found[0][1]
    units: dict[int, list[tuple[Spot, Factors]]] = {}
    for spot, factors in found:
        units.setdefault(spot.unit or 0, []).append((spot, factors))
    rows = site.shape[-2]
    stacked = {unit: _stacked(rows, parts) for unit, parts in units.items()}
    if site.num_units is None:
        return stacked[0]
    rank = max(a.shape[0] for a, _ in stacked.values())
    a, b = (torch.zeros(shape) for shape in site.factor_shapes(rank))
    for unit, (rows_a, columns_b) in stacked.items():
        a[unit, : rows_a.shape[0]], b[unit, :, : columns_b.shape[1]] = rows_a, columns_b
    return a, b


def _stacked(rows: int, parts: list[tuple[Spot, Factors]]) -> Factors:
    """One matrix's factors of those of its shares of the rows."""
    parts = sorted(parts, key=lambda part: part[0].part)
    first = parts[0][1][0]
    if len(parts) == parts[0][0].num_parts and all(torch.equal(a, first) for _, (a, _) in parts):
        return first, torch.cat([b for _, (_, b) in parts])
    a = torch.cat([a for _, (a, _) in parts])
    b, column = torch.zeros(rows, a.shape[0]), 0
    for spot, (_, share) in parts:
        row = spot.part * share.shape[0]
        b[row : row + share.shape[0], column : column + share.shape[1]] = share
        column += share.shape[1]
    return a, b


def _check_shapes(key: str, factors: Factors, *expected: tuple[int, int]) -> None:
    for letter, tensor, shape in zip("AB", factors, expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise foreign(f"lora_{letter} of {key} has shape {tuple(tensor.shape)}, this model calls for {shape}")


def foreign(why: str) -> CheckpointError:
    """The error for an adapter that does not fit."""
    return CheckpointError(f"this adapter was made for another model: {why}")
