"""The stream writes what safetensors reads; directories appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pragnosia.checkpoints.source import DTYPES, SafetensorsSource
from pragnosia.checkpoints.writer import Entry, new_directory, write_safetensors, write_weights
from pragnosia.errors import CheckpointError


def entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: iter(tensor.split(1)))


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    tensors = {name: (torch.arange(6) % 2).view(3, 2).to(dtype) for name, dtype in DTYPES.items()}
    write_safetensors(tmp_path / "x.safetensors", [entry(name, tensor) for name, tensor in tensors.items()])
    read = load_file(tmp_path / "x.safetensors")
    assert all(read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert all(torch.equal(read[name].float(), tensor.float()) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_stay_within_their_size_and_the_index_finds_everything(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 4) for i in range(9)}
    entries = [entry(name, tensor) for name, tensor in tensors.items()]
    files = write_weights(tmp_path, entries, shard_bytes=200)
    assert len(files) > 2
    for name in files:
        held = load_file(tmp_path / name)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 200
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    source = SafetensorsSource(tmp_path)
    assert set(source.names) == tensors.keys()
    assert all(torch.equal(source.read(name), tensor) for name, tensor in tensors.items())
    assert torch.equal(source.read("t5", (slice(2, 4),)), tensors["t5"][2:4])
    assert torch.equal(source.read("t5", (3, slice(1, 3))), tensors["t5"][3, 1:3])


def test_a_directory_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_directory(out) as folder:
        (folder / "file").touch()
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").exists()
    assert out.stat().st_mode == (tmp_path / "deep").stat().st_mode  # not the private mode of temporary directories


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, OSError])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    expected = CheckpointError if failure is OSError else failure
    with pytest.raises(expected), new_directory(tmp_path / "out") as folder:  # noqa: PT012
        (folder / "half").touch()
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_attempt_left_is_swept(tmp_path: Path) -> None:
    dead, alive, other = (tmp_path / f".{name}.partial" for name in (f"out.{2**30}", "out.1", f"outer.{2**30}"))
    for left in (dead, alive, other):
        left.mkdir()
    with new_directory(tmp_path / "out"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([alive, other, tmp_path / "out"])


def test_an_empty_directory_is_filled_and_any_other_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_directory(tmp_path / "out") as folder:
        (folder / "file").touch()
    with pytest.raises(CheckpointError, match="already exists"), new_directory(tmp_path / "out"):
        pass
    with pytest.raises(CheckpointError, match="already exists"), new_directory(tmp_path / "out" / "file"):
        pass
    with pytest.raises(CheckpointError, match="cannot write"), new_directory(tmp_path / "out" / "file" / "below"):
        pass
