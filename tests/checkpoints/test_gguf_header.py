"""Headers that are cut, foreign or damaged: one clear line, and nothing is built by what they say."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pragnosia.apps.cli import main
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.checkpoints.gguf_header import Tensor, gguf_in, read_header
from pragnosia.errors import CheckpointError, ConfigError, UnsupportedArchitectureError
from pragnosia.inference.loading import load_model

gguf = pytest.importorskip("gguf")


def test_tensors_lie_where_the_library_says(written) -> None:
    _, path = written("mixtral", "Q4_0")
    theirs = gguf.GGUFReader(path)
    expected = {
        tensor.name: Tensor(
            tensor.tensor_type.name, tuple(map(int, tensor.shape[::-1])), tensor.data_offset, tensor.n_bytes
        )
        for tensor in theirs.tensors
    }
    header = read_header(path)
    assert header.tensors == expected
    assert header.metadata == {
        name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")
    }


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(CheckpointError, match=r"pip install 'pragnosia\[gguf\]'"):
        load_model(path)


def small(path: Path, architecture: str = "llama", **numbers: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in numbers.items():
        writer.add_uint32(name.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, written, capsys: pytest.CaptureFixture[str]) -> None:
    def told(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert main(["generate", str(path), "hi"]) == 2
        return str(caught.value)

    _, whole = written("qwen3", "Q8_0")
    for size in (2, 20, 300, whole.stat().st_size - 5):
        (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:size])
        assert "truncated" in told(tmp_path / "cut.gguf")
    (tmp_path / "foreign.gguf").write_bytes(b"\x80\x02" + bytes(100))
    assert "does not begin as a GGUF file does" in told(tmp_path / "foreign.gguf")
    assert "does not exist" in told(tmp_path / "nowhere.gguf") or "No such file" in told(tmp_path / "nowhere.gguf")
    with pytest.raises(UnsupportedArchitectureError, match="GGUF architecture 'gemma3' is not supported"):
        load_model(small(tmp_path / "gemma.gguf", "gemma3"))
    assert "lack llama.block_count" in told(small(tmp_path / "bare.gguf"))
    assert "one of 3 parts" in told(small(tmp_path / "part.gguf", split__count=3))
    content = bytearray(small(tmp_path / "kind.gguf").read_bytes())
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    content[at : at + 4] = (99).to_bytes(4, "little")
    (tmp_path / "kind.gguf").write_bytes(content)
    assert "is of quantisation type 99" in told(tmp_path / "kind.gguf")
    (tmp_path / "both").mkdir()
    for name in ("a.gguf", "b.gguf"):
        small(tmp_path / "both" / name)
    assert "holds 2 GGUF files; name one" in told(tmp_path / "both")
    assert gguf_in(tmp_path / "hf") is None


def test_damage_anywhere_in_the_header_is_told(written, tmp_path: Path) -> None:
    def words(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"word {number}" for number in range(96)])
        writer.add_token_types([1] * 96)

    _, whole = written("qwen3", "Q8_0", words)
    content = whole.read_bytes()
    generator = np.random.default_rng(0)
    for number, at in enumerate(generator.integers(0, 3000, 60)):
        damaged = bytearray(content)
        damaged[at] ^= int(generator.integers(1, 256))
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError, ConfigError):  # a changed text or number may well be sound
            blueprint(path)
