"""`inspect`, `import`, `export`: damage, and directories that are something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia import kernels
from pragnosia.checkpoints.places import places
from pragnosia.checkpoints.source import open_safetensors
from pragnosia.errors import CheckpointError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

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
        "no family", "as imported ones", "nearest", "experts.num_shared is 1, there 0", "sigmoid"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("permissions_bind")
def test_weights_that_may_not_be_read_are_called_so(at_once: Run, model: Path, tmp_path: Path) -> None:
    locked = Path(shutil.copytree(model, tmp_path / "locked"))
    (locked / "model.safetensors").chmod(0)
    for command in (("inspect", locked), ("generate", locked, "hi"), ("export", locked, tmp_path / "out")):
        at_once(*command).refused("cannot read", "model.safetensors: Permission denied")
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors: Permission denied"):
        open_safetensors(locked / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors: Permission denied"):
        places(locked)


def test_lobes_that_are_no_mapping_name_file_and_key(run: Run, model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    values = json.loads((broken / "config.json").read_text("utf-8"))
    values["experts"]["lobes"] = ["a"]
    (broken / "config.json").write_text(json.dumps(values), "utf-8")
    for command in (("inspect", broken), ("generate", broken, "hi"), ("pack", broken, tmp_path / "out")):
        run(*command).refused("config.json: experts.lobes is ['a']; it must map labels to numbers of units")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_a_packed_model_is_neither_packed_nor_exported(run: Run, at_once: Run, model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert run("pack", model, packed, "--json").code == 0
    at_once("pack", packed, tmp_path / "out").refused("is packed already", "the model it was made from")
    at_once("export", packed, tmp_path / "out").refused(
        "is packed, which no family reads", "the model it was made from"
    )
    assert not (tmp_path / "out").exists()


def test_a_dense_model_packs_and_keeps_to_a_budget(run: Run, model: Path, tmp_path: Path) -> None:
    dense = Path(shutil.copytree(model, tmp_path / "dense"))
    organs: dict[str, Any] = {"experts": None, "feed_forward": {"width": 48}}
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "attention": {"num_heads": 2, "num_key_value_heads": 1}}
    PragnosiaForCausalLM(PragnosiaConfig(vocab_size=300, **shape, **organs)).save_pretrained(dense)
    packed = run("pack", dense, tmp_path / "out", "--format", "int8", "--json").values
    assert packed["bits_per_weight"] > 8
    seen, whole = (run("inspect", folder, "--json").values for folder in (tmp_path / "out", dense))
    assert (seen["precision"], whole["precision"]) == ("int8", "float32")
    assert seen["memory_parts"]["run"]["weights"] == whole["memory_parts"]["run"]["weights"] / 4
    plan = run("plan", dense, "--memory", "8GiB", "--json").values
    assert plan["dense"]
    assert plan["hit_rate"] == 1.0
    for folder in (dense, tmp_path / "out"):
        assert (
            run("generate", folder, "hi", "--memory", "8GiB", "--max-new-tokens", "3", "--json").values["tokens"] == 3
        )
