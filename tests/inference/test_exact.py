"""Exact mode says what transformers' eager modules say, bit for bit, whoever of the experts is here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pragnosia import Pragnosia, kernels
from pragnosia.apps.cli import app
from pragnosia.errors import BudgetError, CheckpointError, ConfigError, PromptError, UserError
from pragnosia.inference import exact_loading
from pragnosia.inference.decode import Trace
from pragnosia.inference.exact import ExactModel
from pragnosia.inference.exact_loading import load_exact
from pragnosia.inference.sampling import Sampling
from pragnosia.inference.stream import pool_of
from pragnosia.model.setting import Setting
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

SIZES: dict[str, Any] = {
    "vocab_size": 268,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 265,
}
SPARSE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "mlp_only_layers": [1],
    },
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
DENSE: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "mistral": {"sliding_window": 8},
}
FAMILIES = SPARSE | DENSE
Made = Callable[[str], Path]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def foreign(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, tokenizer: transformers.PreTrainedTokenizerFast
) -> Made:
    """`foreign(family)`: a directory as another library wrote it, with a tokenizer."""
    folders: dict[str, Path] = {}

    def made(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family) / "model"
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
            model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "bias" in name or "sinks" in name:  # else they are zero, or nothing at all
                        parameter.normal_()
            model.save_pretrained(folders[family])
            tokenizer.save_pretrained(folders[family])
        return folders[family]

    return made


def reference(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' own, in memory."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def with_slots(folder: Path, slots: int | None, monkeypatch: pytest.MonkeyPatch) -> ExactModel:
    """The model with so many slots."""
    if slots is None:
        return load_exact(folder)[0]
    whole = exact_loading.make_plan
    monkeypatch.setattr(exact_loading, "make_plan", lambda *a, **k: replace(whole(*a, **k), slots=slots))
    return load_exact(folder, 2 * GIB)[0]


@pytest.mark.parametrize("slots", [5, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_prompts_and_of_steps_are_theirs(
    family: str, slots: int | None, foreign: Made, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family in DENSE and slots is not None:
        pytest.skip("a dense model has no slots")
    folder = foreign(family)
    theirs, ours = reference(folder, dtype), with_slots(folder, slots, monkeypatch)
    assert ours.dtype == dtype
    ids = torch.randint(0, 268, (1, 60))
    with torch.inference_mode():
        for length in (1, 5, 40):
            expected = theirs(ids[:, :length])
            found = ours(ids[:, :length])
            assert torch.equal(found.logits, expected.logits)
        cache, state = expected.past_key_values, found.past_key_values
        for at in range(40, 52):
            expected = theirs(ids[:, at : at + 1], past_key_values=cache)
            found = ours(ids[:, at : at + 1], state)
            assert torch.equal(found.logits, expected.logits), at
            again = ours(ids[:, at : at + 1], state)  # the state is a value
            assert torch.equal(again.logits, expected.logits), at
            cache, state = expected.past_key_values, found.past_key_values
        assert state.length == 52
        assert torch.equal(ours.model(ids).last_hidden_state, theirs.model(ids).last_hidden_state)
    pool = pool_of(ours)
    assert (pool is None) == (family in DENSE)
    assert pool is None or slots is None or 0 < pool.stats().resident <= slots


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_units_stacked_in_the_files_are_the_same(
    family: str, foreign: Made, dtype: torch.dtype, tmp_path: Path
) -> None:
    """transformers writes them expert by expert, in their older names; here they lie as it holds them in memory."""
    folder, block = foreign(family), "block_sparse_moe" if family == "mixtral" else "mlp"
    written = load_file(folder / "model.safetensors")
    assert any(f".{block}.experts.0." in name for name in written)
    theirs = reference(folder, dtype)
    stacked = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in stacked)
    save_file(stacked, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    ids = torch.randint(0, 268, (1, 30))
    with torch.inference_mode():
        assert torch.equal(load_exact(tmp_path)[0](ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "mistral"])
def test_the_text_is_that_of_greedy_generate(family: str, foreign: Made, dtype: torch.dtype) -> None:
    folder = foreign(family)
    theirs, ours = reference(folder, dtype), Pragnosia.from_pretrained(folder, exact=True)
    ids = ours.encode("the User: the")
    with torch.inference_mode():
        whole = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0].tolist()
    expected = whole[len(ids) :]
    said = ours.generate_tokens(ids, max_new_tokens=16, stop_tokens=ours.stop_tokens)
    assert said == [token for token in expected if token not in ours.stop_tokens]
    text = ours.tokenizer.decode(said, skip_special_tokens=True)
    assert ours.generate("the User: the", max_new_tokens=16).rstrip("\ufffd") == text.rstrip("\ufffd")


def test_a_long_prompt_is_read_as_a_whole(foreign: Made, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pragnosia.inference.decode.PROMPT_PIECE", 16)
    ours = Pragnosia.from_pretrained(foreign("mixtral"), exact=True)
    trace = Trace()
    ours.generate_tokens(list(range(90)), max_new_tokens=2, trace=trace)
    assert trace.num_tokens == [90, 1]
    assert trace.routings[0][0] is not None
    assert trace.routings[0][0].units.shape == (90, 2)


@pytest.mark.parametrize("family", ["olmoe", "llama"])
def test_reading_tells_how_far_it_is(family: str, foreign: Made) -> None:
    ours = Pragnosia.from_pretrained(foreign(family), exact=True)
    told: list[tuple[int, int]] = []
    decoder = ours.decoder(40)
    decoder.progress = lambda done, total: told.append((done, total))
    decoder.read([3, 1, 4, 1, 5])
    assert list(decoder.speak(3, Sampling())) == ours.generate_tokens([3, 1, 4, 1, 5], max_new_tokens=3)
    layers = SIZES["num_hidden_layers"]
    assert told == [(5 * done, 5 * layers) for done in range(layers + 1)]
    assert decoder.decoding == "modules"


def test_within_a_budget_the_plan_counts_what_transformers_takes(foreign: Made) -> None:
    folder = foreign("qwen3_moe")
    ours = Pragnosia.from_pretrained(folder, exact=True, memory="2GiB", context=128)
    usual = Pragnosia.from_pretrained(folder, memory="2GiB", context=128)
    assert ours.plan is not None
    assert usual.plan is not None
    assert ours.plan.scratch > usual.plan.scratch
    with pytest.raises(BudgetError, match="give --memory") as caught:
        Pragnosia.from_pretrained(folder, exact=True, memory="1MiB")
    enough = re.search(r"give --memory (\d+MiB)", str(caught.value))
    assert enough is not None
    Pragnosia.from_pretrained(folder, exact=True, memory=enough[1], context=128)


def test_what_cannot_be_exact_is_told_in_one_line(foreign: Made, directory: Path, tmp_path: Path) -> None:
    folder = foreign("llama")
    with pytest.raises(BudgetError, match="streams experts only"):
        Pragnosia.from_pretrained(folder, exact=True, memory="2GiB")
    with pytest.raises(CheckpointError, match="no other family's directory"):
        Pragnosia.from_pretrained(directory, exact=True)
    with pytest.raises(UserError, match="no adapter, other type"):
        Pragnosia.from_pretrained(folder, exact=True, dtype="float16")
    values = json.loads((folder / "config.json").read_text())
    shutil.copytree(folder, tmp_path / "quantised")
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(values | {"quantization_config": {"bits": 4}}))
    with pytest.raises(ConfigError, match="are quantised, and exact mode converts nothing"):
        Pragnosia.from_pretrained(tmp_path / "quantised", exact=True)
    reference(foreign("mixtral"), torch.float16).save_pretrained(tmp_path / "half")
    with pytest.raises(CheckpointError, match=r"are torch\.float16; exact mode streams"):
        Pragnosia.from_pretrained(tmp_path / "half", exact=True)
    with pytest.raises(PromptError, match="at energy 1"):
        Pragnosia.from_pretrained(folder, exact=True).generate_tokens([1, 2], setting=Setting(awake=0.5))


def test_a_unit_that_cannot_be_read_leaves_the_talk_as_it_was(foreign: Made, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(foreign("mixtral"), folder)
    speaker = Pragnosia(load_exact(folder)[0])  # type: ignore[arg-type]
    expected = Pragnosia(load_exact(folder)[0]).generate_tokens([5, 6, 7], max_new_tokens=20)  # type: ignore[arg-type]
    decoder = speaker.decoder(64)
    decoder.read([5, 6, 7])
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:2000])
    with pytest.raises(CheckpointError, match="cannot read unit"):
        list(decoder.speak(20, Sampling()))
    weights.write_bytes(content)
    assert list(decoder.speak(20, Sampling())) == expected


def test_the_command_line(foreign: Made, tmp_path: Path) -> None:
    folder, text = foreign("olmoe"), tmp_path / "text.txt"
    text.write_text("the User: the the\n" * 20)
    run = CliRunner()
    here = run.invoke(app, ["generate", str(folder), "the User", "--exact", "--max-new-tokens", "8", "--json"])
    assert here.exit_code == 0, here.output
    answer = json.loads(here.stdout)
    assert answer["text"] == Pragnosia.from_pretrained(folder, exact=True).generate("the User", max_new_tokens=8)
    assert answer["operations_per_token"] > 0
    said = run.invoke(app, ["eval", str(folder), "--data", str(text), "--exact", "--context", "64", "--json"])
    assert said.exit_code == 0, said.output
    usual = run.invoke(app, ["eval", str(folder), "--data", str(text), "--context", "64", "--json"])
    exact, ours = json.loads(said.stdout), json.loads(usual.stdout)
    assert exact["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=0.05)
    assert exact["operations_per_token"] == ours["operations_per_token"]
