"""A model whose units lie on disk says what the model in memory says, bit for bit, and keeps to its budget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints import import_model
from pragnosia.errors import BudgetError, CheckpointError, PromptError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.plan import Plan, Rates
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, load_streamed, pool_of
from pragnosia.model.setting import Setting
from pragnosia.units import GIB, MIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype) -> Callable[[str], Path]:
    """`foreign(family)`: a directory as another library wrote it."""

    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family) / "model"
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
        transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
        return folder

    return made


def streamed(folder: Path, slots: int) -> PragnosiaForCausalLM:
    """The model with so many slots."""
    shelf = open_shelf(folder)
    plan = make_plan(shelf, GIB, interpreter=0)
    return build(shelf, replace(plan, slots=slots))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_straight_from_a_foreign_directory(
    family: str, foreign: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = foreign(family)
    import_model(folder, tmp_path / "ours")
    here: Any = PragnosiaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(0, 120, (1, 40))
    for source, slots in ((folder, 4), (tmp_path / "ours", 5), (folder, 100)):
        there = streamed(source, slots)
        with torch.inference_mode():
            for length in (3, 40):
                assert torch.equal(here(ids[:, :length]).logits, there(ids[:, :length]).logits)
        expected = Pragnosia(here).generate_tokens(ids, max_new_tokens=30)
        assert Pragnosia(there).generate_tokens(ids, max_new_tokens=30) == expected
        pool = pool_of(there)
        assert pool is not None
        assert pool.stats().resident <= slots


def test_steering_and_saved_thresholds_come_along(tmp_path: Path) -> None:
    from pragnosia import PragnosiaConfig

    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
        attention={"num_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        experts={
            "num_units": 8,
            "unit_width": 16,
            "num_shared": 1,
            "bias": True,
            "lobes": {"a": 4, "b": 4},
            "thalamus": {"kind": "threshold", "num_awake": 2},
        },
    )
    here = PragnosiaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for layer in here.experts():
            layer.thalamus.thresholds.copy_(torch.rand_like(layer.thalamus.thresholds))  # type: ignore[operator]
            assert layer.bank.up_bias is not None
            layer.bank.up_bias.normal_()
    here.save_pretrained(tmp_path / "model")
    there = streamed(tmp_path / "model", 8)
    ids = torch.randint(0, 120, (1, 9))
    with torch.inference_mode(), here.steer("a", 1.5), there.steer("a", 1.5):
        for setting in (Setting(), Setting(awake=0.4)):
            assert torch.equal(here(ids, setting=setting).logits, there(ids, setting=setting).logits)
            said = [Pragnosia(m).generate_tokens(ids, max_new_tokens=12, setting=setting) for m in (here, there)]
            assert said[0] == said[1]


@pytest.mark.parametrize("grain", [4, 8, 16, 64])
def test_columns_from_disk_say_the_same_bits(grain: int, dtype: torch.dtype, tmp_path: Path) -> None:
    from pragnosia import PragnosiaConfig

    torch.manual_seed(0)
    config = PragnosiaConfig(
        **{name: SIZES[name] for name in ("vocab_size", "num_hidden_layers", "initializer_range")},
        hidden_size=40,
        attention={"num_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        columns={"width": 10 * grain, "column_width": grain, "bias": True, "thalamus": {"num_awake": 3}},
        feed_forwards=["columns", "dense", "columns"],
        feed_forward={"width": 24},
    )
    PragnosiaForCausalLM(config).to(dtype).save_pretrained(tmp_path / "model")
    here: Any = PragnosiaForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype).eval()
    there = streamed(tmp_path / "model", 4)
    ids = torch.randint(0, 120, (1, 40))
    with torch.inference_mode():
        for length in (1, 3, 40):
            assert torch.equal(here(ids[:, :length]).logits, there(ids[:, :length]).logits)
    expected = Pragnosia(here).generate_tokens(ids, max_new_tokens=20)
    assert Pragnosia(there).generate_tokens(ids, max_new_tokens=20) == expected


def test_a_failed_read_leaves_the_talk_as_it_was(foreign: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(foreign("mixtral"), tmp_path / "model")
    model = streamed(tmp_path / "model", 4)
    speaker = Pragnosia(model)
    expected = speaker.generate_tokens([5, 6, 7], max_new_tokens=40)
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    decoder = speaker.decoder(64)
    decoder.read([5, 6, 7])
    words = decoder.speak(20, Sampling())
    said = [next(words) for _ in range(3)]
    weights.write_bytes(content[:2000])
    with pytest.raises(
        CheckpointError, match=r"(cannot read unit \d+ of sparse layer \d+ from|ends too soon).*what was said so far"
    ):
        said.extend(words)
    silent = speaker.decoder(64)
    silent.read([5, 6, 7])
    with pytest.raises(CheckpointError) as nothing_yet:
        next(silent.speak(20, Sampling()))
    assert "said so far" not in str(nothing_yet.value)
    weights.write_bytes(content)
    said += decoder.speak(40 - len(said), Sampling())
    assert said == expected


@contextmanager
def unplugged(folder: Path) -> Iterator[None]:
    """Every open file of a folder reads as on a disk that is gone (EIO): it is this process at addresses of nothing."""
    links = list(Path("/proc/self/fd").iterdir())
    held = [int(link.name) for link in links if link.is_symlink() and link.readlink().parent == folder.resolve()]
    assert held, "the units' files are open"
    gone, kept = os.open("/proc/self/mem", os.O_RDONLY), {number: os.dup(number) for number in held}
    for number in held:
        os.dup2(gone, number, inheritable=False)
    try:
        yield
    finally:
        for number, before in kept.items():
            os.dup2(before, number, inheritable=False)
            os.close(before)
        os.close(gone)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc here to read errors from")
def test_a_disk_that_is_unplugged_and_comes_back(foreign: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(foreign("mixtral"), folder)
    speaker = Pragnosia(streamed(folder, 4))
    expected = speaker.generate_tokens([5, 6, 7], max_new_tokens=30)
    decoder = speaker.decoder(64)
    decoder.read([5, 6, 7])
    words = decoder.speak(30, Sampling())
    said = [next(words) for _ in range(3)]
    with unplugged(folder):
        with pytest.raises(CheckpointError, match=r"cannot read .*Input/output error.*what was said so far"):
            said.extend(words)
        with pytest.raises(CheckpointError, match="Input/output error"):
            speaker.generate_tokens([9, 8, 7, 6], max_new_tokens=30)
    said += decoder.speak(30 - len(said), Sampling())
    assert said == expected
    assert speaker.generate_tokens([5, 6, 7], max_new_tokens=30) == expected


def test_a_plan_adds_up_and_never_passes_the_budget(foreign: Callable[[str], Path]) -> None:
    shelf = open_shelf(foreign("qwen3_moe"))
    whole = make_plan(shelf, GIB, interpreter=0)
    assert whole.slots == whole.num_units == 12
    assert whole.hit_rate == 1
    least = make_plan(shelf, whole.total - 6 * whole.record, interpreter=0)
    assert 4 <= least.slots < 12
    assert least.total <= least.budget
    assert 0 < least.hit_rate < 1
    rates = Rates(memory=1e9, disk=1e8)
    assert least.tokens_per_second(rates) < whole.tokens_per_second(rates)
    assert "slots for 12 units" in least.table(rates)
    parameters = sum(p.numel() for p in PragnosiaForCausalLM(shelf.config).parameters())
    table = shelf.config.vocab_size * shelf.config.hidden_size  # stays on disk
    assert whole.resident + whole.record * 12 == (parameters - table) * shelf.dtype.itemsize


def test_too_small_a_budget_says_what_would_do(foreign: Callable[[str], Path]) -> None:
    shelf = open_shelf(foreign("qwen3_moe"))
    with pytest.raises(
        BudgetError, match=r"are too little: interpreter .* = .*; give --memory (\d+)MiB or more"
    ) as told:
        make_plan(shelf, 20 * MIB, interpreter=10 * MIB)
    enough = int(str(told.value).rsplit("--memory ", 1)[1].split("MiB")[0])
    plan: Plan = make_plan(shelf, enough * MIB, interpreter=10 * MIB)
    assert plan.slots >= 4
    with pytest.raises(BudgetError):
        make_plan(shelf, (enough - 9) * MIB, interpreter=10 * MIB)


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "gpt_oss", **SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "turned")
    with pytest.raises(CheckpointError, match=r"transposed or interleaved.*pragnosia import SOURCE OUT"):
        load_streamed(tmp_path / "turned", 8 * GIB)


def test_a_cut_file_is_told_before_anything_is_loaded(foreign: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(foreign("mixtral"), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load_streamed(tmp_path / "model", GIB)


def test_a_plan_has_room_for_its_context_and_no_more(foreign: Callable[[str], Path]) -> None:
    speaker = Pragnosia.from_pretrained(foreign("mixtral"), memory="16GiB", context=20)
    assert len(speaker.generate_tokens(list(range(15)), max_new_tokens=50)) == 5
    with pytest.raises(PromptError, match=r"has 30 tokens .*the plan \(see --context\) has room for 20"):
        speaker.generate_tokens(list(range(30)), max_new_tokens=5)
