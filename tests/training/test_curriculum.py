"""A run's curriculum: measured once, kept, and refused where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pragnosia.data import build_corpus, load_tokenizer
from pragnosia.errors import ConfigError
from pragnosia.inference.loading import load_model
from pragnosia.training.configuration import read_config
from pragnosia.training.curriculum import make_curriculum
from pragnosia.training.progress import Silent
from pragnosia.training.trainer import train

Configure = Callable[..., dict[str, Any]]


class Notes(Silent):  # type: ignore[misc]
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_a_models_loss_says_what_is_hard(configure: Configure, corner: Path, tmp_path: Path) -> None:
    teacher, quiet = tmp_path / "teacher", Silent()
    train(configure(steps=2, seed=3), out=teacher, reporter=quiet)
    settings = configure(steps=3, curriculum={"by": "loss", "model": str(teacher), "steps": 3})
    first, again = Notes(), Notes()
    train(settings, out=tmp_path / "run", reporter=first)
    assert any("by loss" in line for line in first.lines)
    train(settings, out=tmp_path / "again", reporter=again)
    assert not any("by loss" in line for line in again.lines), "measured once, kept with the text"
    config = read_config(settings)
    corpus = build_corpus(config.data.sources, load_tokenizer(corner / "tokenizer"), corner / "cache")
    assert config.curriculum is not None
    made = make_curriculum(config.curriculum, corpus, 16, 4, tmp_path / "run", tmp_path, quiet)
    model = load_model(teacher)
    for window in (0, 7):
        row = torch.from_numpy(corpus.parts[0].train.read(window * 16, 16))[None]
        with torch.no_grad():
            expected = float(model(row, labels=row).loss)
        assert made.difficulties[0][window] == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(made.difficulties[0]).all()


def test_impossible_curricula(configure: Configure, tmp_path: Path) -> None:
    for wrong, word in (
        ({"by": "loss", "steps": 3}, "takes a model"),
        ({"by": "length", "steps": 3, "model": "x"}, "takes a model"),
        ({"by": "length", "steps": 0}, "at least 1"),
        ({"by": "length", "steps": 3, "start": 0}, "above 0"),
        ({"by": "lengths", "steps": 3}, "curriculum.by"),
        ({"by": "length", "step": 3}, "curriculum.steps"),
    ):
        with pytest.raises(ConfigError, match=word):
            read_config(configure(curriculum=wrong))
    missing = configure(curriculum={"by": "loss", "model": str(tmp_path / "none"), "steps": 2})
    with pytest.raises(ValueError, match="no model directory"):
        train(missing, out=tmp_path / "run", reporter=Silent())
