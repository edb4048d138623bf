"""Another family's checkpoint becomes one of ours: configuration, weights, and all that travels along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pragnosia.checkpoints.admission import check_source, check_tokenizer_size
from pragnosia.checkpoints.families import read_config, read_family
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.checkpoints.llama2c import Llama2cSource
from pragnosia.checkpoints.llama2c_tokenizer import find_tokenizer, read_tokenizer
from pragnosia.checkpoints.matching import (
    EMBEDDINGS,
    check_tensors,
    common_dtype,
    has_own_head,
    parameter_shapes,
)
from pragnosia.checkpoints.opening import opened
from pragnosia.checkpoints.rules import Rule
from pragnosia.checkpoints.source import Shape, TensorSource
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import SHARD_BYTES, Entry, new_directory, write_json, write_weights
from pragnosia.data import vocabulary_digest
from pragnosia.errors import CheckpointError
from pragnosia.model.configuration import PragnosiaConfig

ORIGIN = "origin.json"
"""Beside an imported model: which family it came from, and its config.json as it was."""


@dataclass(frozen=True)
class ImportReport:
    """What was read and what was written."""

    family: str
    source: str
    out: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    files: tuple[str, ...]
    """Everything in `out`."""
    has_tokenizer: bool


def import_model(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ImportReport:
    """Turn a Hugging Face directory, a GGUF file or a llama2.c file into a model directory of ours.

    `tokenizer` is for llama2.c files whose tokenizer does not lie beside them. Raises CheckpointError (also
    UnsupportedArchitectureError) or ConfigError; then nothing is left at `out`.
    """
    source, out = Path(source), Path(out)
    theirs, tensors = _open(source)
    config = read_config(theirs, str(source / "config.json" if source.is_dir() else source))
    family = read_family(theirs)
    if config.tie_word_embeddings and has_own_head(tensors):
        config.tie_word_embeddings = False
    rules = family.weights(config, tensors.names)
    entries = _entries(rules, parameter_shapes(config), tensors, config)
    _check_tokenizer(source, config)
    config.dtype = config.dtype or tensors.dtype(EMBEDDINGS)
    with new_directory(out) as folder:
        write_weights(folder, entries, shard_bytes)
        _carry(source, folder, config, Path(tokenizer) if tokenizer else None)
        config.architectures = ["PragnosiaForCausalLM"]
        config.tokenizer_digest = vocabulary_digest(folder)
        config.save_pretrained(folder)
        write_json(folder / ORIGIN, {"family": family.name, "config": dict(theirs)})
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return ImportReport(
        family=family.name,
        source=str(source),
        out=str(out),
        num_tensors=len(entries),
        num_parameters=sum(entry.nbytes // entry.dtype.itemsize for entry in entries),
        num_bytes=sum(entry.nbytes for entry in entries),
        files=files,
        has_tokenizer="tokenizer_config.json" in files,
    )


def _open(source: Path) -> tuple[Mapping[str, Any], TensorSource]:
    """The config.json and the tensors at `source`."""
    check_source(source)
    if source.is_file() and gguf_in(source) is None:
        file = Llama2cSource(source)
        return file.header.config_json(), file
    return opened(source)


def _entries(
    rules: list[Rule], shapes: Mapping[str, Shape], source: TensorSource, config: PragnosiaConfig
) -> list[Entry]:
    """One entry to write for each of our tensors, once all of theirs are known to fit."""
    assert {rule.ours for rule in rules} == shapes.keys(), {rule.ours for rule in rules} ^ shapes.keys()
    theirs = {rule: rule.their_shapes(shapes[rule.ours]) for rule in rules}
    expected = {name: shape for needed in theirs.values() for name, shape in needed.items()}
    check_tensors(expected, source, ignored=("lm_head.weight",) if config.tie_word_embeddings else ())
    return [
        Entry(rule.ours, common_dtype(list(needed), source), shapes[rule.ours], partial(rule.to_ours, source))
        for rule, needed in theirs.items()
    ]


def _check_tokenizer(source: Path, config: PragnosiaConfig) -> None:
    """Raise CheckpointError for a tokenizer that the imported model could not speak with."""
    file = source / "tokenizer.json"
    if gguf_in(source) is not None or not file.is_file():
        return
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a damaged file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot read the tokenizer in {source}: {reason}; fetch {file.name} again") from error
    check_tokenizer_size(source, tokenizer.get_vocab_size(), config.vocab_size)


def _carry(source: Path, folder: Path, config: PragnosiaConfig, tokenizer: Path | None) -> None:
    if source.is_dir() or gguf_in(source) is not None:
        carry(source, folder)
        return
    tokenizer = tokenizer or find_tokenizer(source, config.vocab_size)
    if tokenizer is not None:
        read_tokenizer(tokenizer, config.vocab_size, config.max_position_embeddings).save_pretrained(folder)
