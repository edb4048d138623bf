"""Quantised Hugging Face directories: packed here by the published layouts, and by bitsandbytes itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pragnosia.checkpoints import export_model, import_model
from pragnosia.checkpoints.dequantised import Dequantised
from pragnosia.checkpoints.source import SafetensorsSource, pieces
from pragnosia.errors import CheckpointError
from pragnosia.inference.loading import load_model

Pack = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""A matrix -> the tensors that hold it, by what follows its layer's name, and the matrix they stand for."""
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 96}


def random_codes(top: int, *shape: int) -> Tensor:
    return torch.randint(0, top, shape, generator=torch.Generator().manual_seed(sum(shape)))


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes along the first axis in words of 32 bits, the lowest bits first."""
    packed = torch.zeros(codes.shape[0] * bits // 32, *codes.shape[1:], dtype=torch.int64)
    for at in range(codes.shape[0]):
        packed[at * bits // 32] |= codes[at] << (at * bits % 32)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def gptq(bits: int, group: int, *, added: int = 1, shuffled: bool = False, symmetric: bool = False) -> Pack:
    def pack(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        outs, depth = matrix.shape
        groups = depth // group
        order = torch.arange(depth) // group
        order = order[torch.randperm(depth, generator=torch.Generator().manual_seed(0))] if shuffled else order
        codes = random_codes(1 << bits, depth, outs)
        zeros = torch.full((groups, outs), 1 << (bits - 1)) if symmetric else random_codes(1 << bits, groups, outs)
        scales = (torch.rand(groups, outs, generator=torch.Generator().manual_seed(1)) / 2**bits).half()
        held = {
            ".qweight": words(codes, bits),
            ".qzeros": words(((zeros - added) & ((1 << bits) - 1)).t(), bits).t().contiguous(),
            ".scales": scales,
            ".g_idx": order.int(),
        }
        return held, ((codes - zeros[order]) * scales.float()[order]).t()

    return pack


def awq(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    outs, depth = matrix.shape
    codes, zeros = random_codes(16, depth, outs), random_codes(16, depth // 32, outs)
    scales = (torch.rand(depth // 32, outs, generator=torch.Generator().manual_seed(1)) / 16).half()
    dealt = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(values: Tensor) -> Tensor:
        return words(values.view(len(values), -1, 8)[..., dealt].flatten(1).t(), 4).t().contiguous()

    held = {".qweight": packed(codes), ".qzeros": packed(zeros), ".scales": scales}
    rows = torch.arange(depth) // 32
    return held, ((codes - zeros[rows]) * scales.float()[rows]).t()


def four_bits(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """bitsandbytes' layout, without bitsandbytes; blocks run over the ends of rows."""
    codes, table = random_codes(16, matrix.numel()), torch.linspace(-1, 1, 16) ** 3
    absmax = torch.rand(-(-matrix.numel() // 64), generator=torch.Generator().manual_seed(1))
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": list(matrix.shape)}
    held = {
        ".weight": (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
        ".weight.absmax": absmax,
        ".weight.quant_map": table,
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return held, (table[codes] * absmax.repeat_interleave(64)[: len(codes)]).view(matrix.shape)


def eight_bits(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scales = matrix.abs().amax(1)
    codes = (matrix / scales[:, None] * 127).round().to(torch.int8)
    held = {".weight": codes, ".SCB": scales, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return held, codes.float() * scales[:, None] / 127


def by_the_library(kind: str, nested: bool) -> Pack:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("bitsandbytes.functional")

    def pack(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # block by block: on the CPU its release 0.50 mistakes the scales of rows that end inside a block
        blocks = matrix.reshape(-1, 64)
        rows, state = library.quantize_4bit(blocks, blocksize=64, quant_type=kind, compress_statistics=nested)
        numbers = library.dequantize_4bit(rows, state).view(matrix.shape)
        assert float((numbers - matrix).norm() / matrix.norm()) < 0.15
        state.shape = matrix.shape
        more = {f".weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {".weight": rows, **more}, numbers

    return pack


def eight_by_the_library(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("bitsandbytes.functional")
    held, _ = eight_bits(matrix)
    return held, library.int8_vectorwise_dequant(held[".weight"], held[".SCB"])


BITSANDBYTES = {"quant_method": "bitsandbytes"}
WAYS: dict[str, tuple[dict[str, Any], Callable[[], Pack]]] = {
    "bitsandbytes 4 bits": (BITSANDBYTES, lambda: four_bits),
    "bitsandbytes 8 bits": (BITSANDBYTES, lambda: eight_bits),
    "bitsandbytes' own nf4": (BITSANDBYTES, lambda: by_the_library("nf4", nested=False)),
    "bitsandbytes' own nf4, nested": (BITSANDBYTES, lambda: by_the_library("nf4", nested=True)),
    "bitsandbytes' own fp4": (BITSANDBYTES, lambda: by_the_library("fp4", nested=True)),
    "bitsandbytes' own 8 bits": (BITSANDBYTES, lambda: eight_by_the_library),
    "gptq 4 bits": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, lambda: gptq(4, 32)),
    "gptq 4 bits, symmetric": ({"quant_method": "gptq", "bits": 4}, lambda: gptq(4, 32, symmetric=True)),
    "gptq 4 bits, shuffled": ({"quant_method": "gptq", "bits": 4}, lambda: gptq(4, 32, shuffled=True)),
    "gptq 8 bits": ({"quant_method": "gptq", "bits": 8}, lambda: gptq(8, 16)),
    "gptq 2 bits": ({"quant_method": "gptq", "bits": 2}, lambda: gptq(2, 32)),
    "gptq version 2": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        lambda: gptq(4, 32, added=0),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, lambda: awq),
}


def quantise(folder: Path, settings: dict[str, Any], pack: Pack, family: str, make: Any) -> dict[str, Tensor]:
    """A directory as the hub has it; what its tensors stand for."""
    make(family, **SIZES).half().save_pretrained(folder)
    held, numbers = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.ndim == 2 and not any(part in name for part in ("embed_tokens", "lm_head", "gate.weight")):
            parts, numbers[name] = pack(tensor.float())
            held |= {name.removesuffix(".weight") + ending: part.contiguous() for ending, part in parts.items()}
        else:
            held[name], numbers[name] = tensor, tensor.float()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"quantization_config": settings}))
    return numbers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_every_matrix_is_what_it_stands_for(
    way: str, family: str, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, made = WAYS[way]
    expected = quantise(tmp_path / "hub", settings, made(), family, make_model)
    source = Dequantised(SafetensorsSource(tmp_path / "hub"), settings, torch.float32)
    assert set(source.names) == expected.keys()
    monkeypatch.setattr("pragnosia.checkpoints.source.PIECE_BYTES", 3000)
    monkeypatch.setattr("pragnosia.checkpoints.dequantised._AT_ONCE", 500)
    for name, numbers in expected.items():
        assert source.shape(name) == tuple(numbers.shape)
        whole = source.read(name)
        assert torch.equal(whole, numbers) or float((whole - numbers).abs().max()) <= 1e-6 * float(numbers.abs().max())
        if "own" in way:
            assert torch.equal(whole, numbers)
        assert torch.equal(torch.cat([piece.reshape(-1) for piece in pieces(source, name)]), whole.reshape(-1))
        if whole.ndim == 2:
            assert torch.equal(source.read(name, (3, slice(1, 7))), whole[3, 1:7])


@pytest.mark.parametrize("way", ["bitsandbytes 4 bits", "bitsandbytes 8 bits", "gptq 4 bits", "awq"])
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_they_run_and_are_imported(way: str, family: str, make_model, tmp_path: Path) -> None:
    settings, made = WAYS[way]
    numbers = quantise(tmp_path / "hub", settings, made(), family, make_model)
    fields = json.loads((tmp_path / "hub/config.json").read_text())
    (tmp_path / "plain").mkdir()
    save_file({name: t.contiguous() for name, t in numbers.items()}, tmp_path / "plain/model.safetensors")
    del fields["quantization_config"]
    (tmp_path / "plain/config.json").write_text(json.dumps(fields | {"dtype": "float32"}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    ids = torch.randint(3, 96, (1, 40), generator=torch.Generator().manual_seed(2))
    ours = load_model(tmp_path / "hub", torch.float32)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert float((ours(ids).logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    import_model(tmp_path / "hub", tmp_path / "ours")
    imported = load_model(tmp_path / "ours")
    assert imported.dtype == load_model(tmp_path / "hub").dtype == torch.bfloat16  # half precision has no kernels
    for name, tensor in ours.state_dict().items():
        assert torch.equal(imported.state_dict()[name], tensor.bfloat16())
    export_model(tmp_path / "ours", tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back/config.json").read_text())


@pytest.mark.parametrize(
    ("way", "changes", "drop", "message"),
    [
        ("gptq 4 bits", {"bits": 3}, None, "GPTQ of 3 bits"),
        ("gptq 4 bits", {"checkpoint_format": "marlin"}, None, "in the layout 'marlin'"),
        ("gptq 4 bits", {}, "scales", r"scales is missing beside model\.layers"),
        ("awq", {"version": "gemv"}, None, "AWQ of 4 bits in the layout 'gemv'"),
        ("awq", {}, "qzeros", "qzeros is missing"),
        ("bitsandbytes 4 bits", {}, "absmax", "absmax is missing"),
        ("bitsandbytes 8 bits", {}, "SCB", "weight_format has no place|is no matrix"),
    ],
)
def test_what_does_not_fit_is_told(
    way: str, changes: dict[str, Any], drop: str | None, message: str, make_model, tmp_path: Path
) -> None:
    settings, made = WAYS[way]
    quantise(tmp_path / "hub", settings | changes, made(), "qwen2", make_model)
    tensors = load_file(tmp_path / "hub/model.safetensors")
    gone = next((name for name in sorted(tensors) if drop is not None and name.endswith(drop)), None)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "hub/model.safetensors")
    with pytest.raises(CheckpointError, match=message) as told:
        load_model(tmp_path / "hub")
    assert "\n" not in str(told.value)
