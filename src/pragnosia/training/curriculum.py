"""A run's curriculum: its settings, and how hard every window of its text is, measured once and kept with the text.

The order is data/curriculum.py; by `loss`, a model that was trained before says what is hard.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pragnosia.data import MEASURES, Corpus, Curriculum, Pace, TokenShards, vocabulary_digest, window_count
from pragnosia.data.curriculum import Difficulties, blocks
from pragnosia.errors import ConfigError
from pragnosia.inference.dial import model_print
from pragnosia.inference.directory import check_speaker
from pragnosia.measure.scoring import listening, score
from pragnosia.training.progress import Reporter
from pragnosia.units import format_count

_TOKENS = 4096  # read at once


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Which text comes first, and how fast the rest comes in."""

    by: Literal["length", "frequency", "loss"]
    """What is hard: long documents, rare tokens, or what `model` predicts badly."""
    steps: int
    """Until all of the text is drawn from."""
    start: float = 0.01
    """The easiest share, with which a run begins."""
    pacing: Literal["linear", "root"] = "root"
    """How competence grows: evenly, or fast at first."""
    model: str | None = None
    """By `loss`: a model directory with the run's tokenizer."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"curriculum.steps is {self.steps}; it must be at least 1")
        if not 0 < self.start <= 1:
            raise ConfigError(f"curriculum.start is {self.start}; it must lie above 0 and be at most 1")
        if (self.by == "loss") != (self.model is not None):
            raise ConfigError(
                f"curriculum.by is {self.by}, curriculum.model {self.model}; loss takes a model, the others take none"
            )

    def pace(self, rows_per_step: int) -> Pace:
        """In rows."""
        return Pace(self.steps * rows_per_step, self.start, 2 if self.pacing == "root" else 1)


def check_teacher(config: CurriculumConfig) -> None:
    """Raise UserErrors for a model that cannot say what is hard."""
    if config.model is not None:
        check_speaker(config.model)


def make_curriculum(
    config: CurriculumConfig,
    corpus: Corpus,
    length: int,
    rows_per_step: int,
    out: Path,
    cache: Path,
    reporter: Reporter,
) -> Curriculum:
    """Measure every window of the text, or find it measured in `cache`. Raises UserErrors."""
    if config.model is not None and vocabulary_digest(config.model) != vocabulary_digest(out):
        raise ConfigError(
            f"{config.model} has another tokenizer than this run, so its losses are of other tokens; "
            f"set tokenizer.path to {config.model}"
        )
    measured = tuple(_measured(config, part, length, cache, reporter) for part in corpus.parts)
    return Curriculum(config.by, config.pace(rows_per_step), measured)


def _measured(
    config: CurriculumConfig, part: TokenShards, length: int, cache: Path, reporter: Reporter
) -> Difficulties:
    teacher = None if config.model is None else model_print(config.model)
    name = hashlib.sha256(json.dumps([part.digest, length, config.by, teacher]).encode()).hexdigest()[:20]
    file = cache / f"curriculum-{name}.safetensors"
    count = window_count(part.train.tokens, length)
    try:
        held: Difficulties = load_file(file)["difficulties"]
        if held.shape == (count,):
            return held
    except (OSError, KeyError, SafetensorError):
        pass  # it is derived: what is missing or damaged is measured
    reporter.note(f"curriculum: measuring {format_count(count)} windows by {config.by}")
    found = _losses(config, part, length, count) if config.by == "loss" else MEASURES[config.by](part, length, count)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(save({"difficulties": found}))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return found


def _losses(config: CurriculumConfig, part: TokenShards, length: int, count: int) -> Difficulties:
    """A model's mean loss over each window's own tokens, but its first."""
    from pragnosia.inference.loading import load_model

    assert config.model is not None
    model = load_model(config.model)
    limit = int(model.config.max_position_embeddings)
    if length > limit:
        raise ConfigError(f"batch.sequence_length is {length}, {config.model} holds {limit} tokens; shorten it")
    found = []
    with listening(model):
        for block in blocks(part.train, length, count):
            for rows in torch.from_numpy(block).split(max(1, _TOKENS // length)):
                hidden = model.model(rows[:, :-1], use_cache=False).last_hidden_state
                scores = score(hidden.flatten(0, 1), model.lm_head, rows[:, 1:].flatten())
                found.append(-scores.log_probabilities.view(len(rows), -1).mean(1))
    return torch.cat(found).numpy().astype(np.float32)
