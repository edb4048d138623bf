"""What calibration gathers: the mean squares that a plain forward pass sees, whatever way the model is held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.checkpoints import import_model
from pragnosia.data import Texts, train_tokenizer
from pragnosia.errors import BudgetError, CheckpointError
from pragnosia.inference.loading import load_model
from pragnosia.inference.stream import build, planned
from pragnosia.measure import calibration
from pragnosia.measure.calibration import calibrate, mean_squares
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.units import GIB

TEXT = ["A unit wakes, and another sleeps. " * 40, "Nobody saw which of them it was. " * 30]
needs_kernels = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
WINDOWS = [torch.randint(0, 120, (length,), generator=torch.Generator().manual_seed(length)) for length in (40, 40, 9)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model of another library, in single precision; it wakes 2 of 12 units."""
    folder = tmp_path_factory.mktemp("theirs") / "model"
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "mixtral",
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=12,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def evenly(mean_squares: torch.Tensor) -> torch.Tensor:
    return mean_squares / mean_squares.mean(-1, keepdim=True)


def test_transformers_sees_the_same(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of transformers' own modules, read by hooks; of a unit's, worked out by hand from its block's input."""
    monkeypatch.setattr(calibration, "PRIOR", 1e-9)
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "o_proj", ".mlp")):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0][0]))
    with torch.inference_mode():
        for window in WINDOWS:
            model(window[None])
    found = mean_squares(load_model(theirs), WINDOWS)
    seen = {name: torch.cat(rows) for name, rows in inputs.items()}
    for name in ("q_proj", "o_proj"):
        expected = evenly(seen[f"model.layers.1.self_attn.{name}"].square().mean(0))
        torch.testing.assert_close(found[f"model.layers.1.mixer.{name}.weight"], expected, rtol=1e-3, atol=1e-4)
    block, x = model.model.layers[1].mlp, seen["model.layers.1.mlp"]
    weights = dict(block.named_parameters())
    router = next(
        tensor for name, tensor in weights.items() if "gate" in name and tensor.shape[0] == 12 and tensor.dim() == 2
    )
    strengths, units = (x @ router.T).softmax(-1).topk(2)
    strengths = strengths / strengths.sum(-1, keepdim=True)
    for unit in units.unique().tolist():
        tokens, slots = (units == unit).nonzero(as_tuple=True)
        gate, up = weights["experts.gate_up_proj"][unit].chunk(2)
        hidden = torch.nn.functional.silu(x[tokens] @ gate.T) * (x[tokens] @ up.T) * strengths[tokens, slots, None]
        bank = "model.layers.1.feed_forward.bank"
        torch.testing.assert_close(found[f"{bank}.up"][unit], evenly(x[tokens].square().mean(0)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[f"{bank}.down"][unit], evenly(hidden.square().mean(0)), rtol=1e-3, atol=1e-3)


@needs_kernels
def test_streamed_it_sees_the_same_bits(theirs: Path) -> None:
    """Through fewer slots than a layer has units."""
    whole, (shelf, plan) = mean_squares(load_model(theirs), WINDOWS), planned(theirs, 8 * GIB)
    assert plan.num_units == 24
    streamed = mean_squares(build(shelf, replace(plan, slots=4))[0], WINDOWS)
    assert whole.keys() == streamed.keys()
    for name, rows in whole.items():
        assert torch.equal(rows, streamed[name]), name


def test_a_unit_that_never_woke_takes_its_banks_mean(theirs: Path) -> None:
    model = load_model(theirs)
    few = mean_squares(model, [torch.tensor([5])])["model.layers.0.feed_forward.bank.up"]
    with torch.inference_mode():
        woken = model.model(torch.tensor([[5]]), use_cache=False).routings[0].units.flatten().tolist()
    asleep = [unit for unit in range(12) if unit not in woken]
    assert len(asleep) == 10
    assert all(torch.equal(few[unit], few[asleep[0]]) for unit in asleep)
    # one token only: what its units saw is what the bank saw
    torch.testing.assert_close(few[woken[0]], few[asleep[0]])


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of ours with a tokenizer."""
    folder = tmp_path_factory.mktemp("speaking") / "model"
    train_tokenizer(Texts(TEXT), 300, folder)
    config = PragnosiaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=3,
        max_position_embeddings=64,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        feed_forward={"width": 48},
    )
    PragnosiaForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_text_decides(speaking: Path) -> None:
    here = calibrate(speaking, Texts(TEXT), tokens=150)
    assert here.num_tokens == 150
    assert here.digest == calibrate(speaking, Texts(TEXT), tokens=150).digest
    assert here.digest != calibrate(speaking, Texts(TEXT), tokens=149).digest
    assert here.digest != calibrate(speaking, Texts(TEXT[::-1]), tokens=150).digest
    assert calibrate(speaking, Texts(["short"]), tokens=150).num_tokens < 10


@needs_kernels
def test_a_dense_model_within_a_budget(speaking: Path) -> None:
    whole = calibrate(speaking, Texts(TEXT), tokens=150).gather()
    streamed = calibrate(speaking, Texts(TEXT), tokens=150, memory=8 * GIB).gather()
    assert "model.layers.2.feed_forward.down.weight" in whole
    assert whole.keys() == streamed.keys()
    assert all(torch.equal(rows, streamed[name]) for name, rows in whole.items())
    with pytest.raises(BudgetError, match="are too little"):
        calibrate(speaking, Texts(TEXT), memory="1MiB")


def test_a_damaged_model_is_told(theirs: Path, tmp_path: Path) -> None:
    import_model(theirs, tmp_path / "ours")
    model = load_model(tmp_path / "ours")
    with torch.no_grad():
        model.model.layers[0].mixer.v_proj.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="are not numbers"):
        mean_squares(model, WINDOWS)
