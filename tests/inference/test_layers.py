"""A dense model whose layers come and go says what the model in memory says, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, CheckpointError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.layers import OnDisk
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, load_whole, pool_of
from pragnosia.quantisation.index import RESIDENT
from pragnosia.quantisation.packing import pack_model
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import attach
from pragnosia.tuning.recompute import recompute
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

LAYERS = 5
FAMILIES = {"llama": {"attention_bias": True}, "qwen2": {}, "qwen3": {"head_dim": 8}}


def made(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    config = transformers.AutoConfig.for_model(family, **{**sizes, **FAMILIES[family]})
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def streamed(folder: Path, slots: int) -> PragnosiaForCausalLM:
    shelf = open_shelf(folder)
    return build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=slots))[0]


def spoken(model: PragnosiaForCausalLM, count: int = 12) -> list[int]:
    return Pragnosia(model).generate_tokens(list(range(9)), max_new_tokens=count, **vars(Sampling()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = made(family, tmp_path / "model", dtype)
    here, ids = load_whole(folder), torch.randint(0, 96, (1, 40))
    for slots in (2, 4, LAYERS):
        there = streamed(folder, slots)
        with torch.inference_mode():
            for length in (3, 40):
                given = ids[:, :length]
                assert torch.equal(there(given, use_cache=False).logits, here(given, use_cache=False).logits)
        assert len(spoken(there)) == 12
        assert isinstance(there.model.layers[0].mixer, OnDisk) == (slots < LAYERS)


def test_what_stays_is_read_once_and_the_rest_at_most_once_a_token(tmp_path: Path) -> None:
    model = streamed(made("llama", tmp_path / "model"), 4)  # two stay, three pass
    pool = pool_of(model)
    assert pool is not None
    ids = torch.zeros(1, 1, dtype=torch.long)
    with torch.inference_mode():
        model(ids, use_cache=False)
        before = pool.stats().bytes_read
        for _ in range(3):
            model(ids, use_cache=False)
    assert 0 < pool.stats().bytes_read - before <= 3 * (LAYERS - 2) * pool.record_bytes


@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "nf4"])
def test_packed_dense_models(name: str, tmp_path: Path) -> None:
    folder = made("llama", tmp_path / "model", torch.bfloat16)
    report = pack_model(blueprint(folder), tmp_path / "packed", name)
    assert report.num_bytes > 0
    here, ids = streamed(tmp_path / "packed", LAYERS), torch.randint(0, 96, (1, 60))
    there = streamed(tmp_path / "packed", 3)
    with torch.inference_mode():
        for length in (1, 60):
            given = ids[:, :length]
            assert torch.equal(there(given, use_cache=False).logits, here(given, use_cache=False).logits)


def test_slopes_through_layers_that_come_and_go(tmp_path: Path) -> None:
    folder = made("qwen3", tmp_path / "model")
    slopes: list[list[Tensor | None]] = []
    for slots in (2, 3, LAYERS):
        torch.manual_seed(0)
        model = streamed(folder, slots).train()
        attached = attach(model, LoraConfig(rank=2, targets=("attention", "dense")))
        with torch.no_grad():
            for weight in attached.values():
                weight.normal_()
        recompute(model)
        ids = torch.arange(30)[None]
        embedded = model.model.embed_tokens(ids).detach().requires_grad_()
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()
        slopes.append([weight.grad for weight in attached.values()])
    for first, second, third in zip(*slopes, strict=True):
        assert first is not None
        assert torch.equal(first, second)  # type: ignore[arg-type]
        assert torch.equal(first, third)  # type: ignore[arg-type]


def test_a_damaged_layer_is_named(tmp_path: Path) -> None:
    folder = made("llama", tmp_path / "model")
    pack_model(blueprint(folder), tmp_path / "packed", "int8")
    model = streamed(tmp_path / "packed", 3)
    shelf = open_shelf(tmp_path / "packed")
    file = tmp_path / "packed" / RESIDENT
    data = bytearray(file.read_bytes())
    data[shelf.layers()[3][0].extents[0][1] + 5] ^= 255
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"sparse layer 3.*checksum is wrong"):
        model(torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    with pytest.raises(CheckpointError, match=r"damaged.*wrong checksum"):
        streamed(tmp_path / "packed", LAYERS)


def test_a_budget_too_small_says_what_would_do(tmp_path: Path) -> None:
    shelf = open_shelf(made("llama", tmp_path / "model"))
    with pytest.raises(BudgetError, match=r"too little: .*2 slots of .*give --memory \d+MiB or more"):
        make_plan(shelf, 1000)
