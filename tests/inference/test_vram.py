"""The plan of two memories, the host's and an accelerator's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from pragnosia.errors import BudgetError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.device_slots import staging_bytes
from pragnosia.inference.plan import Rates
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import load_streamed
from pragnosia.inference.vram import CONTEXT, SCORES, prompt_piece
from pragnosia.units import GIB, MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture as another library wrote it: two layers of six units, one dense layer."""
    folder = tmp_path_factory.mktemp("mixture") / "model"
    config = transformers.AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=120,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_only_layers=[1],
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_plan_shares_out_both_memories(folder: Path) -> None:
    shelf = open_shelf(folder)
    alone = make_plan(shelf, GIB, interpreter=10 * MIB)
    plan = make_plan(shelf, GIB, interpreter=10 * MIB, vram=4 * GIB)
    assert plan.vram_slots == plan.num_units == 12
    assert plan.slots == plan.least_slots == 4, "none comes back from the GPU"
    assert plan.interpreter == 10 * MIB
    assert plan.buffers == CONTEXT + staging_bytes(plan.record)
    assert plan.total == plan.interpreter + plan.buffers + plan.pool < GIB
    assert alone.total == alone.interpreter + alone.resident + alone.cache + alone.scratch + alone.pool
    assert CONTEXT < plan.vram_total <= plan.vram
    table = plan.table()
    assert table.index("on the GPU") < table.index("total  ") < table.index("interpreter") < table.rindex("total  ")
    tight = make_plan(shelf, GIB, interpreter=0, vram=plan.vram_total - 1)
    assert tight.vram_slots == 11
    assert tight.slots == 12, "a unit that left the GPU is found in memory"


def test_too_little_says_what_would_do(folder: Path) -> None:
    shelf = open_shelf(folder)
    with pytest.raises(
        BudgetError, match=r"of the GPU's memory are too little: CUDA .* slots of .*give --vram \d+MiB"
    ) as told:
        make_plan(shelf, GIB, interpreter=0, vram=20 * MIB)
    enough = int(str(told.value).split("give --vram ", 1)[1].split("MiB")[0])
    assert str(told.value).endswith("or leave --vram out"), "the host alone has room"
    assert make_plan(shelf, GIB, interpreter=0, vram=enough * MIB).vram_slots >= 4
    with pytest.raises(BudgetError, match="of the GPU's memory"):
        make_plan(shelf, GIB, interpreter=0, vram=(enough - 1) * MIB)
    with pytest.raises(BudgetError, match=r"are too little: interpreter .* \+ 4 slots .*--memory") as told:
        make_plan(shelf, 20 * MIB, interpreter=10 * MIB, vram=GIB)
    assert "resident" not in str(told.value)


def test_a_gpu_too_small_for_all_layers_takes_the_first(folder: Path) -> None:
    shelf = open_shelf(folder)
    whole = make_plan(shelf, GIB, interpreter=0, vram=4 * GIB)
    needed = whole.vram_total - whole.vram_pool + whole.least_slots * whole.vram_each
    plan = make_plan(shelf, GIB, interpreter=0, vram=needed - 1)
    assert (plan.host.count, plan.host.units, plan.vram_units) == (1, 6, 6)
    last = sum(size for name, size in shelf.resident.items() if name.startswith("model.layers.2."))
    assert plan.host.resident == last
    assert 3 * plan.host.cache == plan.cache
    assert plan.computing == whole.computing - plan.host.resident - plan.host.cache
    assert plan.total == plan.interpreter + plan.buffers + plan.host.total + plan.pool <= GIB
    assert plan.vram_total <= plan.vram
    assert "all but the last 1 layers" in plan.table()
    rates = Rates(memory=1e9, disk=1e9, vram=1e11, link=1e10)
    assert plan.tokens_per_second(rates) < whole.tokens_per_second(rates)
    least = make_plan(shelf, GIB, interpreter=0, vram=(needed - 2 * (last + plan.host.cache)) + MIB)
    assert least.host.count <= 2
    with pytest.raises(BudgetError, match=r"the last 1 layers"):
        make_plan(shelf, plan.total - plan.pool, interpreter=0, vram=needed - 1)


def test_prompts_are_read_in_pieces_that_fit(folder: Path) -> None:
    config = open_shelf(folder).config
    assert prompt_piece(config, 128) == 1024
    for room in (4096, 1 << 17, 1 << 40):
        piece = prompt_piece(config, room)
        assert piece == 1 or 2 * 4 * 4 * piece * room <= SCORES


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(folder: Path) -> None:
    with pytest.raises(BudgetError, match=r"^--vram needs a GPU; torch sees none: leave it out, or"):
        load_streamed(folder, 4 * GIB, vram=GIB)
