"""Long-term memory on disk: the bits of the table in memory, within the plan, through the compiled step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, CheckpointError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.decode import Decoder
from pragnosia.inference.far_table import RowsOnDisk
from pragnosia.inference.layers import OnDisk
from pragnosia.inference.plan import Rates
from pragnosia.inference.program import Program, writable
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, far_rows
from pragnosia.quantisation.index import RESIDENT
from pragnosia.quantisation.layers import PackedTable
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB, MIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Make = Callable[..., PragnosiaForCausalLM]

MEMORY = {"num_rows": 144, "num_heads": 3, "num_awake": 5, "key_width": 12}
DENSE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "experts": None,
    "feed_forward": {"width": 37},
    "feed_forwards": ["memory", "dense", "memory"],
    "hippocampus": MEMORY,
}
SPARSE: dict[str, Any] = {"feed_forwards": ["experts", "memory"], "hippocampus": MEMORY}
STORED = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("pragnosia.kernels.step.SMALL", 1)
    yield
    torch.set_num_threads(before)


def saved(make_model: Make, folder: Path, stored: str, dress: dict[str, Any]) -> Path:
    model = make_model(**dress)
    with torch.no_grad():
        for layer in model.model.layers:
            if hasattr(layer.feed_forward, "center"):
                layer.feed_forward.center.normal_(std=0.3), layer.feed_forward.spread.uniform_(0.3, 2)
    model.to(torch.float32 if stored == "float32" else torch.bfloat16).save_pretrained(folder / "model")
    if stored in ("float32", "bfloat16"):
        return folder / "model"
    pack_model(blueprint(folder / "model"), folder / stored, stored)
    return folder / stored


def loaded(folder: Path, rows: int, **slots: int) -> Any:
    shelf = open_shelf(folder)
    model = build(shelf, replace(make_plan(shelf, GIB, interpreter=0), row_slots=rows, **slots))[0]
    assert (far_rows(model) is not None) == (rows < 144)
    return model


def program_of(model: Any, prompt: list[int]) -> Program:
    with torch.inference_mode():
        state = model(torch.tensor([prompt]), past_key_values=model.fresh_state(1, 60)).past_key_values
    assert writable(model, state)
    return Program(model, state)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dress", [DENSE, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("stored", STORED)
def test_the_bits_of_the_table_in_memory(stored: str, dress: dict[str, Any], make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, stored, dress)
    here, there = loaded(folder, 144), [loaded(folder, rows) for rows in (0, 7, 143)]
    ids = torch.randint(0, 250, (2, 20))
    with torch.inference_mode():
        expected = here(ids).logits
        assert expected.std() > 0.05, "a flat answer proves little"
        for model in there:
            assert torch.equal(model(ids).logits, expected)
    programs = [program_of(model, ids[0, :9].tolist()) for model in (here, *there)]
    for token in ids[0, 9:].tolist():
        winners = {program(token) for program in programs}
        assert len(winners) == 1
        for program in programs:
            assert torch.equal(program.logits, programs[0].logits)
            program.length += 1
    stats = far_rows(there[1]).stats()
    assert stats.resident == 7
    assert stats.bytes_read == stats.misses * there[1].model.hippocampus.far.row_bytes
    assert far_rows(there[2]).stats().misses <= 143, "what has a place stays"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_layers_and_rows_both_come_and_go(stored: str, make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, stored, DENSE)
    here, there = loaded(folder, 144), loaded(folder, 20, slots=2)
    assert isinstance(there.model.layers[0].feed_forward, OnDisk)
    said = []
    for model in (here, there):
        decoder = Decoder(model, 60)
        decoder.read([3, 1, 4, 1, 5])
        said.append(list(decoder.speak(30, Sampling())))
        assert decoder.decoding == "compiled"
    assert said[0] == said[1]


def test_a_packed_table_is_read_row_by_row(make_model: Make, tmp_path: Path) -> None:
    packed = loaded(saved(make_model, tmp_path, "int8", DENSE), 144)
    plain = loaded(tmp_path / "model", 144)
    table, rows = packed.model.hippocampus, plain.model.hippocampus.rows.float()
    assert isinstance(table, PackedTable)
    units, strengths = torch.randint(0, 144, (6, 8)), torch.rand(6, 8)
    unpacked = kernels.unpack(table.rows, 24, "int8", torch.float32)
    assert (unpacked - rows).abs().max() <= rows.abs().max() / 127
    summed = torch.einsum("ta,tad->td", strengths, unpacked[units])
    torch.testing.assert_close(table(units, strengths), summed)
    strengths.requires_grad_()
    torch.testing.assert_close(table(units, strengths), summed)  # the way that has a slope
    table(units, strengths).sum().backward()
    torch.testing.assert_close(strengths.grad, unpacked[units].sum(-1))


def test_two_texts_at_once_share_the_rows(make_model: Make, tmp_path: Path) -> None:
    model = loaded(saved(make_model, tmp_path, "bfloat16", DENSE), 9)
    prompts = [[1, 2, 3], [9, 8, 7, 6]]

    def spoken(prompt: list[int]) -> list[int]:
        decoder = Decoder(model, 60)
        decoder.read(prompt)
        return list(decoder.speak(40, Sampling()))

    alone = [spoken(prompt) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(spoken, prompts)) == alone


def test_a_plan_shares_rows_and_units(make_model: Make, tmp_path: Path) -> None:
    # a table that is most of the model
    large = {"num_rows": 1 << 16, "num_heads": 2, "num_awake": 4, "key_width": 8}
    shelf = open_shelf(saved(make_model, tmp_path, "bfloat16", SPARSE | {"hippocampus": large}))
    whole = make_plan(shelf, GIB, interpreter=0)
    assert whole.row_slots == whole.rows == 1 << 16
    assert not whole.rows_stay
    assert whole.row_pool == (1 << 16) * 24 * 2
    assert whole.recalled == 8
    rates = Rates(memory=1e9, disk=1e8, reads=1e4)
    assert "all" not in whole.table(rates)
    less = make_plan(shelf, whole.total - MIB, interpreter=0)
    assert less.rows_stay
    assert less.slots == less.num_units, "rows are wanted less often than units"
    assert less.total <= less.budget
    assert f"{less.row_slots} of 65536 rows of 48 B, the others on disk" in less.table(rates)
    assert f"{less.row_hits():.0%} of recalled rows" in less.table(rates)
    assert less.tokens_per_second(rates) < whole.tokens_per_second(rates)
    missed = (1 - less.row_hits()) * 8
    seconds = 1 / less.tokens_per_second(rates) - 1 / whole.tokens_per_second(rates)
    assert seconds == pytest.approx(missed / 1e4, rel=1e-6)
    with pytest.raises(BudgetError, match="rows of long-term memory"):
        make_plan(shelf, 25 * MIB, interpreter=0)


def test_within_a_budget_the_words_are_the_same(
    make_model: Make, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pragnosia.inference.budget.process_memory", lambda budget: 0)
    large = MEMORY | {"num_rows": 1 << 16}
    folder = saved(make_model, tmp_path, "float32", DENSE | {"hippocampus": large})
    tokenizer.save_pretrained(folder)
    here = Pragnosia.from_pretrained(folder)
    whole = Pragnosia.from_pretrained(folder, memory="16GiB")
    assert whole.plan is not None
    assert not whole.plan.rows_stay
    there = Pragnosia.from_pretrained(folder, memory=whole.plan.total - 4 * MIB)
    assert there.plan is not None
    assert there.plan.rows_stay
    assert isinstance(there.model.model.hippocampus, RowsOnDisk)
    said = [speaker.generate("The user", max_new_tokens=20) for speaker in (here, whole, there)]
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("way", ["program", "modules"])
def test_a_row_that_cannot_be_read_ends_the_answer(way: str, make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "int8", DENSE)
    model = loaded(folder, 5)
    program = program_of(model, [1, 2, 3])
    place = open_shelf(folder).rows
    assert place is not None
    os.truncate(folder / RESIDENT, place.offset + 10)  # behind the token table
    ids = torch.arange(60)
    ways = {"program": lambda: [program(token) for token in ids.tolist()], "modules": lambda: model(ids[None])}
    with pytest.raises(CheckpointError, match=r"cannot read row \d+ of long-term memory .*: the file ends too soon"):
        ways[way]()
