"""A model as it lies, ours or another family's: its configuration, and where each tensor comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from pragnosia.checkpoints.admission import check_wide_awake
from pragnosia.checkpoints.families import read_config, read_family
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.checkpoints.gguf_source import GgufSource
from pragnosia.checkpoints.matching import check_tensors, common_dtype, has_own_head, parameter_shapes
from pragnosia.checkpoints.opening import opened
from pragnosia.checkpoints.places import Extents, Place, places, read_place, unit_extents
from pragnosia.checkpoints.rules import Joined, Rule, same
from pragnosia.checkpoints.source import SafetensorsSource, Shape, TensorSource, read_json
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.kernels.blocks import Extent
from pragnosia.model.configuration import PragnosiaConfig


@dataclass(frozen=True)
class Blueprint:
    """What it takes to build the model tensor by tensor."""

    folder: Path
    config: PragnosiaConfig
    rules: dict[str, Rule]
    shapes: dict[str, Shape]
    source: TensorSource
    known: dict[str, Place]
    """Their tensors by name; empty where they are not plain numbers."""

    def dtype(self, name: str) -> torch.dtype:
        """Element type of one of our tensors."""
        return common_dtype(list(self.rules[name].their_shapes(self.shapes[name])), self.source)

    def num_bytes(self, name: str) -> int:
        """Of one of our tensors."""
        return math.prod(self.shapes[name]) * self.dtype(name).itemsize

    def read(self, name: str) -> Tensor:
        """One of our tensors, whole; no more than a piece of it is held twice."""
        shape, rule, filled = self.shapes[name], self.rules[name], 0
        flat = torch.empty(torch.Size(shape).numel(), dtype=self.dtype(name))
        if self.known and isinstance(rule, Joined):
            for part in rule.their_shapes(shape):
                place = self.known[part]
                count = place.num_bytes // place.dtype.itemsize
                read_place(place, flat[filled : filled + count])
                filled += count
            return flat.view(shape)
        for piece in rule.to_ours(self.source):
            flat[filled : filled + piece.numel()] = piece.reshape(-1)
            filled += piece.numel()
        return flat.view(shape)

    def place(self, name: str) -> Place | None:
        """Where one of our tensors lies whole, if it does."""
        rule = self.rules[name]
        whole = self.known and isinstance(rule, Joined) and rule.num_units is None and len(rule.parts) == 1
        return self.known[rule.parts[0]] if whole and isinstance(rule, Joined) else None

    def extents(self, name: str) -> Extents:
        """Where one of our tensors lies, piece after piece. Raises CheckpointError for a layout that is not ours."""
        rule = self.rules[name]
        if isinstance(self.source, GgufSource):
            return [self.source.extent(part) for part in rule.their_shapes(self.shapes[name])]
        if not self.known or not isinstance(rule, Joined):
            raise CheckpointError(
                f"{name} of {self.folder} does not lie as it is computed with; "
                f"turn it once: pragnosia pack {self.folder} OUT (--format int4 makes it smaller), then run OUT"
            )
        parts = [self.known[part] for part in rule.their_shapes(self.shapes[name])]
        return [Extent(part.file, part.offset, part.num_bytes) for part in parts]

    def unit(self, name: str, unit: int) -> Extents:
        """Where one unit of a bank's tensor lies. Raises CheckpointError for a layout that cannot be read so."""
        if isinstance(self.source, GgufSource):
            parts = list(self.rules[name].their_shapes(self.shapes[name]))
            each = max(1, len(parts) // self.shapes[name][0])  # a rule that turns units names one tensor for all
            return [self.source.extent(part) for part in parts[unit * each : (unit + 1) * each]]
        if not self.known:
            raise CheckpointError(
                f"the weights in {self.folder} are quantised in a form that is not read unit by unit; "
                f"pack it once: pragnosia pack {self.folder} OUT, then run OUT"
            )
        return unit_extents(self.rules[name], unit, self.known, self.shapes[name][0])


def is_unit(name: str) -> bool:
    """Whether a tensor of ours is made of units, which can be read one by one."""
    return name.endswith((".bank.up", ".bank.down"))


def foreign_config(folder: str | Path) -> PragnosiaConfig:
    """Our configuration of another family's directory. Raises CheckpointError or ConfigError."""
    path = Path(folder) / "config.json"
    if (file := gguf_in(folder)) is not None:
        return read_config(opened(file)[0], str(file))
    return read_config(read_json(path), str(path))


def described_config(folder: str | Path) -> PragnosiaConfig:
    """Our configuration of a directory, ours or another family's. Raises CheckpointError or ConfigError."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    if values.get("model_type") != PragnosiaConfig.model_type:
        return read_config(values, str(path))
    try:
        return PragnosiaConfig.from_dict(values)
    except (ConfigError, StrictDataclassError, TypeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def blueprint(folder: str | Path, dtype: torch.dtype | None = None) -> Blueprint:
    """Of a directory of ours or of a supported family, or a GGUF file; `dtype` is what quantised numbers become.

    Raises CheckpointError or ConfigError; reads no weights.
    """
    folder = Path(folder)
    if (file := gguf_in(folder)) is not None:
        return _foreign(file, *opened(file, dtype), {})
    if not folder.is_dir():
        raise CheckpointError(f"no model directory at {folder}; train one (pragnosia train) or name one")
    values = read_json(folder / "config.json")
    check_wide_awake(folder)
    known = {} if values.get("quantization_config") else places(folder)
    if values.get("model_type") != PragnosiaConfig.model_type:
        return _foreign(folder, *opened(folder, dtype), known)
    config = described_config(folder)
    shapes = parameter_shapes(config)
    return _fitting(folder, config, [same(name, name) for name in shapes], shapes, SafetensorsSource(folder), known)


def _foreign(path: Path, values: dict[str, Any], source: TensorSource, known: dict[str, Place]) -> Blueprint:
    """Of another family's."""
    config = read_config(values, str(path / "config.json" if path.is_dir() else path))
    if config.tie_word_embeddings and has_own_head(source):
        config.tie_word_embeddings = False
    rules = read_family(values).weights(config, source.names)
    return _fitting(path, config, rules, parameter_shapes(config), source, known)


def _fitting(
    folder: Path,
    config: PragnosiaConfig,
    rules: list[Rule],
    shapes: dict[str, Shape],
    source: TensorSource,
    known: dict[str, Place],
) -> Blueprint:
    """With every tensor there, and none left over."""
    expected = {name: shape for rule in rules for name, shape in rule.their_shapes(shapes[rule.ours]).items()}
    check_tensors(expected, source, ignored=("lm_head.weight",) if config.tie_word_embeddings else ())
    return Blueprint(folder, config, {rule.ours: rule for rule in rules}, shapes, source, known)
