"""Models whose inputs sleep: the same answers compiled, as modules and masked; the same again from disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints import export_model
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import CheckpointError
from pragnosia.inference.loading import load_model
from pragnosia.inference.program import Program, writable
from pragnosia.inference.sparsity import Site, Sparsity, lay_silent, put_to_sleep, sites_of, write_sparsified
from pragnosia.model.awake_linear import AwakeLinear
from pragnosia.model.linear import Linear

Make = Callable[..., PragnosiaForCausalLM]
needs_library = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
DENSE: dict[str, Any] = {"experts": None, "feed_forward": {"width": 150, "bias": True}}
SHAPES: dict[str, dict[str, Any]] = {
    "gated": DENSE | {"hidden_size": 72},
    "plain, biased": {
        "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "bias": True, "output_bias": True},
        "experts": None,
        "feed_forward": {"width": 37, "activation": "gelu", "bias": True},
    },
    "shared units": {"experts": {"num_units": 8, "unit_width": 6, "num_shared": 3, "thalamus": {"num_awake": 2}}},
}


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads as asked for, however little there is to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("pragnosia.kernels.step.SMALL", 1)
    yield
    torch.set_num_threads(before)


def asleep(model: PragnosiaForCausalLM) -> PragnosiaForCausalLM:
    """With thresholds of different sizes, some of them 0."""
    put_to_sleep(model, {name: Site(0.3 * (number % 4), 0.5) for number, name in enumerate(sites_of(model))})
    return model


class Masked(torch.nn.Module):
    """The reference: all weights read, small inputs zeroed."""

    def __init__(self, linear: Linear, threshold: float) -> None:
        super().__init__()
        self.linear, self.threshold, self.out_features = linear, threshold, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x * (x.abs() > self.threshold), self.linear.weight, self.linear.bias)


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_modules_and_masked_agree(shape: str, make_model: Make) -> None:
    model, truth = (make_model(**SHAPES[shape]) for _ in range(2))
    for number, (name, linear) in enumerate(sites_of(truth).items()):
        assert isinstance(linear, Linear)
        truth.set_submodule(name, Masked(linear, 0.3 * (number % 4)))
    asleep(model)
    ids = torch.randint(0, 200, (1, 24))
    with torch.inference_mode():
        wanted = truth(ids).logits
        torch.testing.assert_close(model(ids).logits, wanted, atol=2e-5, rtol=1e-4)
        state = model(ids[:, :9], past_key_values=model.fresh_state(1, 24)).past_key_values
        assert writable(model, state)
        program = Program(model, state.fork())
        for position in range(9, 24):
            token = ids[:, position : position + 1]
            output = model(token, past_key_values=state)
            state = output.past_key_values
            program(int(token))
            program.length += 1
            torch.testing.assert_close(output.logits[:, -1], wanted[:, position], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(program.logits, wanted[:, position], atol=2e-5, rtol=1e-4)
        wide_awake = make_model(**SHAPES[shape])(ids).logits
    assert (wide_awake - wanted).norm() > 0.05 * wanted.norm(), "who sleeps must be missed"


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu2", "reglu", "drelu"])
def test_silent_neurons_cost_nothing(activation: str, dtype: torch.dtype, make_model: Make) -> None:
    shape = {"experts": None, "feed_forward": {"width": 90, "activation": activation}}
    model, laid = (make_model(**shape).to(dtype) for _ in range(2))
    lay_silent(laid)
    ids = torch.randint(0, 200, (16,)).tolist()
    logits = []
    with torch.inference_mode():
        for each in (model, laid):
            program = Program(each, each.fresh_state(1, 32))
            for token in ids:
                program(token)
                program.length += 1
            logits.append(program.logits.clone())
        torch.testing.assert_close(logits[1], logits[0], atol=2e-5, rtol=1e-4)  # sums in another order, no more
        whole = [each(torch.tensor([ids])).logits for each in (model, laid)]
    assert torch.equal(*whole) or dtype is torch.float32
    torch.testing.assert_close(*whole, atol=2e-5, rtol=1e-4)
    down = laid.model.layers[0].feed_forward.down
    assert isinstance(down, Linear)
    assert not down.weight.is_contiguous()
    assert make_model(**DENSE).model.layers[0].feed_forward.down.weight.is_contiguous()


@needs_library
@pytest.mark.parametrize(("activation", "first"), [("relu2", 0), ("reglu", 0), ("drelu", 0), ("drelu", 90)])
def test_silent_neurons_are_not_read(activation: str, first: int, make_model: Make) -> None:
    """What neurons would say that never speak may be anything; of dReLU's two halves either silences."""
    model = make_model(experts=None, feed_forward={"width": 90, "activation": activation, "bias": True})
    lay_silent(model)
    feed_forward = model.model.layers[1].feed_forward
    with torch.no_grad():
        feed_forward.up.bias[first : first + 60] = -1e4
        feed_forward.down.weight[:, :60] = float("nan")
    program = Program(model, model.fresh_state(1, 8))
    program(3)
    assert program.logits.isfinite().all()


@pytest.fixture
def written(make_model: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    make_model(**SHAPES["gated"]).save_pretrained(tmp_path / "awake")
    tokenizer.save_pretrained(tmp_path / "awake")
    print_ = blueprint(tmp_path / "awake")
    model = load_model(tmp_path / "awake")
    sites = {name: Site(0.25, 0.4) for name in sites_of(model)}
    write_sparsified(print_, tmp_path / "asleep", Sparsity(0.4, 300, sites))
    return tmp_path / "asleep"


def test_saved_and_loaded(written: Path) -> None:
    awake, model = load_model(written.with_name("awake")), load_model(written)
    assert all(isinstance(module, AwakeLinear) for module in sites_of(model).values())
    put_to_sleep(awake, {name: Site(0.25, 0.4) for name in sites_of(awake)})
    ids = torch.randint(0, 200, (1, 20))
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, awake(ids).logits)
    speaker = Pragnosia.from_pretrained(written)
    said = speaker.generate_tokens(ids, max_new_tokens=12)
    assert said == Pragnosia(awake).generate_tokens(ids, max_new_tokens=12)
    assert [file.name for file in written.parent.iterdir() if file.name.startswith(".")] == []


def test_what_would_lose_the_thresholds_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sparsified and runs whole in memory"):
        Pragnosia.from_pretrained(written, memory="8GiB")
    with pytest.raises(CheckpointError, match="sparsified"):
        Pragnosia.from_pretrained(written, load_in_8bit=True)
    with pytest.raises(CheckpointError, match="sparsified"):
        export_model(written, tmp_path / "exported")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 9}, "version 9"),
        ({"sites": {"model.layers.0.mixer.q_proj": {"threshold": -1, "asleep": 0}}}, "below 0"),
        ({"sites": {"model.layers.0.mixer.q_proj": {"threshold": "small", "asleep": 0}}}, "no list of thresholds"),
        ({"sites": {"model.layers.9.mixer.q_proj": {"threshold": 1, "asleep": 0}}}, "does not have"),
        ({"sites": 3}, "no list of thresholds"),
    ],
)
def test_damaged_thresholds(change: dict[str, Any], words: str, written: Path) -> None:
    path = written / "sparsity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        load_model(written)


def test_nothing_is_left_of_what_cannot_be_written(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    print_ = blueprint(shutil.copytree(written.with_name("awake"), written.with_name("copy")))
    monkeypatch.setattr("pragnosia.inference.sparsity.carry", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_sparsified(print_, written.with_name("other"), Sparsity(0.5, 1, {}))
    assert sorted(path.name for path in written.parent.iterdir()) == ["asleep", "awake", "copy"]
