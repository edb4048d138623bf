"""Columns packed, whole in memory and from disk: rows of `down` lie turned, a row to a neuron."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import CheckpointError
from pragnosia.inference.few_bits import load_in_few_bits
from pragnosia.inference.loading import load_model
from pragnosia.inference.sampling import Sampling
from pragnosia.inference.stream import load_streamed
from pragnosia.kernels.formats import pack, unpack
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
CLOSE = 0.04


def as_stored(source: Path, name: str) -> PragnosiaForCausalLM:
    """The model in memory, in single precision, with every packed matrix as its rows say."""
    model = PragnosiaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for tensor_name, tensor in model.named_parameters():
        if name == "bf16" or tensor.ndim < 2 or "thalamus" in tensor_name or "bias" in tensor_name:
            continue
        entry = "int8" if "embed_tokens" in tensor_name or "lm_head" in tensor_name else name
        rows = tensor.data.transpose(1, 2) if tensor_name.endswith("bank.down") else tensor.data
        rows.copy_(unpack(pack(rows, entry), rows.shape[-1], entry))
    return model


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The median over tokens, relative."""
    ours, theirs = ours.float(), theirs.float()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median())


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of columns of 8, whose rows of `down` are rows of neurons once they are packed, in odd sizes."""
    folder = tmp_path_factory.mktemp("columns") / "model"
    torch.manual_seed(0)
    # all awake: no near tie of the router can hide, or make, a difference
    shape = {"width": 320, "column_width": 8, "bias": True, "thalamus": {"num_awake": 40, "rank": 24}}
    config = PragnosiaConfig(
        vocab_size=120,
        hidden_size=200,
        num_hidden_layers=3,
        initializer_range=0.15,
        attention={"num_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
        columns=shape,
        feed_forward={"width": 96},
        feed_forwards=["columns", "dense", "columns"],
    )
    model = PragnosiaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_(std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "int2", "nf4"])
def test_packed_columns_speak_as_stored(name: str, columns: Path, tmp_path: Path) -> None:
    pack_model(blueprint(columns), tmp_path / "packed", name)
    if name == "int8":
        assert (tmp_path / "packed" / "units.bin").stat().st_size == 2 * 40 * 8192, "16 rows of 320 bytes, on pages"
    truth = as_stored(columns, name)
    whole: Any = load_model(tmp_path / "packed")
    tight = load_streamed(tmp_path / "packed", 8 * GIB)[0]
    ids = torch.randint(0, 120, (1, 30), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = truth(ids).logits
        for length in (1, 4, 30):
            got = whole(ids[:, :length]).logits
            assert apart(got, expected[:, :length]) < CLOSE
            assert torch.equal(got, tight(ids[:, :length]).logits)
    decoder = Pragnosia(whole).decoder(64)
    decoder.read(ids[0, :4].tolist())
    said = list(decoder.speak(12, Sampling()))
    assert decoder._program is not None
    with torch.inference_mode():
        modules = whole(torch.tensor([decoder.ids[:-1]])).logits[:, -1]
    assert apart(decoder._program.logits, modules) < CLOSE
    assert Pragnosia(tight).generate_tokens(ids[:, :4], max_new_tokens=12) == said
    if name not in ("bf16", "int2"):
        few = Pragnosia(load_in_few_bits(columns, name))
        assert few.generate_tokens(ids[:, :4], max_new_tokens=12) == said


def test_records_of_another_size_are_refused(columns: Path, tmp_path: Path) -> None:
    pack_model(blueprint(columns), tmp_path / "packed", "int8")
    index = tmp_path / "packed" / "packed.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps({**values, "record_bytes": values["record_bytes"] - 64}))
    with pytest.raises(CheckpointError, match="pack it again"):
        load_streamed(tmp_path / "packed", 8 * GIB)
