"""Units on an accelerator: the answers of the model in memory, within two budgets. The CPU stands in for the GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from held_memory import Held
from torch import Tensor

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, CheckpointError
from pragnosia.inference.accelerator import AcceleratorBank
from pragnosia.inference.budget import make_plan
from pragnosia.inference.device_layers import LayersOnDevice
from pragnosia.inference.device_slots import slot_bytes
from pragnosia.inference.loading import load_model
from pragnosia.inference.plan import HostLayers
from pragnosia.inference.shelf import EMBEDDING, open_shelf
from pragnosia.inference.split import _Taker, cross_over
from pragnosia.inference.stream import StreamedBank, _move, build, built, load_whole, slots_of
from pragnosia.inference.vram import CONTEXT, MARGIN
from pragnosia.kernels import triton, triton_packed
from pragnosia.model.setting import WHOLE
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

INTERPRETED = triton.interpreted() and triton.supports(torch.zeros(1))
CPU = torch.device("cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "llama": {},
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`foreign(family)`: a directory as another library wrote it."""
    made: dict[Any, Path] = {}

    def make(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        key = (family, dtype, *changes.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family) / "model"
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
            transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(made[key])
        return made[key]

    return make


def placed(folder: Path, slots: int, device: str = "cpu", host: int = 4) -> PragnosiaForCausalLM:
    """The model with so many slots on the device, and few in host memory."""
    shelf, where = open_shelf(folder), torch.device(device)
    plan = make_plan(shelf, GIB, interpreter=0, vram=2 * GIB, device=where)
    plan = replace(plan, vram_slots=min(slots, plan.num_units), slots=min(host, plan.num_units))
    return build(shelf, plan, device=where)[0]


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Banks in memory by plain torch and not by the compiled kernels."""
    monkeypatch.setattr(kernels.native, "supports", lambda x, up: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe"])
@pytest.mark.usefixtures("plain_torch")
def test_the_same_bits_whatever_the_number_of_slots(
    family: str, dtype: torch.dtype, foreign: Callable[..., Path]
) -> None:
    folder = foreign(family, dtype)
    here, ids = load_whole(folder), torch.randint(0, 120, (1, 40))
    for slots in (2, 4, 7, 100):
        there = placed(folder, slots)
        with torch.inference_mode():
            for length in (1, 3, 40):
                given = ids[:, :length]
                assert torch.equal(here(given).logits, there(given).logits)
            state, same = here.fresh_state(1, 64), there.fresh_state(1, 64)
            for token in ids[0, :20]:  # one by one, as when it speaks
                one, other = (
                    here(token[None, None], past_key_values=state),
                    there(token[None, None], past_key_values=same),
                )
                assert torch.equal(one.logits, other.logits)
                state, same = one.past_key_values, other.past_key_values
        stats = slots_of(there)
        assert stats is not None
        assert stats.hits > 0
        assert stats.bytes_copied == stats.misses * bank_of(there).slots.pool.record_bytes


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("count", [1, 2])
def test_the_last_layers_on_the_host(count: int, device: str, foreign: Callable[..., Path]) -> None:
    folder = foreign("qwen3_moe")
    shelf, where = open_shelf(folder), torch.device(device)
    plan = make_plan(shelf, GIB, interpreter=0, vram=2 * GIB, device=where)
    plan = replace(plan, vram_slots=4, slots=6, host=HostLayers(count=count))
    split, here = build(shelf, plan, device=where)[0], load_model(folder)
    banks = [type(layer.feed_forward.bank) for layer in split.model.layers if hasattr(layer.feed_forward, "bank")]
    assert banks == [AcceleratorBank, StreamedBank]
    memories: Any = split.fresh_state(1, 8).layers
    sides = [layer.mixer_norm.weight.device.type for layer in split.model.layers]
    assert sides == [where.type] * (3 - count) + ["cpu"] * count
    assert [memory.keys.device.type for memory in memories] == sides
    ids = torch.randint(0, 120, (1, 40))
    with torch.inference_mode():
        logits = split(ids.to(device)).logits.cpu()
        torch.testing.assert_close(logits, here(ids).logits, rtol=1e-4, atol=1e-4)
    said = Pragnosia(split).generate_tokens(ids, max_new_tokens=20)
    assert said == Pragnosia(here).generate_tokens(ids, max_new_tokens=20)


def test_who_is_handed_something_takes_it_there(foreign: Callable[..., Path]) -> None:
    model: Any = load_whole(foreign("qwen3_moe"))
    model.model.norm = torch.nn.Identity()
    cross_over(model, 2, torch.device("meta"))  # a device of its own, without memory
    seen: list[str] = []
    model.model.norm.register_forward_hook(lambda norm, given, output: seen.append(given[0].device.type))
    model.model(torch.tensor([[1, 2, 3]]))
    assert seen == ["meta"]
    moment = model.model.moment(torch.zeros(1, 4, 32), seen=3, setting=WHOLE)
    (x, taken), named = _Taker(torch.device("meta"))(model, (torch.zeros(1, 4, 32), moment), {"memory": None})
    there = (x, *taken.rotation, taken.masks["full_attention"])
    assert all(tensor.is_meta for tensor in there)
    assert named == {"memory": None}


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_the_compiled_kernels_within_rounding(family: str, device: str, foreign: Callable[..., Path]) -> None:
    folder = foreign(family)
    here, there, ids = load_whole(folder), placed(folder, 3, device), torch.randint(0, 120, (1, 40))
    with torch.inference_mode():
        for length in (1, 40):
            given = ids[:, :length]
            logits = there(given.to(device)).logits.cpu()
            torch.testing.assert_close(logits, here(given).logits, rtol=1e-4, atol=1e-4)
    said = Pragnosia(there).generate_tokens(ids, max_new_tokens=20)
    assert said == Pragnosia(here).generate_tokens(ids, max_new_tokens=20)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "int3", "nf4"])
def test_packed_units(name: str, device: str, foreign: Callable[..., Path], tmp_path: Path) -> None:
    pack_model(blueprint(foreign("olmoe", torch.bfloat16, num_experts=8)), tmp_path / "packed", name)
    ids = torch.randint(0, 120, (1, 60), device=device)
    whole = placed(tmp_path / "packed", 100, device)
    for slots in (4, 9):
        there = placed(tmp_path / "packed", slots, device)
        with torch.inference_mode():
            for length in (1, 60):
                logits = there(ids[:, :length]).logits
                assert torch.equal(logits, whole(ids[:, :length]).logits)
    # one bank against plain torch on the units made plain
    bank = bank_of(there)
    plain = [bank.pooled.matrices(bank.slots.pool.hold(0, unit)) for unit in range(4)]
    up, down = (torch.stack(some).to(device) for some in zip(*plain, strict=True))
    x, strengths = torch.randn(50, 32, device=device).bfloat16(), torch.rand(50, 2, device=device)
    units = torch.rand(50, 4, device=device).topk(2).indices
    y = bank(x, units, strengths)
    expected = kernels.bank(x, units, strengths, up, down, activation=bank.activation, backend="cpu")
    if device == "cpu":
        assert torch.equal(y, expected)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", [pytest.param("int4", marks=() if INTERPRETED else pytest.mark.gpu)])
def test_packed_units_without_unpacking(
    name: str, foreign: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton programs, on a GPU or in Triton's interpreter (TRITON_INTERPRET=1), which has no bfloat16."""
    device = "cpu" if INTERPRETED else "cuda"
    pack_model(blueprint(foreign("olmoe", num_hidden_layers=1)), tmp_path / "packed", name)
    ids = torch.randint(0, 120, (1, 6), device=device)
    with torch.inference_mode():
        whole, tight = (placed(tmp_path / "packed", slots, device)(ids).logits for slots in (100, 4))
        assert torch.equal(whole, tight)
        monkeypatch.setattr(triton_packed, "supports", lambda x, entry: False)
        torch.testing.assert_close(whole, placed(tmp_path / "packed", 100, device)(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["bf16", "int4"])
def test_layers_of_a_dense_model(
    name: str, tied: bool, device: str, foreign: Callable[..., Path], tmp_path: Path
) -> None:
    folder = foreign("llama", torch.bfloat16, num_hidden_layers=7, tie_word_embeddings=tied)
    pack_model(blueprint(folder), tmp_path / "packed", name)
    ids = torch.randint(0, 120, (1, 30), device=device)
    resident = placed(tmp_path / "packed", 7, device)
    for slots, host in ((2, 2), (3, 5), (5, 2), (6, 4)):
        there = placed(tmp_path / "packed", slots, device, host)
        layers = there.model.layers[0].mixer.weights.layers
        assert isinstance(layers, LayersOnDevice)
        assert layers.kept == slots - 2
        with torch.inference_mode():
            for length in (1, 30, 1):
                given = ids[:, :length]
                assert torch.equal(there(given).logits, resident(given).logits)
        copied = layers.ferry.bytes_copied
        with torch.inference_mode():
            there(ids[:, :1])
        assert layers.ferry.bytes_copied - copied <= (7 - layers.kept) * layers.pool.record_bytes


def test_what_is_used_most_stays(foreign: Callable[..., Path]) -> None:
    slots = bank_of(placed(foreign("mixtral"), 4)).slots

    def misses(*units: int) -> int:
        before = slots.stats().misses
        for _ in slots.turns(0, units):
            pass
        return slots.stats().misses - before

    for _ in range(5):
        slots.tick()
        misses(0, 1)
    for unit in (2, 3, 4):  # pass through the two slots that are left
        slots.tick()
        assert misses(unit) == 1
    assert misses(0, 1) == 0
    assert misses(3, 4) == 0
    assert misses(2) == 1


def test_groups_of_units_stay_for_their_turn(foreign: Callable[..., Path]) -> None:
    slots = bank_of(placed(foreign("mixtral"), 3)).slots
    for _ in range(3):
        seen = []
        for group in slots.turns(1, range(5), at_once=3):
            assert len({slot for _, slot in group}) == len(group) <= 3
            for unit, slot in group:
                record = slots.pool.hold(1, unit)
                assert torch.equal(slots.records[slot, : len(record)], record)
                slots.pool.release(1, unit)
                seen.append(unit)
        assert sorted(seen) == [*range(5)]


def test_a_unit_that_cannot_be_read_is_named_and_the_talk_goes_on(foreign: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in foreign("mixtral").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model, ids = placed(folder, 4), torch.randint(0, 120, (1, 9))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    with torch.inference_mode():
        expected = model(ids).logits
        weights.write_bytes(content[:2000])
        with pytest.raises(CheckpointError, match=r"cannot read unit \d+ .*(?<!stays)$"):  # a bank said nothing yet
            model(inputs_embeds=torch.randn(1, 60, 32))  # wakes all: more than host and device hold
        weights.write_bytes(content)
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_the_device_holds_no_more_than_its_budget(family: str, foreign: Callable[..., Path]) -> None:
    folder = foreign(family)
    shelf = open_shelf(folder)
    whole = make_plan(shelf, GIB, interpreter=0, vram=GIB, device=CPU)
    vram = whole.vram_total - slot_bytes(whole.record) // 2
    if family == "qwen3_moe":
        vram -= 4 * slot_bytes(whole.record)
    plan = make_plan(shelf, GIB, interpreter=0, vram=vram, device=CPU)
    assert 0 < plan.vram_slots < plan.num_units
    assert plan.vram_total <= vram
    model = build(shelf, plan, device=CPU)[0]
    weights = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in (*model.parameters(), *model.buffers(), slots_memory(model))
        if not t.is_meta
    }
    state = model.fresh_state(1, plan.context)
    # rotary frequencies and steering are in no file: a few numbers
    assert sum(weights.values()) <= plan.resident + plan.vram_slots * slot_bytes(plan.record) + 4096
    assert state.nbytes == plan.cache
    gc.collect()
    ids = torch.randint(0, 120, (1, 128))
    with torch.inference_mode(), Held() as held:
        for part in ids.split(80, 1):
            state = model(part, past_key_values=state, logits_to_keep=1).past_key_values
    assert 0 < held.peak <= plan.scratch - MARGIN
    assert sum(weights.values()) + state.nbytes + held.peak <= vram


def test_what_does_not_go_with_an_accelerator(foreign: Callable[..., Path]) -> None:
    folder = foreign("qwen3_moe")
    with pytest.raises(BudgetError, match="beside --memory"):
        Pragnosia.from_pretrained(folder, vram="1GiB")
    with pytest.raises(BudgetError, match="in the type it is stored in"):
        Pragnosia.from_pretrained(folder, memory="4GiB", vram="1GiB", dtype="float32")
    with pytest.raises(BudgetError, match="adapters do not run within --vram"):
        Pragnosia.from_pretrained(folder, memory="4GiB", vram="1GiB", adapter=folder)


@pytest.mark.parametrize("name", [None, "int4"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_nothing_stays_behind(
    family: str, tied: bool, name: str | None, foreign: Callable[..., Path], tmp_path: Path
) -> None:
    folder = foreign(family, tie_word_embeddings=tied)
    if name is not None:
        pack_model(blueprint(folder), tmp_path / "packed", name)
        folder = tmp_path / "packed"
    shelf = open_shelf(folder)
    meta = torch.device("meta")  # a device of its own, without memory
    model = built(shelf.config, shelf.put, shelf.resident, None, lambda name: meta)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.is_meta]
    assert left == []
    if tied and name is not None:  # rows that two modules share move once
        with torch.device("meta"):
            model = PragnosiaForCausalLM(shelf.config)
        shelf.put(model, EMBEDDING)
        _move(model, EMBEDDING, torch.device("meta"))
        assert model.lm_head.rows.is_meta
        assert model.lm_head.rows is model.model.embed_tokens.rows


def test_a_table_on_disk_sends_its_rows(foreign: Callable[..., Path]) -> None:
    table: Any = open_shelf(foreign("qwen3_moe")).table
    table.device = torch.device("meta")
    assert table.weight.is_meta
    rows = table(torch.tensor([[3, 5, 3]]))
    assert rows.is_meta
    assert rows.shape == (1, 3, 32)


@pytest.mark.gpu
def test_on_the_gpu_that_is_there(foreign: Callable[..., Path]) -> None:
    folder = foreign("qwen3_moe")
    torch.cuda.reset_peak_memory_stats()
    speaker = Pragnosia.from_pretrained(folder, memory="8GiB", vram="2GiB")
    assert speaker.plan is not None
    assert speaker.model.device.type == bank_of(speaker.model).slots.records.device.type == "cuda"
    said = speaker.generate_tokens([1, 2, 3], max_new_tokens=20, temperature=0.8, seed=1)
    assert len(said) == 20
    assert torch.cuda.max_memory_allocated() <= speaker.plan.vram_total - CONTEXT


def bank_of(model: PragnosiaForCausalLM) -> AcceleratorBank:
    return next(module for module in model.modules() if isinstance(module, AcceleratorBank))


def slots_memory(model: PragnosiaForCausalLM) -> Tensor:
    for module in model.modules():
        if isinstance(module, AcceleratorBank):
            return module.slots.records
    layers: Any = model.model.layers[0].mixer
    return layers.weights.layers.records  # type: ignore[no-any-return]
