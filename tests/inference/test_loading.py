"""Loading: whatever is wrong with a model directory is told in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pragnosia import Pragnosia, PragnosiaForCausalLM
from pragnosia.data import vocabulary_digest
from pragnosia.errors import CheckpointError, ConfigError, UserError
from pragnosia.inference.directory import check_directory
from pragnosia.inference.loading import load_model, load_tokenizer

Damage = Callable[[Path], Any]


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    """A copy to break, in one file of weights."""
    return Path(shutil.copytree(directory, tmp_path / "model"))


@pytest.fixture
def shards(directory: Path, tmp_path: Path) -> Path:
    """A copy to break, in several files of weights."""
    model: Any = PragnosiaForCausalLM.from_pretrained(directory)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    return tmp_path / "shards"


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(change(values) or values))


def weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def a_file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def a_folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


ROUTER = "model.layers.1.feed_forward.thalamus.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no directory": (shutil.rmtree, "no model directory at"),
    "a file": (a_file_instead, "no model directory at"),
    "no config": (lambda at: (at / "config.json").unlink(), "holds no config.json"),
    "config is a directory": (lambda at: a_folder_instead(at / "config.json"), "cannot read"),
    "config is no JSON": (lambda at: (at / "config.json").write_text('{"model_type": '), "is not valid JSON"),
    "config is binary": (lambda at: (at / "config.json").write_bytes(b"\xff\xfe\x00"), "is not valid JSON"),
    "config is a list": (lambda at: (at / "config.json").write_text("[1]"), "holds a JSON list, expected an object"),
    "config names no family": (lambda at: (at / "config.json").write_text("{}"), "names no model_type, expected 'prag"),
    "config is empty": (lambda at: (at / "config.json").write_text(""), "is not valid JSON"),
    "another family": (
        lambda at: rewrite(at / "config.json", lambda values: values.update(model_type="bert")),
        r"\(model_type bert\)",
    ),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights cut": (lambda at: cut(at / "model.safetensors", 5000), "truncated or corrupt"),
    "weights cut by a byte": (
        lambda at: cut(at / "model.safetensors", (at / "model.safetensors").stat().st_size - 1),
        "truncated or corrupt",
    ),
    "weights empty": (lambda at: cut(at / "model.safetensors", 0), "truncated or corrupt"),
    "weights are text": (lambda at: (at / "model.safetensors").write_text("hello, world" * 9), "truncated or corrupt"),
    "a tensor is missing": (
        lambda at: weights(at, lambda tensors: tensors.pop(ROUTER)),
        f"1 missing keys, first {ROUTER}",
    ),
    "a tensor too many": (
        lambda at: weights(at, lambda tensors: tensors.update(extra=torch.zeros(2))),
        "1 unexpected keys, first extra",
    ),
    "a tensor of another shape": (
        lambda at: weights(at, lambda tensors: tensors.update({ROUTER: torch.zeros(3, 24)})),
        rf"1 mismatched keys, first {ROUTER} \(3, 24\)",
    ),
    "config says more layers": (
        lambda at: rewrite(
            at / "config.json",
            lambda values: (
                [values[key].append(values[key][0]) for key in ("mixers", "feed_forwards", "layer_types")]
                and values | {"num_hidden_layers": 3}
            ),
        ),
        "missing keys, first model.layers.2",
    ),
    "tokenizer is no JSON": (lambda at: (at / "tokenizer.json").write_text("{"), "cannot read the tokenizer"),
    "tokenizer is cut": (lambda at: cut(at / "tokenizer.json", 900), "cannot read the tokenizer"),
    "tokenizer is binary": (lambda at: (at / "tokenizer.json").write_bytes(bytes(range(256))), "cannot read the tok"),
    "tokenizer config is no JSON": (
        lambda at: (at / "tokenizer_config.json").write_text("{"),
        "cannot read the tokenizer",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_directory(damage: Damage, message: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        Pragnosia.from_pretrained(copy)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


SHARD_DAMAGES: dict[str, tuple[Damage, str]] = {
    "a shard is gone": (lambda at: at.unlink(), "has no model-00002-of-"),
    "a shard is cut": (lambda at: cut(at, 700), "model-00002-of-.* is truncated or corrupt"),
    "index is no JSON": (lambda at: (at.parent / "model.safetensors.index.json").write_text("{"), "not a valid index"),
    "index is binary": (
        lambda at: (at.parent / "model.safetensors.index.json").write_bytes(b"\xff\xfe"),
        "not a valid index",
    ),
    "index says nothing": (
        lambda at: (at.parent / "model.safetensors.index.json").write_text("{}"),
        "not a valid index",
    ),
    "index names numbers": (
        lambda at: (at.parent / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'),
        "not a valid index",
    ),
}


@pytest.mark.parametrize(("damage", "message"), SHARD_DAMAGES.values(), ids=SHARD_DAMAGES.keys())
def test_damaged_shards(damage: Damage, message: str, shards: Path) -> None:
    damage(next(shards.glob("model-00002-of-*.safetensors")))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(shards)
    assert "\n" not in str(caught.value)


def test_an_unknown_key(copy: Path) -> None:
    rewrite(copy / "config.json", lambda values: values.update(num_expert=3))
    with pytest.raises(ConfigError, match=r"config\.json: unknown configuration key 'num_expert'"):
        load_model(copy)


def test_an_impossible_size(copy: Path) -> None:
    rewrite(copy / "config.json", lambda values: values.update(hidden_size="wide"))
    with pytest.raises(ConfigError, match="hidden_size is 'wide'"):
        load_model(copy)


def test_a_tokenizer_of_another_model(copy: Path, make_model: Callable[..., PragnosiaForCausalLM]) -> None:
    make_model(vocab_size=200).save_pretrained(copy)
    with pytest.raises(CheckpointError, match=r"knows \d+ tokens, the model 200; it belongs to another model"):
        Pragnosia.from_pretrained(copy)


def test_a_tokenizer_of_another_model_of_the_same_size(copy: Path) -> None:
    Pragnosia.from_pretrained(copy)
    rewrite(copy / "config.json", lambda values: values.update(tokenizer_digest=vocabulary_digest(copy)))
    Pragnosia.from_pretrained(copy).model.save_pretrained(copy)
    assert Pragnosia.from_pretrained(copy).model.config.tokenizer_digest == vocabulary_digest(copy)
    rewrite(copy / "tokenizer.json", lambda values: values["model"]["vocab"].update(a=66, b=65))
    for load in (Pragnosia.from_pretrained, check_directory):
        with pytest.raises(CheckpointError, match=r"the tokenizer in .* belongs to another model: its voc") as caught:
            load(copy)
        assert "\n" not in str(caught.value)


def test_at_first_sight_nothing_heavy_is_loaded(copy: Path) -> None:
    script = (
        "import sys; from pragnosia.inference.directory import check_directory; check_directory(sys.argv[1]); "
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(copy)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_without_tokenizer_speaks_in_tokens(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    speaker = Pragnosia.from_pretrained(copy)
    assert len(speaker.generate_tokens([1, 2], max_new_tokens=3)) == 3
    with pytest.raises(CheckpointError, match="this model has no tokenizer"):
        speaker.generate("x")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.json"):
        load_tokenizer(copy, 99)


@pytest.mark.parametrize("device", ["nonsense", "cuda:7"])
def test_a_device_that_is_not_there(device: str, directory: Path) -> None:
    with pytest.raises(UserError, match=f"cannot use the device '{device}'") as caught:
        load_model(directory, device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float17", "nonsense"])
def test_a_precision_that_is_none(dtype: str, directory: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(directory, dtype=dtype)
    assert "\n" not in str(caught.value)


def test_loading_keeps_what_was_saved(directory: Path, shards: Path) -> None:
    one, many = load_model(directory), load_model(shards)
    assert not one.training
    assert one.dtype == torch.float32
    assert all(torch.equal(tensor, many.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert load_model(directory, dtype="bfloat16").dtype == torch.bfloat16


def test_the_precision_of_the_file_is_kept(directory: Path, tmp_path: Path) -> None:
    load_model(directory, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16


def test_loading_is_quiet(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Pragnosia.from_pretrained(directory)
    assert capfd.readouterr() == ("", "")
