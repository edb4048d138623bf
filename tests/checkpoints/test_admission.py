"""Sources and destinations: refused at first sight, without loading torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pragnosia.checkpoints.admission import check_source, check_vacant
from pragnosia.errors import CheckpointError, UnsupportedArchitectureError


def test_sources(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        check_source(tmp_path / "none")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(
        UnsupportedArchitectureError, match=r"expected a directory of safetensors, a \.gguf file or a llama2"
    ):
        check_source(tmp_path / "model.onnx")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(CheckpointError, match="truncated"):
        check_source(tmp_path / "empty.gguf")
    (tmp_path / "empty.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        check_source(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "pragnosia"}')
    with pytest.raises(CheckpointError, match=r"is a pragnosia model already: .*pragnosia export") as caught:
        check_source(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    check_source(tmp_path)


def test_destinations(tmp_path: Path) -> None:
    check_vacant(tmp_path)
    check_vacant(tmp_path / "new")
    (tmp_path / "mine").touch()
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(CheckpointError, match="already exists and is not an empty directory"):
            check_vacant(taken)


def test_nothing_heavy_is_loaded() -> None:
    script = (
        "import sys, pragnosia.checkpoints.admission; print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
