"""Packed as it is loaded: the same bits as the packed model on disk, in memory near what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pragnosia import Pragnosia, kernels
from pragnosia.checkpoints import import_model
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, CheckpointError, UserError
from pragnosia.inference.few_bits import load_in_few_bits
from pragnosia.inference.loading import load_model
from pragnosia.kernels.formats import pack, unpack
from pragnosia.quantisation.layers import PackedLinear
from pragnosia.quantisation.packing import pack_model

needs_kernels = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


def save(folder: Path, family: str = "qwen3_moe", **changes: Any) -> Path:
    config = transformers.AutoConfig.for_model(
        family,
        **{
            "vocab_size": 120,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "initializer_range": 0.15,
            **changes,
        },
    )
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "attention_bias": True}
OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
FORMATS = ["int8", "int4", "int3", "int2", "nf4"]


def ids(length: int) -> torch.Tensor:
    return torch.randint(0, 120, (1, length), generator=torch.Generator().manual_seed(3))


@needs_kernels
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_the_packed_models_bit_for_bit(name: str, tied: bool, tmp_path: Path) -> None:
    source = save(tmp_path / "hf", **MIXTURE, tie_word_embeddings=tied, mlp_only_layers=[1])
    pack_model(blueprint(source), tmp_path / "packed", name)
    packed, ours = load_model(tmp_path / "packed"), load_in_few_bits(source, name)
    with torch.inference_mode():
        for length in (1, 5, 60):
            assert torch.equal(ours(ids(length)).logits, packed(ids(length)).logits)
    said = [Pragnosia(model).generate_tokens(ids(9), max_new_tokens=20) for model in (ours, packed)]
    assert said[0] == said[1]


@needs_kernels
@pytest.mark.parametrize(("option", "name"), [("load_in_4bit", "int4"), ("load_in_8bit", "int8")])
def test_the_options_name_the_formats(option: str, name: str, tmp_path: Path) -> None:
    for family, more in (("qwen3_moe", MIXTURE), ("gpt_oss", OSS)):
        source = save(tmp_path / family, family, **more)
        import_model(source, tmp_path / f"{family}-ours")
        pack_model(blueprint(source), tmp_path / f"{family}-packed", name)
        expected = load_model(tmp_path / f"{family}-packed")
        for place in (source, tmp_path / f"{family}-ours"):
            ours = Pragnosia.from_pretrained(place, **{option: True}, device_map="auto")
            with torch.inference_mode():
                assert torch.equal(ours.model(ids(12)).logits, expected(ids(12)).logits)


def test_a_dense_model(tmp_path: Path) -> None:
    source = save(tmp_path / "hf", "llama", attention_bias=True)
    truth = load_model(source, torch.float32)
    for name, tensor in truth.named_parameters():
        if tensor.ndim == 2:
            entry = "int8" if "embed" in name or "lm_head" in name else "int4"
            tensor.data.copy_(unpack(pack(tensor.data.bfloat16(), entry), tensor.shape[-1], entry))
    steps: list[tuple[int, int]] = []
    ours = load_in_few_bits(source, "int4", torch.float32, progress=lambda done, total: steps.append((done, total)))
    assert isinstance(ours.model.layers[0].feed_forward.up, PackedLinear)
    assert ours.model.norm.weight.dtype == torch.float32
    assert steps[-1][0] == steps[-1][1]
    with torch.inference_mode():
        got, expected = ours(ids(100)).logits, truth(ids(100)).logits  # many rows: nothing is rounded but the weights
    assert float((got - expected).norm() / expected.norm()) < 1e-4


PEAK = """
import resource, sys, torch
from pragnosia.inference.few_bits import load_in_few_bits
from pragnosia.kernels import native_library
native_library()
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_in_few_bits(sys.argv[1], "int4")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@needs_kernels
@pytest.mark.slow
def test_memory_peaks_near_the_packed_size(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 8, "vocab_size": 4096}
    source = save(tmp_path / "hf", **MIXTURE | {"num_experts": 64, "moe_intermediate_size": 512}, **sizes)
    plain = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    packed = pack_model(blueprint(source), tmp_path / "packed", "int4").num_bytes
    run = [sys.executable, "-c", PEAK, str(source)]
    peak = 1024 * int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert plain > 1.5e9
    assert peak < packed + 500e6  # mapped pages of the source, and a layer


def test_wishes_that_cannot_be(tmp_path: Path) -> None:
    source = save(tmp_path / "hf", "llama")
    for options, error, words in (
        ({"load_in_4bit": True, "load_in_8bit": True}, UserError, "exclude each other"),
        ({"load_in_4bit": True, "memory": "4GiB"}, BudgetError, "pack it first"),
        ({"load_in_4bit": True, "device": "meta"}, UserError, "packed weights run on the CPU"),
    ):
        with pytest.raises(error, match=words):
            Pragnosia.from_pretrained(source, **options)
    (source / "packed.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is packed already"):
        Pragnosia.from_pretrained(source, load_in_4bit=True)
