"""Adapters on frozen units, in memory and streamed, have the function and the slopes of folded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mixed_model import DENSE, SHAPE, made
from torch import Tensor, nn
from torch.func import functional_call

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import adapters, attach, load_adapters
from pragnosia.tuning.recompute import recompute
from pragnosia.units import GIB

EVERYTHING = LoraConfig(rank=3, alpha=6.0, targets=("attention", "units", "dense"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "model")


def streamed(folder: Path, slots: int) -> PragnosiaForCausalLM:
    shelf = open_shelf(folder)
    return build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=slots))[0]


def stirred(model: PragnosiaForCausalLM, config: LoraConfig = EVERYTHING) -> dict[str, nn.Parameter]:
    """Adapters that are not at their beginning."""
    attached = attach(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in attached.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return attached


def folded(model: nn.Module, learned: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Every weight with what its adapter adds."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    for name, b in learned.items():
        if name.endswith(".lora_b"):
            place = name.removesuffix(".lora_b")
            weights[f"{place}.weight"] = weights[f"{place}.weight"] + scale * b @ learned[f"{place}.lora_a"]
        elif name.endswith("_b"):
            place = name.removesuffix("_b")
            weights[place] = weights[place] + scale * b @ learned[f"{place}_a"]
    return weights


def loss_of(model: nn.Module, ids: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
    """In training, with the embeddings as something that has slopes."""
    given = {"input_ids": ids, "labels": ids, "use_cache": False}
    if weights is not None:
        return functional_call(model, weights, kwargs=given).loss  # type: ignore[no-any-return]
    embedded = model.model.embed_tokens(ids).requires_grad_()  # type: ignore[union-attr, operator]
    return model(inputs_embeds=embedded, labels=ids, use_cache=False).loss  # type: ignore[no-any-return]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("slots", [None, 3, 12])
def test_loss_and_slopes_are_those_of_folded_weights(folder: Path, slots: int | None, again: bool) -> None:
    if slots is not None and kernels.native_library() is None:
        pytest.skip("no compiled kernels here")
    reference = PragnosiaForCausalLM.from_pretrained(folder).train()
    model = streamed(folder, slots) if slots else PragnosiaForCausalLM.from_pretrained(folder)
    attached = stirred(model.train())
    if again:
        recompute(model)
        assert adapters(model).keys() == attached.keys()
    ids = torch.randint(0, 60, (2, 20))
    learned = {name: weight.detach().clone().requires_grad_() for name, weight in attached.items()}
    expected = loss_of(reference, ids, folded(reference, learned, EVERYTHING.scale))
    expected.backward()
    for _ in range(2):  # what a first pass leaves in the pool changes nothing
        for weight in attached.values():
            weight.grad = None
        loss = loss_of(model, ids)
        loss.backward()
        assert abs(loss.item() - expected.item()) < 1e-5
        for name, weight in attached.items():
            assert weight.grad is not None, name
            torch.testing.assert_close(weight.grad, learned[name].grad, rtol=2e-4, atol=2e-6, msg=name)
    mine = {id(weight) for weight in attached.values()}
    assert [
        name for name, weight in model.named_parameters() if weight.grad is not None and id(weight) not in mine
    ] == []


def test_streamed_and_resident_agree_bit_for_bit(folder: Path) -> None:
    if kernels.native_library() is None:
        pytest.skip("no compiled kernels here")
    slopes: list[dict[str, Tensor | None]] = []
    for model in (PragnosiaForCausalLM.from_pretrained(folder), streamed(folder, 3)):
        attached = stirred(model.train())
        recompute(model)
        loss_of(model, torch.arange(30)[None]).backward()
        slopes.append({name: weight.grad for name, weight in attached.items()})
    for name, slope in slopes[0].items():
        assert slope is not None
        assert torch.equal(slope, slopes[1][name]), name  # type: ignore[arg-type]


def test_a_fresh_adapter_changes_nothing_and_bfloat16_is_kept(folder: Path) -> None:
    model = PragnosiaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.arange(20)[None]
    before = model(ids, use_cache=False).logits
    attached = attach(model, EVERYTHING)
    after = model(ids, use_cache=False).logits
    assert after.dtype is torch.bfloat16
    assert all(weight.dtype is torch.float32 for weight in attached.values())
    torch.testing.assert_close(after.float(), before.float(), rtol=0, atol=0.1)


def test_adapters_travel(folder: Path) -> None:
    first, second = (PragnosiaForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    learned = {name: weight.detach().clone() for name, weight in stirred(first).items()}
    attach(second, EVERYTHING)
    load_adapters(second, learned)
    ids = torch.arange(20)[None]
    assert torch.equal(first(ids, use_cache=False).logits, second(ids, use_cache=False).logits)
    name = "model.layers.0.feed_forward.bank.up_a"
    with pytest.raises(CheckpointError, match=r"up_a has shape \(1,\)"):
        load_adapters(second, {**learned, name: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"another model or other targets.*up_a"):
        load_adapters(second, {key: value for key, value in learned.items() if key != name})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoraConfig(rank=0), "lora.rank is 0"),
        (lambda: LoraConfig(alpha=0), "lora.alpha is 0"),
        (lambda: LoraConfig(targets=()), "lora.targets is empty"),
        (lambda: LoraConfig(targets=("attenton",)), "Did you mean 'attention'"),
    ],
)
def test_what_cannot_be(make: Callable[[], LoraConfig], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_a_model_without_the_target(folder: Path) -> None:
    dense = PragnosiaForCausalLM(PragnosiaConfig(**DENSE))
    with pytest.raises(ConfigError, match="no units to adapt"):
        attach(dense, LoraConfig(targets=("units",)))


def test_dendrites_are_left_as_they_are() -> None:
    model = PragnosiaForCausalLM(PragnosiaConfig(**SHAPE, dendrites={"num_dendrites": 3}))
    names = attach(model, EVERYTHING)
    assert names
    assert not any("mixer" in name for name in names)
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
