"""Tensors of a block on disk: written whole or not at all, read without a page of them staying behind.

A file is safetensors like any other, so that a stream can read units out of it where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pragnosia.checkpoints.places import Place, places_in, read_place
from pragnosia.checkpoints.writer import Entry, write_safetensors

_AT_ONCE = 1 << 22  # numbers that are cast at once


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Write a file of tensors, each in its own type or the one given, under a temporary name; then rename it."""
    entries = []
    for name, tensor in tensors.items():
        dtype = (dtypes or {}).get(name, tensor.dtype)
        entries.append(Entry(name, dtype, tuple(tensor.shape), partial(_cast, tensor.detach(), dtype)))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_safetensors(temporary, entries)
        temporary.replace(path)
        _keep(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises CheckpointError."""
    return {name: read_tensor(place) for name, place in places_in(path).items()}


def read_tensor(place: Place) -> Tensor:
    """One tensor. Raises CheckpointError."""
    flat = torch.empty(place.num_bytes // place.dtype.itemsize, dtype=place.dtype)
    if place.num_bytes:
        read_place(place, flat)
    return flat.view(place.shape)


def _keep(folder: Path) -> None:
    """Have a rename in this folder outlive a power cut: a checkpoint will rely on it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    for piece in tensor.contiguous().view(-1).split(_AT_ONCE):
        yield piece.to("cpu", dtype)
