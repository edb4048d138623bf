"""An adapter folded into the model it was trained on, piece by piece: W becomes W + scale b a.

The new directory is of the source's family, names, layout and precision; the sum is taken in fp32 and rounded once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from pragnosia.checkpoints.admission import check_vacant
from pragnosia.checkpoints.blueprint import Blueprint, blueprint
from pragnosia.checkpoints.importing import ORIGIN
from pragnosia.checkpoints.rules import Rule
from pragnosia.checkpoints.source import Index, Shape, pieces
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import SHARD_BYTES, Entry, new_directory, write_weights
from pragnosia.tuning.admission import check_mergeable
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.peft_config import check_adapter
from pragnosia.tuning.peft_format import read_adapter
from pragnosia.tuning.sites import Site, sites

Pieces = Callable[[], Iterator[Tensor]]
"""One tensor, in row-major pieces."""


@dataclass(frozen=True)
class MergeReport:
    """What was folded into what."""

    source: str
    adapter: str
    out: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    num_adapted: int
    """Of our tensors; a bank's up is one, whatever the number of its units."""
    num_adapter_parameters: int
    num_parameters: int
    num_bytes: int
    files: tuple[str, ...]
    """Everything in `out`."""


def merge_adapter(
    model_folder: str | Path, adapter_folder: str | Path, out: str | Path, *, shard_bytes: int = SHARD_BYTES
) -> MergeReport:
    """Write the model in `model_folder` with the adapter folded in, as a directory of the same kind.

    Raises CheckpointError or ConfigError for a model or an adapter that cannot be read, or that do not belong together;
    then nothing is left at `out`.
    """
    model_folder, adapter_folder, out = Path(model_folder), Path(adapter_folder), Path(out)
    check_mergeable(model_folder)
    check_adapter(adapter_folder)
    check_vacant(out)
    plan = blueprint(model_folder)
    tensors, config = read_adapter(adapter_folder, model_folder)
    changes = _Changes({name: site for name, site in sites(plan.config).items() if site.a in tensors}, tensors, config)
    entries = _entries(plan, changes)
    with new_directory(out) as folder:
        write_weights(folder, entries, shard_bytes)
        carry(model_folder, folder)
        for name in ("config.json", ORIGIN):
            if (model_folder / name).exists():
                shutil.copyfile(model_folder / name, folder / name)
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return MergeReport(
        source=str(model_folder),
        adapter=str(adapter_folder),
        out=str(out),
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        num_adapted=len(changes.names),
        num_adapter_parameters=sum(tensor.numel() for tensor in tensors.values()),
        num_parameters=sum(entry.nbytes // entry.dtype.itemsize for entry in entries),
        num_bytes=sum(entry.nbytes for entry in entries),
        files=files,
    )


@final
class _Changes:
    """scale b a of every adapted site as a source of tensors, in our names and layout; each part is made when read."""

    def __init__(self, adapted: Mapping[str, Site], tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
        self._adapted, self._tensors, self._scale = adapted, tensors, config.scale

    @property
    def names(self) -> Collection[str]:
        """The adapted weights."""
        return self._adapted.keys()

    def file(self, name: str) -> str:
        """In no file."""
        return f"the change of {name}"

    def shape(self, name: str) -> Shape:
        """As the weights."""
        return self._adapted[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """fp32."""
        return torch.float32

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The part under `index`: of a matrix rows, of a bank units, or one unit and rows of it."""
        site = self._adapted[name]
        a, b = self._tensors[site.a], self._tensors[site.b]
        if site.num_units is not None:
            units, index = (index[0], index[1:]) if index else (slice(None), ())
            a, b = a[units], b[units]
        return b[index or ...] @ a * self._scale


def _entries(plan: Blueprint, changes: _Changes) -> list[Entry]:
    """Every tensor of the source as it lies, with its change where it has one."""
    changed: dict[str, tuple[Rule, int]] = {}
    for name in changes.names:
        rule = plan.rules[name]
        changed |= {theirs: (rule, number) for number, theirs in enumerate(rule.their_shapes(plan.shapes[name]))}
    source = plan.source
    entries = []
    for name in source.names:
        read: Pieces = partial(pieces, source, name)
        if name in changed:
            rule, number = changed[name]
            read = partial(_summed, read, partial(rule.to_theirs, number, changes))
        entries.append(Entry(name, source.dtype(name), source.shape(name), read))
    return entries


def _summed(weights: Pieces, change: Pieces) -> Iterator[Tensor]:
    """One of their tensors with its change, flat: both come in row-major order, though not cut at the same places."""
    coming = (piece.reshape(-1) for piece in change())
    left = torch.empty(0)
    for piece in weights():
        total = piece.reshape(-1).to(torch.promote_types(piece.dtype, torch.float32), copy=True)
        filled = 0
        while filled < total.numel():
            left = left if left.numel() else next(coming)
            count = min(left.numel(), total.numel() - filled)
            total[filled : filled + count] += left[:count]
            left, filled = left[count:], filled + count
        yield total.to(piece.dtype)
