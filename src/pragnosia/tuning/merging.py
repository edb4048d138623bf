"""An adapter folded into the model it was trained on, piece by piece: W becomes W + scale b a.

The new directory is of the source's family, names, layout and precision; the sum is taken in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from pragnosia.checkpoints.admission import check_vacant
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.checkpoints.source import Index, Shape
from pragnosia.checkpoints.writer import SHARD_BYTES, new_directory
from pragnosia.tuning.admission import check_mergeable
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.peft_config import check_adapter
from pragnosia.tuning.peft_format import read_adapter
from pragnosia.tuning.rewriting import Pieces, changed_entries, fill
from pragnosia.tuning.sites import Site, sites


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
    entries = changed_entries(
        plan,
        changes.names,
        lambda rule, number, read: partial(_summed, read, partial(rule.to_theirs, number, changes)),
    )
    with new_directory(out) as folder:
        files = fill(folder, model_folder, entries, shard_bytes)
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
