"""A map of modules to places becomes budgets that hold what it puts where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, UserError
from pragnosia.inference import spread
from pragnosia.inference.budget import make_plan
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.spread import spread_budgets
from pragnosia.quantisation.packing import pack_model

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

LAYERS = 6
REST = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}


@pytest.fixture(autouse=True)
def _exact_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process takes no memory, and takes no more of it later."""
    monkeypatch.setattr("pragnosia.inference.budget.resident_memory", lambda: 0)
    monkeypatch.setattr(spread, "_SLACK", 0)


@pytest.fixture
def sparse(make_model: Callable[..., PragnosiaForCausalLM], tmp_path: Path) -> Path:
    """Six layers of eight units."""
    make_model(num_hidden_layers=LAYERS).save_pretrained(tmp_path / "sparse")
    return tmp_path / "sparse"


@pytest.fixture
def dense(make_model: Callable[..., PragnosiaForCausalLM], tmp_path: Path) -> Path:
    """Six dense layers."""
    make_model(num_hidden_layers=LAYERS, experts=None, feed_forward={"width": 40}).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def by_layer(*places: str) -> dict[str, str]:
    return REST | {f"model.layers.{number}": place for number, place in enumerate(places)}


@pytest.mark.parametrize("on_cpu", [2, 3, 5])
def test_what_is_on_the_cpu_has_room_in_memory(on_cpu: int, sparse: Path, dense: Path) -> None:
    places = by_layer(*["cpu"] * on_cpu, *["disk"] * (LAYERS - on_cpu))
    for folder, slots in ((sparse, 8 * on_cpu), (dense, on_cpu)):
        speaker = Pragnosia.from_pretrained(folder, device_map=places)
        assert speaker.plan is not None
        assert speaker.plan.slots == slots
        whole = Pragnosia.from_pretrained(folder, device_map={"": "cpu"})
        assert whole.plan is None
        told = [model.generate_tokens([1, 2, 3], max_new_tokens=8) for model in (speaker, whole)]
        assert told[0] == told[1]


@pytest.mark.parametrize("everywhere", ["disk", {"": "disk"}, {"model": "disk", "lm_head": "disk"}])
def test_all_on_disk_is_the_least(everywhere: Any, sparse: Path, dense: Path) -> None:
    for folder in (sparse, dense):
        plan = Pragnosia.from_pretrained(folder, device_map=everywhere).plan
        assert plan is not None
        assert plan.slots == plan.least_slots < plan.num_units


def test_a_gpu_beside_the_cpu_and_the_disk(sparse: Path) -> None:
    shelf = open_shelf(sparse)
    for places, on_gpu, on_cpu in (
        (by_layer("cuda:0", "cuda:0", "cpu", "cpu", "cpu", "cpu"), 16, 32),
        (by_layer("cuda:0", "cuda:0", "cuda:0", "cpu", "disk", "disk"), 24, 8),
        (by_layer("cuda:0", "cuda:0", "disk", "disk", "disk", "disk"), 16, 8),  # the least that passes through memory
    ):
        meant = spread_budgets(sparse, places)
        assert meant.gpu == "cuda:0"
        plan = make_plan(shelf, meant.memory, vram=meant.vram, device=torch.device("cuda:0"))
        assert (plan.vram_slots, plan.slots) == (on_gpu, on_cpu)


def test_halves_of_layers_and_packed_models(dense: Path, tmp_path: Path) -> None:
    pack_model(blueprint(dense), tmp_path / "packed", "int8")
    for folder in (dense, tmp_path / "packed"):
        shelf = open_shelf(folder)
        mlp = sum(part.num_bytes for layer in shelf.layers() for part in layer if "feed_forward" in part.name)
        halves = {"": "disk"} | {f"model.layers.{number}.mlp": "cpu" for number in range(LAYERS)}
        plan = make_plan(shelf, spread_budgets(folder, halves).memory)
        assert plan.slots == -(-mlp // shelf.record)


def test_budgets_that_are_given_stay(sparse: Path) -> None:
    places = by_layer("cpu", "cpu", "disk", "disk", "disk", "disk")
    plan = Pragnosia.from_pretrained(sparse, device_map=places, memory="1GiB").plan
    assert plan is not None
    assert (plan.budget, plan.slots) == (1 << 30, plan.num_units)


def test_what_is_refused(sparse: Path) -> None:
    with pytest.raises(UserError, match=r"device_map has no place for model\.layers\.1\.mlp"):
        Pragnosia.from_pretrained(sparse, device_map={"model.layers.0": "cpu", "lm_head": "disk"})
    with pytest.raises(UserError, match="device is 'cuda' and device_map says 'cpu'"):
        Pragnosia.from_pretrained(sparse, device="cuda", device_map={"model": "cpu", "lm_head": "disk"})
    with pytest.raises(BudgetError, match="pack it first"):
        Pragnosia.from_pretrained(sparse, load_in_4bit=True, device_map="disk")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cannot use the device 'cuda:0'"):
            Pragnosia.from_pretrained(sparse, device_map={"model": 0, "lm_head": "cpu"})
