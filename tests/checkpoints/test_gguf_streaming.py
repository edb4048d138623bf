"""GGUF files within a budget: what is read as it is wanted becomes the numbers that a loaded model has, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, kernels
from pragnosia.apps.cli import main
from pragnosia.errors import CheckpointError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.loading import load_model
from pragnosia.inference.plan import Rates
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, pool_of
from pragnosia.kernels.blocks import BLOCKS, Extent
from pragnosia.kernels.pool import UnitPool
from pragnosia.units import GIB

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
KINDS = gguf.GGMLQuantizationType
WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 256}


def streamed(path: Path, slots: int) -> Any:
    shelf = open_shelf(path)
    return build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=slots))[0]


def check_same(path: Path, slots: int) -> Any:
    """A prompt's logits and an answer's words, of the model in memory and of the streamed one."""
    here, there = load_model(path), streamed(path, slots)
    assert pool_of(there) is not None, "something comes and goes"
    ids = torch.randint(3, 90, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(here(ids).logits, there(ids).logits)
    first, second = (Pragnosia(model).generate_tokens(ids, max_new_tokens=8) for model in (here, there))
    assert first == second
    return there


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_kind_of_blocks_is_what_the_library_says(kind: str, tmp_path: Path) -> None:
    blocks, count = BLOCKS[kind], 3 * 256
    assert (blocks.numbers, blocks.num_bytes) == gguf.GGML_QUANT_SIZES[KINDS[kind]]
    generator = torch.Generator().manual_seed(3)
    data = torch.randint(0, 256, (count // blocks.numbers, blocks.num_bytes), dtype=torch.uint8, generator=generator)
    if kind in ("F32", "F16"):
        plain = torch.float32 if kind == "F32" else torch.float16
        data = torch.randn(count, generator=generator).to(plain).view(torch.uint8).view(-1, blocks.num_bytes)
        data[:2] = (torch.tensor([[3e-7], [-6e-5]])).to(plain).view(torch.uint8)  # below the normal halves
    for at in {"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "F32": (), "F16": ()}.get(kind, (0, 2)):
        scales = torch.randn(len(data), 1, generator=generator).half()
        data[:, at : at + 2] = scales.view(torch.uint8)
    expected = torch.from_numpy(gguf.quants.dequantize(data.numpy().reshape(-1), KINDS[kind]).copy()).bfloat16()
    (tmp_path / "blocks").write_bytes(b"?" * 37 + data.numpy().tobytes())
    pool = UnitPool(1, 1, 2 * count, 1)
    pool.place(0, 0, [Extent(tmp_path / "blocks", 37, data.numel(), blocks)])
    assert torch.equal(pool.hold(0, 0).view(torch.bfloat16), expected.view(-1))


def test_rows_that_change_places_come_in_pieces(tmp_path: Path) -> None:
    """Of more than one read, none of which ends where a page or a row does; pairs of two heads, as llama.cpp has it."""
    rows, width, head = 96, 20_000, 48
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(4)).numpy()
    put_apart = torch.arange(rows).view(-1, head // 2, 2).transpose(1, 2).reshape(-1)
    for kind in ("Q5_0", "BF16"):
        data = gguf.quants.quantize(values, KINDS[kind])
        expected = torch.from_numpy(gguf.quants.dequantize(data, KINDS[kind]).copy()).bfloat16()[put_apart]
        (tmp_path / kind).write_bytes(b"?" * 5 + data.tobytes())
        pool = UnitPool(1, 1, 2 * rows * width, 1)
        pool.place(0, 0, [Extent(tmp_path / kind, 5, data.nbytes, BLOCKS.get(kind), data.nbytes // rows, head)])
        assert torch.equal(pool.hold(0, 0).view(torch.bfloat16).view(rows, width), expected)


@pytest.mark.parametrize(("family", "kind"), [("mixtral", "F32"), ("mixtral", "Q8_0"), ("qwen3_moe", "Q4_K")])
def test_units(written, family: str, kind: str) -> None:
    _, path = written(family, kind, **(WIDE if kind == "Q4_K" else {}))
    there = check_same(path, 5)
    assert there.dtype == (torch.float32 if kind == "F32" else torch.bfloat16)


@pytest.mark.parametrize(("family", "kind"), [("llama", "F32"), ("llama", "Q4_0"), ("qwen2", "F16")])
def test_layers(written, family: str, kind: str) -> None:
    """Of the llama architecture the rows of queries and keys are permuted in the file."""
    _, path = written(family, kind, num_hidden_layers=4)
    check_same(path, 2)


def test_the_plan_knows_what_is_read(written) -> None:
    _, path = written("qwen3_moe", "Q4_K", **WIDE)
    shelf = open_shelf(path)
    assert shelf.record == 2 * 3 * 256 * 256
    assert shelf.record_read == 3 * 256 * 144
    assert shelf.on_disk == path.stat().st_size
    plan = replace(make_plan(shelf, GIB, interpreter=0), slots=5)
    rates = Rates(memory=1e12, disk=1e6)
    assert plan.tokens_per_second(rates) > 3 * replace(plan, record_read=0).tokens_per_second(rates)
    model = streamed(path, 5)
    with torch.inference_mode():
        model(torch.tensor([[1]]))
    stats: Any = pool_of(model).stats()  # type: ignore[union-attr]
    assert stats.bytes_read == stats.misses * shelf.record_read


def test_what_has_to_be_turned_is_packed_first(written) -> None:
    _, path = written("gpt_oss", "Q8_0")
    with pytest.raises(CheckpointError, match=r"turned or unpacked.*pragnosia pack .*model\.gguf OUT") as told:
        open_shelf(path)
    assert "\n" not in str(told.value)


def test_a_file_cut_short_meanwhile(written) -> None:
    _, path = written("qwen3_moe", "Q8_0")
    model = streamed(path, 5)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 8)
    with pytest.raises(CheckpointError, match=r"cannot read unit .*model\.gguf: the file ends too soon"):
        model(torch.arange(20)[None])


@pytest.mark.parametrize(("kind", "form"), [("Q4_0", "Q4_0 and F32, read as bf16"), ("F32", "fp32")])
def test_the_plan_calls_it_what_it_is(written, kind: str, form: str, capfd: pytest.CaptureFixture[str]) -> None:
    _, path = written("mixtral", kind)
    assert main(["plan", str(path), "--memory", "4GiB", "--rates", "memory=20GB/s,disk=1GB/s"]) == 0
    assert f"  as it lies, {form}\n" in capfd.readouterr().out
