"""A spiking network's steps, compiled (source/spikes.hpp): all membranes, but only the synapses of who spiked.

The structures are those of source/membranes.hpp and spikes.hpp; what they point to is advanced in place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pragnosia.kernels.compiled import loaded_library, native_library

if TYPE_CHECKING:
    from torch import Tensor

MODELS = {"lif": 0, "lifa": 1, "izhikevich": 2}
RECEPTORS = {"pulses": 0, "currents": 1, "conductances": 2}
DTYPES = (torch.float32, torch.bfloat16)


class _Population(ctypes.Structure):
    """`Population` of source/membranes.hpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("model", "receptor", "neurons", "first", "depth", "winners")),
        *((name, ctypes.c_int64) for name in ("refractory", "is_bf16", "channels")),
        *((name, ctypes.c_void_p) for name in ("v", "w", "clock", "open", "ring", "bias", "current", "tally")),
        *((name, ctypes.c_double) for name in ("leak", "threshold", "beta", "rho", "noise", "gain", "inhibition")),
        *((name, ctypes.c_double) for name in ("sigma_0", "sigma_1", "reversal_0", "reversal_1")),
        *((name, ctypes.c_double) for name in ("a", "b", "c", "d", "dt", "tau")),
    )


class _Projection(ctypes.Structure):
    """`Projection` of source/spikes.hpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("source", "target", "is_bf16", "same")),
        *((name, ctypes.c_void_p) for name in ("starts", "slots", "weights", "scales")),
    )


class _Simulation(ctypes.Structure):
    """`Simulation` of source/spikes.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("populations", "projections")),
        *((name, ctypes.c_int64) for name in ("num_populations", "num_projections", "rows", "steps", "window")),
        *((name, ctypes.c_int64) for name in ("clock", "seed", "threads")),
        *((name, ctypes.c_void_p) for name in ("counts", "delivered", "events")),
        *((name, ctypes.c_int64) for name in ("capacity", "num_events", "odd_population", "odd_step")),
    )


@dataclass(frozen=True, kw_only=True)
class Members:
    """A population: its tensors, and its numbers by the names of source/membranes.hpp."""

    numbers: dict[str, float]
    tensors: dict[str, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Wires:
    """A projection: the numbers of its populations, and its synapses by source neuron."""

    source: int
    target: int
    starts: Tensor
    slots: Tensor
    weights: Tensor
    """One for each, or one for all; int8 with `scales`."""
    scales: Tensor | None = None
    """One for each source neuron."""


@dataclass(frozen=True, kw_only=True)
class Fired:
    """What some steps gave; fewer than asked where there was no more room for events."""

    steps: int
    counts: Tensor
    """(B, steps, populations) int32, spikes of each."""
    delivered: Tensor
    """(B, projections) int64, synapses that carried a spike."""
    events: Tensor
    """(E, 3) int32: row, step, neuron of the network; none where nobody asked."""
    odd: tuple[int, int] | None = None
    """The population and step at which a membrane was no number."""


def supports(*tensors: Tensor) -> bool:
    """Whether the compiled kernel takes these state tensors."""
    return all(tensor.is_cpu and tensor.dtype in DTYPES for tensor in tensors) and native_library() is not None


def advance(
    members: Sequence[Members],
    wires: Sequence[Wires],
    *,
    rows: int,
    steps: int,
    window: int,
    clock: int,
    seed: int,
    threads: int = 1,
    capacity: int = 0,
) -> Fired:
    """Advance the populations in place; with a `capacity`, up to so many events are noted.

    A capacity below rows * window * neurons leaves no room for a single window, and no step is done.
    """
    populations = (_Population * len(members))(*(_packed(one) for one in members))
    projections = (_Projection * len(wires))(
        *(
            _Projection(
                *(one.source, one.target, one.weights.dtype is torch.bfloat16, len(one.weights) == 1),
                *(tensor.data_ptr() for tensor in (one.starts, one.slots, one.weights)),
                None if one.scales is None else one.scales.data_ptr(),
            )
            for one in wires
        )
    )
    counts = torch.zeros(rows, steps, len(members), dtype=torch.int32)
    delivered = torch.zeros(rows, len(wires), dtype=torch.int64)
    events = torch.empty(capacity, 3, dtype=torch.int32)
    call = _Simulation(
        *(ctypes.addressof(populations), ctypes.addressof(projections), len(members), len(wires), rows, steps, window),
        *(clock, seed, threads, counts.data_ptr(), delivered.data_ptr(), events.data_ptr() if capacity else None),
        capacity,
    )
    done = loaded_library().pragnosia_spikes(ctypes.byref(call))
    if done == -2:
        raise MemoryError("the compiled simulation found no memory for its lists of spikes")
    odd = (call.odd_population, call.odd_step) if done == -1 else None
    done = max(done, 0)
    return Fired(
        steps=done, counts=counts[:, :done], delivered=delivered, events=events[: call.num_events].clone(), odd=odd
    )


def gaussians(seed: int, stream: int, step: int, row: int, count: int) -> Tensor:
    """`count` Gaussian numbers (source/chance.hpp)."""
    out = torch.empty((count + 3) // 4 * 4)
    loaded_library().pragnosia_gaussians(seed, stream, step, row, count, out.data_ptr())
    return out[:count]


def _packed(one: Members) -> _Population:
    pointers = {name: tensor.data_ptr() for name, tensor in one.tensors.items() if tensor is not None}
    fields: dict[str, Any] = {**one.numbers, **pointers}
    return _Population(**fields)
