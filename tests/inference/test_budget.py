"""Plans of models that are only described, of two tiers, and what a refusal offers: each offer is taken up and fits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, CheckpointError, ConfigError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.hits import CENTRAL, HIGH, LOW, Curve, hits
from pragnosia.inference.plan import Plan, Rates
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.sizes import Sizes, as_if_packed, described_preset
from pragnosia.inference.vram import CONTEXT
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import FORMATS
from pragnosia.kernels.pool import record_bytes
from pragnosia.quantisation.index import RESIDENT, UNITS
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB, MIB

MEASURED = Path(__file__).parents[2] / "benchmarks" / "budget"
PACKABLE = [name for name, entry in FORMATS.items() if name != "fp32" and not entry.pruned]
RATES = Rates(memory=20e9, disk=1e9)
Make = Callable[..., PragnosiaForCausalLM]


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("kind", ["sparse", "tied", "dense"])
@pytest.mark.parametrize("name", PACKABLE)
def test_what_is_described_is_what_packing_makes(name: str, kind: str, make_model: Make, tmp_path: Path) -> None:
    dense = {"experts": None, "feed_forward": {"width": 40}}
    make_model(**{"sparse": {}, "tied": {"tie_word_embeddings": True}, "dense": dense}[kind]).save_pretrained(
        tmp_path / "model"
    )
    source = open_shelf(tmp_path / "model")
    described = as_if_packed(source, name)
    pack_model(blueprint(tmp_path / "model"), tmp_path / "packed", name)
    packed = open_shelf(tmp_path / "packed")
    assert described.on_disk == sum((tmp_path / "packed" / file).stat().st_size for file in (UNITS, RESIDENT))
    assert described.on_disk == packed.on_disk
    assert described.resident == packed.resident
    assert described.leaves_table == packed.leaves_table == (packed.table is not None)
    assert make_plan(described, GIB, interpreter=0) == make_plan(packed, GIB, interpreter=0)
    if name != "bf16":  # a packed model no longer says what its plain residents were
        assert as_if_packed(packed, name).on_disk == packed.on_disk


def test_a_directory_as_it_lies_takes_what_its_files_take(directory: Path) -> None:
    weights = (directory / "model.safetensors").stat().st_size
    assert 0 <= weights - open_shelf(directory).on_disk < 16384, "but for the header"


def test_presets_are_planned_without_a_file() -> None:
    sizes = {name: described_preset("450b", name).on_disk for name in ("bf16", "int8", "int4", "int3", "int2")}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert 2.0 < sizes["bf16"] / 440e9 < 2.1, "two bytes a weight"
    assert 4.5 < 16 * sizes["int4"] / sizes["bf16"] < 4.8, "codes and headers"
    plan = make_plan(described_preset("450b", "int4"), 16 * GIB, interpreter=0)
    assert plan.slots > plan.least_slots
    assert plan.total <= 16 * GIB
    with pytest.raises(ConfigError, match=r"unknown preset '45b'"):
        described_preset("45b", "int4")
    with pytest.raises(CheckpointError, match=r"--format: unknown format 'int5'"):
        described_preset("nano", "int5")


@pytest.mark.parametrize(("kind", "curve"), [("trained", LOW), ("noise", CENTRAL), ("text", HIGH)])
def test_curves_are_those_that_were_measured(kind: str, curve: Curve) -> None:
    shares = json.loads((MEASURED / "locality.json").read_text("utf-8"))["kinds"][kind]["shares"]
    for share, found in shares.items():
        assert hits(float(share), curve) == pytest.approx(found["ours"], abs=0.02), share
    assert hits(0, curve) == 0
    assert hits(1, curve) == 1


def test_the_forecast_is_the_one_that_was_held_beside_speeds() -> None:
    """forecast.json's plans, made anew from its rates; twelve layers of 64 units, 4 awake, unless it says otherwise."""
    cases = json.loads((MEASURED / "forecast.json").read_text("utf-8"))["cases"]
    for name, rounds in cases.items():
        for case in rounds:
            entry = FORMATS.get(name.split(",")[0], FORMATS["bf16"])
            record = case.get("record_bytes") or record_bytes(entry, 2048, 768, ACTIVATIONS["swiglu"])
            units, layers, awake = case.get("units", 768), case.get("layers", 12), case.get("awake", 4)
            rates = Rates(memory=case["memory_bytes_per_second"], disk=case["disk_bytes_per_second"])

            def by_hand(
                here: float, case: Any = case, woken: int = awake * layers * record, at: Rates = rates
            ) -> float:
                return float(1 / ((1 - here) * woken / at.disk + case["awake_bytes"] / at.memory))

            plan = Plan(
                budget=GIB, interpreter=0, resident=0, cache=0, scratch=0, context=1, num_units=units, record=record,
                streamed_layers=layers, awake=awake, awake_bytes=case["awake_bytes"], slots=units // 4,
            )  # fmt: skip
            assert plan.tokens_per_second(rates) == pytest.approx(by_hand(hits(units // 4 / units)))
            assert by_hand(case["hits_foretold"]) == pytest.approx(case["foretold"], rel=1e-6)


@pytest.mark.xfail(strict=True, reason="forecast.json misses its aim: 0.72 and 1.26 times what came (docs/budget.md)")
def test_the_forecast_was_within_a_quarter() -> None:
    """The middle round of every case of the kind of routing that the forecast speaks of."""
    cases = json.loads((MEASURED / "forecast.json").read_text("utf-8"))["cases"]
    off = [
        abs(median(case["foretold"] / case["measured"] for case in rounds) - 1)
        for name, rounds in cases.items()
        if name.split(",")[0] in ("ckpt", "int8", "int4")
    ]
    assert len(off) == 7
    assert max(off) < 0.25


def test_a_forecast_has_two_ends() -> None:
    plan = make_plan(described_preset("7b", "int4"), 3 * GIB, interpreter=400 * MIB)
    low, high = plan.hit_range
    assert low < plan.hit_rate < high
    slow, fast = plan.speed_range(RATES)
    assert slow < plan.tokens_per_second(RATES) < fast
    middle = f"{plan.tokens_per_second(RATES):.2g} tokens/s ({slow:.2g} to {fast:.2g})"
    assert f"({low:.0%} to {high:.0%}), {middle}" in plan.table(RATES)
    whole = make_plan(described_preset("7b", "int4"), 8 * GIB, interpreter=400 * MIB)
    assert whole.hit_range == (1, 1)
    assert " to " not in whole.table(RATES).splitlines()[-1]


def test_a_gpu_takes_what_computes_and_then_units() -> None:
    sizes = described_preset("7b", "int4")
    alone = make_plan(sizes, 2 * GIB, interpreter=400 * MIB)
    assert (alone.vram, alone.vram_slots, alone.vram_total, alone.vram_hit_rate) == (0, 0, 0, 0)
    both = make_plan(sizes, 2 * GIB, interpreter=400 * MIB, vram=2 * GIB)
    assert both.vram_slots == (2 * GIB - CONTEXT - both.resident - both.cache - both.scratch) // both.vram_each
    assert both.slots > alone.slots, "host memory no longer holds what computes"
    assert both.total <= 2 * GIB
    assert both.vram_total <= 2 * GIB
    assert both.vram_hit_rate == hits(both.vram_slots / both.num_units)
    assert both.hit_rate == hits((both.vram_slots + both.slots) / both.num_units)
    assert "on the GPU" in both.table(RATES)
    large = make_plan(sizes, 2 * GIB, interpreter=400 * MIB, vram=16 * GIB)
    assert (large.vram_slots, large.slots) == (large.num_units, large.least_slots)
    assert large.tokens_per_second(RATES) == pytest.approx(RATES.vram / large.awake_bytes)


def test_two_tiers_by_hand() -> None:
    """200 units of 1 MB, one layer, 10 awake: 18 on the GPU (9 %: 46.9 % hits), 34 in memory (26 % in all: 73.1 %)."""
    plan = Plan(
        budget=GIB,
        interpreter=0,
        resident=10**6,
        cache=0,
        scratch=0,
        record=10**6,
        slots=34,
        num_units=200,
        streamed_layers=1,
        awake=10,
        context=1,
        awake_bytes=11 * 10**6,
        vram=GIB,
        vram_slots=18,
    )
    rates = Rates(memory=1e9, disk=1e8, vram=1e10, link=1e9)
    seconds = 11e6 / 1e10 + 0.531 * 10e6 / 1e9 + 0.269 * 10e6 / 1e8
    assert plan.tokens_per_second(rates) == pytest.approx(1 / seconds)


def test_layers_on_two_tiers_pass_in_a_circle(make_model: Make, tmp_path: Path) -> None:
    make_model(
        experts=None,
        feed_forward={"width": 40},
        num_hidden_layers=8,
        hidden_size=96,
        attention={"num_heads": 4, "num_key_value_heads": 2},
    ).save_pretrained(tmp_path)
    plan = make_plan(open_shelf(tmp_path), GIB, interpreter=0, vram=GIB)
    assert (plan.vram_slots, plan.slots, plan.hits()) == (8, 2, (1, 1))
    assert replace(plan, vram_slots=4, slots=4).hits() == (2 / 8, 4 / 8), "two pass here, two there"
    assert replace(plan, vram_slots=4, slots=6).hits() == (2 / 8, 1)


def offers(sizes: Sizes, budget: int, **also: int) -> str:
    """What a refusal says."""
    with pytest.raises(BudgetError) as told:
        make_plan(sizes, budget, interpreter=400 * MIB, **also)
    return str(told.value)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def test_every_way_out_of_a_refusal_is_one() -> None:
    """Where the keys and values are too many, each of three changes does by itself, and a little less does not."""
    sizes = described_preset("60b", "int8")
    text = offers(sizes, 5 * GIB, context=32768)
    memory, context = number(r"give --memory (\d+)MiB or more", text), number(r"--context (\d+) or less", text)

    def fits(budget: int, context: int) -> bool:
        try:
            return make_plan(sizes, budget, context=context, interpreter=400 * MIB).fits
        except BudgetError:
            return False

    assert fits(memory * MIB, 32768)
    assert not fits((memory - 9) * MIB, 32768)  # 8 MiB are for what varies
    assert fits(5 * GIB, context)
    assert not fits(5 * GIB, context + 1)


def test_a_smaller_format_is_offered_where_it_fits(directory: Path) -> None:
    sizes = described_preset("60b", "int8")
    text = offers(sizes, 7 * GIB, context=32768)
    name = re.search(r"--format (\w+), which needs (\d+)MiB", text)
    assert name is not None, text
    needed = int(name[2]) * MIB
    packed = as_if_packed(sizes, name[1])
    assert needed <= 7 * GIB
    assert make_plan(packed, needed, context=32768, interpreter=400 * MIB).fits
    with pytest.raises(BudgetError):
        make_plan(packed, needed - MIB, context=32768, interpreter=400 * MIB)
    shelf = open_shelf(directory)
    least = number(r"--memory (\d+)MiB", offers(shelf, 300 * MIB))
    assert "--format" not in offers(shelf, 300 * MIB), "no format saves 100 MiB of a tiny model"
    assert make_plan(shelf, least * MIB, interpreter=400 * MIB).fits


def test_a_directory_is_told_how_to_pack(make_model: Make, tmp_path: Path) -> None:
    make_model(hidden_size=256, experts={"num_units": 8, "unit_width": 2048, "thalamus": {"num_awake": 4}},
               attention={"num_heads": 4, "num_key_value_heads": 2}).save_pretrained(tmp_path)  # fmt: skip
    shelf = open_shelf(tmp_path)
    least = number(r"--memory (\d+)MiB", offers(shelf, 300 * MIB))
    text = offers(shelf, (least - 9) * MIB)
    assert re.search(rf"pack it: pragnosia pack {re.escape(str(tmp_path))} OUT --format bf16, which needs \d+MiB", text)


def test_a_gpu_that_is_too_small_says_what_would_do() -> None:
    sizes = described_preset("450b", "int4")
    assert make_plan(sizes, 16 * GIB, interpreter=400 * MIB, vram=4 * GIB).host.count > 0, "the host takes some layers"
    text = offers(sizes, 16 * GIB, vram=2 * GIB)
    assert "2 GiB of the GPU's memory are too little: CUDA 512 MiB + resident" in text
    enough = number(r"give --vram (\d+)MiB or more", text)
    plan = make_plan(sizes, 16 * GIB, interpreter=400 * MIB, vram=enough * MIB)
    assert plan.vram_slots == plan.least_slots
    assert "give --memory" in offers(sizes, 500 * MIB, vram=8 * GIB), "memory can still be what is lacking"


def test_a_budget_a_little_too_small_is_told_from_what_it_lacks() -> None:
    sizes = described_preset("7b", "int4")
    plan = make_plan(sizes, 1 << 60, interpreter=0)
    needed = replace(plan, slots=plan.least_slots).total
    with pytest.raises(BudgetError) as refused:
        make_plan(sizes, needed - 4096, interpreter=0)
    given, lacked = re.findall(r"^(\S+ \w+) are too little: .* = (\S+ \w+);", str(refused.value))[0]
    assert given != lacked


@pytest.mark.parametrize("budget", [GIB, 3 * GIB])
def test_what_a_refusal_asks_for_is_enough_with_its_page_tables(budget: int) -> None:
    """The process is measured, as whoever speaks does; a larger budget takes larger tables."""
    sizes = described_preset("450b", "bf16")
    with pytest.raises(BudgetError) as refused:
        make_plan(sizes, budget)
    memory = number(r"give --memory (\d+)MiB or more", str(refused.value))
    assert make_plan(sizes, memory * MIB).fits
