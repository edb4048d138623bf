"""`inspect`, `import`, `export`: damage, and directories that are something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_inspect_sees_truncated_weights(at_once: Run, run: Run, model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    at_once("inspect", broken).refused("model.safetensors", "truncated")
    weights.unlink()
    assert run("inspect", broken, "--json").code == 0, "a shape alone can be asked about"


def test_inspect_names_the_key_that_was_meant(run: Run, model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    values = json.loads((broken / "config.json").read_text("utf-8"))
    (broken / "config.json").write_text(json.dumps(values | {"num_attention_heads": 4}), "utf-8")
    run("inspect", broken).refused("config.json", "num_attention_heads", "attention.num_heads")


def test_import_of_our_own_and_of_nothing(at_once: Run, model: Path, tmp_path: Path) -> None:
    at_once("import", model, tmp_path / "out").refused("pragnosia model already", "export")
    at_once("import", tmp_path / "none", tmp_path / "out").refused("does not exist")
    assert not (tmp_path / "out").exists()
    at_once("export", tmp_path / "none", tmp_path / "out").refused("no model directory at")
    (tmp_path / "taken").write_text("mine")
    at_once("export", model, tmp_path / "taken").refused("already exists")


def test_export_says_what_no_family_has(run: Run, model: Path, tmp_path: Path) -> None:
    run("export", model, tmp_path / "out").refused(
        "no family", "nearest", "experts.num_shared is 1, there 0", "sigmoid"
    )
    assert not (tmp_path / "out").exists()
