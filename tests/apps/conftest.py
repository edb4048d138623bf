"""A model directory small enough to make anew, and the command line run in this process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia.apps.cli import main
from pragnosia.data import Texts, train_tokenizer
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

STORY = "Once upon a time there was a small brain. It slept most of the day, and woke a little for every word.\n" * 40


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, Any]:
        """stdout as the one JSON object it must be."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    def refused(self, *words: str) -> None:
        """Exit code 2, nothing on stdout, and one line on stderr that says all of `words`."""
        assert self.code == 2, self.err
        assert self.out == ""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        for word in words:
            assert word in lines[0]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line."""

    def command(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return command


def cold(*arguments: object) -> Outcome:
    """A command line in a process of its own; it fails the test if torch or transformers was loaded."""
    script = (
        "import sys; from pragnosia.apps.cli import main; code = main(sys.argv[1:]); "
        "loaded = {'torch', 'transformers'} & set(sys.modules); sys.exit(99 if loaded else code)"
    )
    words = [str(argument) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode != 99, f"{words} loaded something heavy"
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def at_once() -> Callable[..., Outcome]:
    """Run a command line that must answer before anything heavy is loaded."""
    return cold


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sparse model with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    train_tokenizer(Texts([STORY], "story"), 300, folder)
    config = PragnosiaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=64,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        experts={
            "num_units": 8,
            "unit_width": 16,
            "num_shared": 1,
            "lobes": {"language": 4, "reasoning": 4},
            "thalamus": {"kind": "sigmoid", "num_awake": 2},
        },
    )
    torch.manual_seed(0)  # the same model, whichever test asks for it first
    PragnosiaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text."""
    path = tmp_path_factory.mktemp("texts") / "story.txt"
    path.write_text(STORY, "utf-8")
    return path


@pytest.fixture(scope="session")
def calibrated(model: Path, story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with exits and a dial."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(model, folder)
    assert main(["calibrate", str(folder), "--data", str(story), "--agreement", "0.6", "--layers", "1", "--json"]) == 0
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, story: Path) -> Path:
    """A model directory as `train` leaves it, after two steps."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "tiny.yaml"
    config.write_text(
        "model: {preset: nano, hidden_size: 32, num_hidden_layers: 1, max_position_embeddings: 64}\n"
        "tokenizer: {vocab_size: 280}\nbatch: {batch_size: 2, sequence_length: 32}\nsteps: 2\n"
        "logging: {tensorboard: false, curves: false}\n",
        "utf-8",
    )
    assert main(["train", str(config), "--data", str(story), "--out", str(folder / "run"), "--json"]) == 0
    return folder / "run"
