"""Tuning within two budgets: what is learned is what a resident model learns. The CPU stands in for the GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from held_memory import Held
from mixed_model import made
from safetensors.torch import load_file
from small_talk import small_model, write_chat
from torch import Tensor

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError
from pragnosia.inference import vram
from pragnosia.inference.budget import Tuning, make_plan
from pragnosia.inference.device_slots import DeviceSlots, staging_bytes
from pragnosia.inference.device_units import UnitsOnDevice
from pragnosia.inference.plan import Plan
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, pool_of, slots_of
from pragnosia.inference.vram import MARGIN
from pragnosia.kernels import cross_entropy, formats
from pragnosia.quantisation.packing import pack_model
from pragnosia.training import pupil
from pragnosia.training.checkpoint import CheckpointConfig
from pragnosia.training.optimisers import OptimiserConfig, Optimisers
from pragnosia.training.progress import Silent
from pragnosia.training.tuner import tune
from pragnosia.training.tuning import TuneConfig
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import attach
from pragnosia.tuning.recompute import recompute
from pragnosia.units import GIB, MIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

CPU = torch.device("cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("attention", "units", "dense"))
NEEDS = Tuning(tokens=40, parameters=20_000, moment_bytes=8)


def placed(folder: Path, slots: int, host: int, device: str = "cpu") -> tuple[PragnosiaForCausalLM, Plan]:
    """A model that is to learn, with so many slots on the device and in host memory."""
    shelf, where = open_shelf(folder), torch.device(device)
    plan = make_plan(shelf, GIB, interpreter=0, vram=4 * GIB, device=where, tuning=NEEDS)
    plan = replace(plan, vram_slots=min(slots, plan.num_units), slots=min(host, plan.num_units))
    return build(shelf, plan, device=where)


def slopes(model: PragnosiaForCausalLM, config: LoraConfig, device: str = "cpu", steps: int = 2) -> dict[str, Tensor]:
    """Of adapters that are not at their beginning, and of the loss itself, after some batches."""
    attached = attach(model.train(), config, torch.device(device))
    recompute(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in attached.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    losses = []
    for number in range(steps):  # what the first leaves in the slots changes nothing
        for weight in attached.values():
            weight.grad = None
        ids = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(number)).to(device)
        embedded = model.model.embed_tokens(ids).detach().requires_grad_()
        loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
    found = {name: weight.grad.cpu() for name, weight in attached.items() if weight.grad is not None}
    assert len(found) == len(attached)
    return found | {"loss": torch.stack(losses).cpu(), "embedded": embedded.grad.cpu()}


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("sparse", LORA.targets), ("dense", LORA.targets), ("sparse", ("attention",))],
    ids=["sparse", "dense", "attention alone"],
)
def test_slopes_are_those_of_a_resident_model_bit_for_bit(
    kind: str, targets: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units take their turns in order, so that sums are the same however few are here."""
    if targets == ("attention",):  # frozen units let slopes through: by torch here, by compiled kernels there
        monkeypatch.setattr(kernels.native, "supports", lambda x, up: False)
    folder, config = made(tmp_path / "model", kind), replace(LORA, targets=targets)
    if kind == "dense":
        config = replace(config, targets=tuple(target for target in targets if target != "units"))
    expected = slopes(PragnosiaForCausalLM.from_pretrained(folder), config)
    for slots, host in ((4, 4), (100, 4)):
        model, plan = placed(folder, slots, host)
        got = slopes(model, config)
        assert got.keys() == expected.keys()
        for name, slope in expected.items():
            if targets == ("attention",):
                torch.testing.assert_close(got[name], slope, rtol=1e-5, atol=1e-6, msg=name)
            else:
                assert torch.equal(got[name], slope), name
        if kind == "sparse":
            stats = slots_of(model)
            assert stats is not None
            assert stats.hits > 0
            assert pool_of(model) is not None
            if slots < plan.num_units:
                assert stats.bytes_copied > plan.num_units * plan.record


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("kind", "name"), [("sparse", "int4"), ("dense", "int8"), ("sparse", None)])
def test_packed_units_learn_as_in_host_memory(kind: str, name: str | None, device: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", kind, torch.bfloat16 if name else torch.float32)
    if name is not None:
        pack_model(blueprint(folder), tmp_path / "packed", name)
        folder = tmp_path / "packed"
    config = LORA if kind == "sparse" else replace(LORA, targets=("attention", "dense"))
    shelf = open_shelf(folder)
    expected = slopes(build(shelf, make_plan(shelf, GIB, interpreter=0, tuning=NEEDS))[0], config)
    got = slopes(placed(folder, 5, 6, device)[0], config, device)
    for key, slope in expected.items():
        if device == "cpu":
            assert torch.equal(got[key], slope), key
        else:
            error = (got[key].double() - slope.double()).norm() / slope.double().norm().clamp_min(1e-9)
            assert error < (0.03 if name else 1e-4), key


def test_units_in_order_come_each_in_its_turn(tmp_path: Path) -> None:
    model, plan = placed(made(tmp_path / "model"), 4, 4)
    bank = model.model.layers[0].feed_forward.bank
    assert isinstance(bank.units, UnitsOnDevice)
    slots: DeviceSlots = bank.units.slots
    for wanted in ([0, 1, 2], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [2]):
        seen = []
        for unit, slot in slots.in_order(0, wanted):
            record = slots.pool.hold(0, unit)
            assert torch.equal(slots.records[slot, : len(record)], record)
            slots.pool.release(0, unit)
            seen.append(unit)
        assert seen == wanted
        assert not slots._in_turn.any()
    assert slots.missing(0, [2]) == []
    before = slots.stats().bytes_copied
    assert [unit for unit, _ in slots.in_order(0, [2])] == [2]
    assert slots.stats().bytes_copied == before
    for _ in slots.in_order(0, range(6)):  # who leaves in the middle leaves nothing behind
        break
    assert sorted(unit for unit, _ in slots.in_order(1, range(6))) == [*range(6)]
    assert plan.record == slots.pool.record_bytes


@pytest.mark.parametrize(("kind", "name"), [("sparse", None), ("dense", "int4")])
def test_the_device_holds_no_more_than_its_budget(
    kind: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, sizes in (("CHUNK_BYTES", (cross_entropy, vram)), ("MANY_AT_ONCE", (formats, vram))):
        for module in sizes:  # else these two alone would hold all that a tiny model needs
            monkeypatch.setattr(module, room, 1 << 12)
    monkeypatch.setattr(formats, "CHUNK", 1 << 12)
    folder = made(tmp_path / "model", kind, torch.bfloat16 if name else torch.float32)
    if name is not None:
        pack_model(blueprint(folder), tmp_path / "packed", name)
        folder = tmp_path / "packed"
    config = LORA if kind == "sparse" else replace(LORA, targets=("attention", "dense"))
    shelf = open_shelf(folder)
    parameters = sum(weight.numel() for weight in attach(build(shelf, _roomy(shelf))[0], config).values())
    tuning = Tuning(tokens=3 * 40, rows=3, parameters=parameters, moment_bytes=8)
    whole = make_plan(shelf, GIB, interpreter=0, vram=GIB, device=CPU, tuning=tuning)
    plan = make_plan(shelf, GIB, interpreter=0, vram=whole.vram_total - 1, device=CPU, tuning=tuning)
    assert 0 < plan.vram_slots < plan.num_units
    assert plan.vram_total <= plan.vram
    assert plan.learning == 16 * parameters
    assert plan.total == plan.buffers + plan.pool
    assert plan.buffers == staging_bytes(plan.record) + 4 * parameters
    model = build(shelf, plan, device=CPU)[0]
    attached = attach(model.train(), config, CPU)
    recompute(model)
    optimisers = Optimisers(attached.items(), set(), OptimiserConfig())
    ids = torch.randint(0, 60, (3, 40))
    gc.collect()
    with Held() as held:
        for _ in range(2):
            embedded = model.model.embed_tokens(ids).requires_grad_()
            loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
            loss.backward()
            optimisers.step(1.0)
            optimisers.zero()
            del loss, embedded
    slopes_and_moments = plan.learning - 4 * parameters
    assert 0 < held.peak <= plan.scratch - MARGIN + slopes_and_moments


def _roomy(shelf: Any) -> Plan:
    return make_plan(shelf, GIB, interpreter=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corner: Path) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "sparse", corner)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> TuneConfig:
    chat = write_chat(tmp_path_factory.mktemp("chats") / "chat.jsonl")
    return TuneConfig(
        model=str(folder),
        data=[str(chat)],
        lora=LoraConfig(rank=4, targets=("attention", "units")),
        batch_size=2,
        sequence_length=64,
        steps=6,
        validation_fraction=0.0,
        optimiser=OptimiserConfig(name="adamw8bit", learning_rate=0.02, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=3),
    )


class Told(Silent):
    """Remembers what was said before the run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_within_vram_learns_what_one_in_memory_learns(
    config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pupil, "accelerator", lambda: CPU)
    tune(config, out=tmp_path / "here", reporter=Silent())
    told = Told()
    there = replace(config, memory="2GiB", vram="1GiB")
    report = tune(replace(there, steps=3), out=tmp_path / "there", reporter=told)
    table = next(line for line in told.lines if "on the GPU" in line)
    assert table.index("on the GPU") < table.index("adapters, slopes, moments") < table.index("in memory")
    assert report.gpu_hit_rate is not None
    assert 0 < report.gpu_hit_rate <= 1
    tune(there, out=tmp_path / "there", resume=True, reporter=Silent())
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("here", "there"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_does_not_fit_or_go(
    config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    quiet: Callable[[str], dict[str, Any]] = lambda name: {"out": tmp_path / name, "reporter": Silent()}  # noqa: E731
    if not torch.cuda.is_available():
        with pytest.raises(BudgetError, match=r"^--vram needs a GPU; torch sees none"):
            tune(replace(config, memory="2GiB", vram="1GiB"), **quiet("a"))
    with pytest.raises(BudgetError, match="beside --memory"):
        tune(replace(config, vram="1GiB"), **quiet("b"))
    monkeypatch.setattr(pupil, "accelerator", lambda: CPU)
    with pytest.raises(BudgetError, match="--method blocks does not run within --vram yet"):
        tune(replace(config, method="blocks", memory="2GiB", vram="1GiB"), **quiet("c"))
    with pytest.raises(
        BudgetError,
        match=r"of the GPU's memory are too little: .*resident weights .* \+ adapters, slopes and moments .*"
        r" \+ activations and scratch .* slots of .* = .*; give --vram \d+MiB or more.*or leave --vram out",
    ) as told:
        tune(replace(config, memory="2GiB", vram="20MiB"), **quiet("d"))
    assert not any((tmp_path / name).exists() for name in "abcd"), "what never began leaves nothing"
    enough = int(str(told.value).split("give --vram ", 1)[1].split("MiB")[0])
    shelf, tuning = open_shelf(folder), Tuning(tokens=128, parameters=80_000, moment_bytes=8)
    with pytest.raises(BudgetError, match=r"too little: interpreter .* \+ CUDA's share and staging .*give --memory"):
        make_plan(shelf, MIB // 4, interpreter=0, vram=enough * 4 * MIB, device=CPU, tuning=tuning)


@pytest.mark.gpu
def test_on_the_gpu_that_is_there(config: TuneConfig, tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    report = tune(replace(config, memory="8GiB", vram="2GiB"), out=tmp_path / "out", reporter=Silent())
    assert report.loss == report.loss
    assert torch.cuda.max_memory_allocated() <= 1536 * MIB, "CUDA's share is not torch's to take"
