"""Packing: a model directory, ours or a supported family's, into the packed form; layer by layer, and resumable.

Nothing is ever whole in memory but one unit, or one resident matrix. What was finished stays: the same command goes on
after a kill or a full disk, from the layer it had reached.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pragnosia.checkpoints.admission import check_vacant
from pragnosia.checkpoints.blueprint import Blueprint, is_unit
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import write_json
from pragnosia.errors import CheckpointError
from pragnosia.kernels.formats import FORMATS, Format, pack
from pragnosia.quantisation.calibration import STATISTICS, Calibration, Importance, importance_in, unit_importance
from pragnosia.quantisation.index import INDEX, LINE, METHOD, RESIDENT, UNITS, Packed, PackedIndex, checksums, stride_of
from pragnosia.quantisation.sizes import SMALLER, packed_sizes, packing_format, resident_format, sparse_banks
from pragnosia.units import format_bytes, told_apart

_PROGRESS, _LOCK = "progress.json", ".lock"
Progress = Callable[[int, int], None]
"""Called with bytes read so far, and in all."""


@dataclass(frozen=True)
class PackReport:
    """What came out."""

    out: str
    format: str
    num_bytes: int
    """Of the packed files."""
    source_bytes: int
    bits_per_weight: float
    resumed: bool
    padding_bytes: int = 0
    """Of `num_bytes`, what lies between records: each begins on a page, so that waking a unit is one read."""


def pack_model(
    print_: Blueprint,
    out: str | Path,
    name: str,
    *,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Write the packed form to `out`. Raises CheckpointError; what was done by then is kept for the next try."""
    out, entry = Path(out), packing_format(name)
    if calibration is not None:
        check_calibrated(name)
    check_widths(print_, entry)
    check_vacant(out)
    partial = out.with_name(out.name + ".partial")
    work = _Work(print_, partial, entry, progress, calibration)
    try:
        resumed = work.begin()
        work.calibrate()
        work.pack_units()
        work.pack_residents()
        work.finish()
    except OSError as error:
        raise CheckpointError(
            f"cannot write {partial}: {error.strerror}; what is done stays there: make room, and the same command "
            "goes on where it stopped"
        ) from error
    finally:
        work.let_go()
    partial.replace(out)
    size = sum((out / file).stat().st_size for file in (UNITS, RESIDENT))
    weights = sum(print_.num_bytes(n) // print_.dtype(n).itemsize for n in print_.shapes)
    return PackReport(str(out), name, size, work.total, 8 * size / weights, resumed, work.sizes.padding)


def check_calibrated(name: str) -> None:
    """Raise CheckpointError for a format that a calibration cannot change: it has nothing to choose."""
    entry = packing_format(name)
    if not (entry.shrinks or entry.pruned):
        able = ", ".join(other.name for other in FORMATS.values() if other.shrinks or other.pruned)
        raise CheckpointError(f"--calibrate changes nothing in {entry.name}; leave it out, or choose from {able}")


def check_widths(print_: Blueprint, entry: Format) -> None:
    """Raise CheckpointError for a pattern that a matrix's width does not allow."""
    for name, shape in print_.shapes.items() if entry.pruned else ():
        packs = is_unit(name) or resident_format(name, shape, print_.dtype(name), entry) is entry
        if packs and shape[-1] % 4:
            raise CheckpointError(
                f"the pattern 2:4 keeps two of every four inputs; {name} has {shape[-1]}, which is no multiple of 4: "
                "leave the pattern out, or take --level"
            )


class _Work:
    """One packing, as far as it has come."""

    def __init__(
        self,
        print_: Blueprint,
        folder: Path,
        entry: Format,
        progress: Progress | None,
        calibration: Calibration | None,
    ) -> None:
        self.print_, self.folder, self.entry, self.progress = print_, folder, entry, progress
        self.calibration = calibration
        self.importance: Importance | None = None
        self.banks = sparse_banks(print_.config)
        dtypes = {name: print_.dtype(name) for name in print_.shapes}
        self.sizes = packed_sizes(print_.config, print_.shapes, dtypes, entry)
        self.num_units, self.record, self.stride = self.sizes.num_units, self.sizes.record, stride_of(self.sizes.record)
        self.total = sum(print_.num_bytes(name) for name in print_.shapes)
        self.done = 0
        self.lock: int | None = None
        self.sums: list[list[int]] = []
        self.tensors: dict[str, Packed] = {}

    def begin(self) -> bool:
        """Make the folder, or take up what lies there; True for the latter. Nobody else may until it is done."""
        made = self._make_folder()
        assert self.lock is not None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is packing into {self.folder} now; wait for it, or choose another OUT"
            ) from None
        path = self.folder / _PROGRESS
        what = self.what()
        if path.is_file():
            known = json.loads(path.read_text("utf-8"))
            if {key: known.get(key) for key in what} == what:
                self.sums = known["sums"]
                return True
            if known["sums"] or (self.folder / STATISTICS).exists():
                raise CheckpointError(
                    f"{self.folder} was begun from another model, format or calibration; remove it, or choose another "
                    "OUT"
                )
        free = shutil.disk_usage(self.folder).free
        if self.sizes.total > free:
            if made:  # nothing was begun: nothing is left behind
                shutil.rmtree(self.folder)
            needed, there = told_apart(self.sizes.total, free)
            raise CheckpointError(
                f"{self.folder} needs {needed}, the disk has {there} free; nothing was written: make room and run the "
                f"same command again{self._smaller(free)}"
            )
        self.note()
        return False

    def _make_folder(self) -> bool:
        """The folder and its lock; whether it was not there before. Raises CheckpointError where neither can be."""
        there = self.folder.is_dir()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"cannot make the folder {self.folder}: {error.strerror}; choose an OUT in a folder that you may "
                "write to"
            ) from error
        return not there

    def _smaller(self, free: int) -> str:
        """The largest format that the disk has room for, if there is a smaller one."""
        dtypes = {name: self.print_.dtype(name) for name in self.print_.shapes}
        for name in SMALLER:
            total = packed_sizes(self.print_.config, self.print_.shapes, dtypes, FORMATS[name]).total
            if total <= free:
                return f", or take --format {name}, which needs {format_bytes(total)}"
        return ""

    def let_go(self) -> None:
        """Others may go on with it."""
        if self.lock is not None:
            os.close(self.lock)

    def note(self) -> None:
        """Write down how far we are, whole or not at all."""
        path = self.folder / _PROGRESS
        path.with_suffix(".tmp").write_text(json.dumps({**self.what(), "sums": self.sums}), "utf-8")
        path.with_suffix(".tmp").replace(path)

    def what(self) -> dict[str, Any]:
        """That which another command must share to go on with this one."""
        of = {"source": str(self.print_.folder.resolve()), "format": self.entry.name, "record": self.record}
        return {**of, "calibration": None if self.calibration is None else self.calibration.note()}

    def calibrate(self) -> None:
        """See what the inputs bring, or take up what was seen before."""
        if self.calibration is not None:
            self.importance = importance_in(self.folder, self.calibration)

    def importance_of(self, name: str) -> Tensor | None:
        """Of a tensor's inputs, where there is a calibration."""
        return None if self.importance is None else self.importance.of(name)

    def pack_units(self) -> None:
        """Every bank whose records are not there yet."""
        path = self.folder / UNITS
        path.touch()
        with path.open("r+b") as file:
            for layer, bank in enumerate(self.banks):
                if (layer + 1) * self.num_units <= len(self.sums):
                    self.advance(self.print_.num_bytes(f"{bank}.up") + self.print_.num_bytes(f"{bank}.down"))
                    continue
                self.sums = self.sums[: layer * self.num_units]
                ups, downs = units_of(self.print_, f"{bank}.up"), units_of(self.print_, f"{bank}.down")
                seen = [self.importance_of(f"{bank}.{part}") for part in ("up", "down")]
                for unit, (up, down) in enumerate(zip(ups, downs, strict=True)):
                    file.seek((layer * self.num_units + unit) * self.stride)
                    its = [unit_importance(rows, unit) for rows in seen]
                    record = _bytes(record_of(self.print_, up, down, self.entry, its))
                    self.sums.append(list(checksums(record)))
                    file.write(record)
                    self.advance(up.nbytes + down.nbytes)
                file.flush()
                os.fsync(file.fileno())
                self.note()
            file.truncate(self.stride * self.num_units * len(self.banks))

    def pack_residents(self) -> None:
        """Everything that is no unit: matrices in the format, the ends in 8 bits at least, small things as they are."""
        self.tensors = {}
        with (self.folder / RESIDENT).open("wb") as file:
            for name in self.print_.shapes:
                if is_unit(name):
                    continue
                tensor = self.print_.read(name)
                self.tensors[name] = self.append(file, name, tensor)
                self.advance(tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())

    def append(self, file: BinaryIO, name: str, tensor: Tensor) -> Packed:
        """One resident tensor, in its format."""
        entry = resident_format(name, tensor.shape, tensor.dtype, self.entry)
        offset = file.seek(-(-file.tell() // LINE) * LINE)
        seen = None if entry is None else self.importance_of(name)
        data = _bytes(tensor if entry is None else packed_rows(self.print_, tensor, entry, seen))
        file.write(data)
        kind = str(tensor.dtype).removeprefix("torch.") if entry is None else entry.name
        return Packed(offset, len(data), tuple(tensor.shape), kind, checksums(data))

    def finish(self) -> None:
        """Configuration, tokenizer, and the index last of all."""
        config = self.print_.config
        config.architectures = ["PragnosiaForCausalLM"]
        config.dtype = self.print_.dtype("model.norm.weight")
        config.save_pretrained(self.folder)
        values: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        values["quantization_config"] = {"quant_method": METHOD, "format": self.entry.name}
        if self.calibration is not None:
            values["quantization_config"]["calibration"] = self.calibration.note()
        write_json(self.folder / "config.json", values)
        carry(self.print_.folder, self.folder)
        index = PackedIndex(self.entry.name, self.record, self.num_units, len(self.banks), self.sums, self.tensors)
        (self.folder / INDEX).write_text(json.dumps(index.to_json()), "utf-8")
        (self.folder / STATISTICS).unlink(missing_ok=True)
        (self.folder / _PROGRESS).unlink()
        (self.folder / _LOCK).unlink()

    def advance(self, num_bytes: int) -> None:
        """Tell whoever watches."""
        self.done += num_bytes
        if self.progress is not None:
            self.progress(self.done, self.total)


def packed_rows(print_: Blueprint, matrix: Tensor, entry: Format, importance: Tensor | None = None) -> Tensor:
    """Rows of a format; plain numbers without gaps. Raises CheckpointError for numbers that cannot be packed."""
    try:
        return matrix.to(entry.plain_dtype) if entry.plain_dtype else pack(matrix, entry.name, importance)
    except ValueError as error:
        raise CheckpointError(f"cannot pack {print_.folder}: {error}") from error


def record_of(
    print_: Blueprint, up: Tensor, down: Tensor, entry: Format, importance: Sequence[Tensor | None] = (None, None)
) -> Tensor:
    """A unit's bytes: its up rows, then its down rows; `importance` of either's inputs."""
    if entry.is_turned(down.shape[1]):  # what a neuron brings is the same along its row, and weighs nothing
        down, importance = down.t(), (importance[0], None)
    rows = (packed_rows(print_, matrix, entry, seen) for matrix, seen in zip((up, down), importance, strict=True))
    return torch.cat([matrix.contiguous().view(-1).view(torch.uint8) for matrix in rows])


def units_of(print_: Blueprint, name: str) -> Iterator[Tensor]:
    """The units of a bank's tensor, one after the other, whatever pieces they come in."""
    shape = print_.shapes[name][1:]
    count, held = shape.numel() if isinstance(shape, torch.Size) else shape[0] * shape[1], list[Tensor]()
    have = 0
    for piece in print_.rules[name].to_ours(print_.source):
        held.append(piece.reshape(-1))
        have += piece.numel()
        while have >= count:
            flat = torch.cat(held) if len(held) > 1 else held[0]
            yield flat[:count].view(*shape)
            held, have = [flat[count:]], have - count


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
