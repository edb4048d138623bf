"""One of our models becomes a checkpoint of another family, tensor by tensor; the way back of `importing`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from pragnosia.checkpoints.admission import check_wide_awake, read_json
from pragnosia.checkpoints.families import family_named, fitting_family, write_config
from pragnosia.checkpoints.family import Family
from pragnosia.checkpoints.importing import ORIGIN
from pragnosia.checkpoints.matching import EMBEDDINGS, HEAD, check_tensors, parameter_shapes
from pragnosia.checkpoints.rules import Rule
from pragnosia.checkpoints.source import SafetensorsSource, Shape, TensorSource
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import SHARD_BYTES, Entry, new_directory, write_json, write_weights
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.model.configuration import PragnosiaConfig


@dataclass(frozen=True)
class ExportReport:
    """What was read and what was written."""

    family: str
    source: str
    out: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    files: tuple[str, ...]
    """Everything in `out`."""


def export_model(
    model: str | Path, out: str | Path, family: str | None = None, *, shard_bytes: int = SHARD_BYTES
) -> ExportReport:
    """Write one of our model directories as a checkpoint of `family`.

    Without a name, the family the model was imported from, or the first that can express it. Raises
    CheckpointError if none can, or the files do not fit; then nothing is left at `out`.
    """
    model, out = Path(model), Path(out)
    check_wide_awake(model)
    config = _read_ours(model / "config.json")
    origin = read_json(model / ORIGIN) if (model / ORIGIN).exists() else {}
    target = _target(family or origin.get("family"), config)
    written = write_config(target, config, origin.get("config") if origin.get("family") == target.name else None)

    tensors = SafetensorsSource(model)
    shapes = parameter_shapes(config)
    check_tensors(shapes, tensors, ignored=(HEAD,) if config.tie_word_embeddings else ())
    entries = _entries(target.weights(config), shapes, tensors)
    _set_dtype(written, str(tensors.dtype(EMBEDDINGS)).removeprefix("torch."))
    with new_directory(out) as folder:
        write_weights(folder, entries, shard_bytes)
        write_json(folder / "config.json", written)
        carry(model, folder)
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return ExportReport(
        family=target.name,
        source=str(model),
        out=str(out),
        num_tensors=len(entries),
        num_parameters=sum(entry.nbytes // entry.dtype.itemsize for entry in entries),
        num_bytes=sum(entry.nbytes for entry in entries),
        files=files,
    )


def _read_ours(path: Path) -> PragnosiaConfig:
    fields = read_json(path)
    if fields.get("model_type") != PragnosiaConfig.model_type:
        raise CheckpointError(f"{path}: model_type is {fields.get('model_type')!r}, expected a Pragnosia model")
    try:
        config: PragnosiaConfig = PragnosiaConfig.from_dict(fields)
    except (ConfigError, StrictDataclassError, TypeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    return config


def _target(name: str | None, config: PragnosiaConfig) -> Family:
    return family_named(name) if name else fitting_family(config)


def _entries(rules: list[Rule], shapes: Mapping[str, Shape], source: TensorSource) -> list[Entry]:
    """One entry to write for each of their tensors."""
    return [
        Entry(name, source.dtype(rule.ours), shape, partial(rule.to_theirs, number, source))
        for rule in rules
        for number, (name, shape) in enumerate(rule.their_shapes(shapes[rule.ours]).items())
    ]


def _set_dtype(written: dict[str, Any], dtype: str) -> None:
    """Training may have changed the precision since the configuration was read."""
    written["torch_dtype" if "torch_dtype" in written else "dtype"] = dtype
