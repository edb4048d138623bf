"""Token gates: who passes a layer, what that changes, and what is left undone for the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.model.attention import Moment
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.gates import Passing, TokenGate
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.organs import GatesConfig
from pragnosia.model.setting import Setting
from pragnosia.model.thalamus import ASLEEP

Make = Callable[..., PragnosiaForCausalLM]
MakeConfig = Callable[..., PragnosiaConfig]

DRESSES: dict[str, dict[str, Any]] = {
    "experts": {"experts": {"num_shared": 1}},
    "dense": {"experts": None, "feed_forward": {"width": 10, "bias": True}, "attention": {"output_bias": True}},
    "dendrites": {"dendrites": {"num_dendrites": 3}},
    "window": {"layer_types": "sliding_attention", "attention": {"sliding_window": 4, "sinks": True}},
}


def gate(share: float = 0.5, width: int = 12) -> TokenGate:
    """A gate with random weights."""
    torch.manual_seed(1)
    made = TokenGate(width, GatesConfig(layers=[0], share=share))
    torch.nn.init.normal_(made.weight, std=0.5)
    return made


# -- the gate


@pytest.mark.parametrize("share", [0.125, 0.5, 0.8])
def test_its_share_passes(share: float) -> None:
    learned = gate(share)
    for _ in range(20):
        learned.rebalance(learned(torch.randn(2000, 12), 1.0))
    unseen = torch.randn(8000, 12)
    for gates in (1.0, 0.5, 0.25):
        passed = float((learned(unseen, gates).units != ASLEEP).float().mean())
        assert passed == pytest.approx(gates * share, rel=0.12), gates


def test_fewer_pass_at_a_lower_setting_and_they_are_the_highest() -> None:
    learned, x = gate(), torch.randn(400, 12)
    learned.rebalance(learned(x, 1.0))
    before = torch.zeros(400, dtype=torch.bool)
    for step in range(1, 41):
        routing = learned(x, step / 40)
        here = routing.units[:, 0] != ASLEEP
        assert not (before & ~here).any()
        assert routing.scores[here].min() > routing.scores[~here].max()
        assert not routing.strengths[~here].any()
        torch.testing.assert_close(routing.strengths[here], 2 / (1 + torch.exp(-(x[here] @ learned.weight))[:, None]))
        before = here


def test_the_strength_carries_the_gradient_and_forward_never_learns() -> None:
    learned = gate()
    before = {name: tensor.clone() for name, tensor in learned.state_dict().items()}
    routing = learned(torch.randn(30, 12), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learned.state_dict().items())
    routing.strengths.sum().backward()
    assert learned.weight.grad is not None
    assert learned.weight.grad.any()


def test_where_they_stand() -> None:
    passes = torch.tensor([[False, True, False, True], [False, False, False, False], [True, True, True, False]])
    passing = Passing.of(passes)
    assert passing.tokens.tolist() == [1, 3, 8, 9, 10]
    assert passing.places[passing.filled].tolist() == [1, 3, 0, 1, 2]
    assert passing.slots[passing.filled].tolist() == [0, 1, 2, 3, 4]
    assert passing.filled.sum(1).tolist() == [2, 0, 3]
    mask = torch.rand(3, 1, 4, 6) > 0.5
    for given in (mask, mask[0, 0]):
        visible = passing.visible(given, 4, 6)
        assert visible is not None
        whole = given.expand(3, 1, 4, 6)[:, 0]
        torch.testing.assert_close(visible[:, 0][passing.filled], whole[passes])
    plain = passing.visible(None, 4, 4)
    assert plain is not None
    torch.testing.assert_close(plain[:, 0][passing.filled], torch.ones(4, 4).tril().bool().expand(3, 4, 4)[passes])


# -- a gated layer


def forced(model: PragnosiaForCausalLM, layer: int, passes: Tensor) -> None:
    """From now on those tokens pass, by a gate that looks at nothing; in each other row whatever the row has."""
    learned: Any = model.model.layers[layer].gate
    first = learned.forward

    def forward(x: Tensor, gates: float) -> Any:
        routing = first(x, gates)
        here = passes.flatten()[:, None]
        return routing._replace(
            units=torch.where(here, 0, ASLEEP), strengths=torch.where(here, 2 * routing.scores, 0.0)
        )

    learned.forward = forward


PATTERNS = {
    "some": torch.rand(2, 12, generator=torch.Generator().manual_seed(5)) > 0.5,
    "all": torch.ones(2, 12, dtype=torch.bool),
    "none": torch.zeros(2, 12, dtype=torch.bool),
    "one": torch.eye(12, dtype=torch.bool)[[3, 7]] & torch.tensor([[True], [False]]),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dress", DRESSES)
@torch.no_grad()
def test_a_layer_by_its_definition(dress: str, pattern: str, padded: bool, tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(num_hidden_layers=1, gates={"layers": [0]}, **DRESSES[dress])
    layer: Any = model.model.layers[0]
    passes = PATTERNS[pattern]
    forced(model, 0, passes)
    mask = torch.ones(2, 12, dtype=torch.long)
    if padded:
        mask[0, :3] = 0
    moment: Moment = model.model.moment(torch.zeros(2, 12, 24), mask, seen=0, setting=Setting())
    x = torch.randn(2, 12, 24)
    y, _, routing = layer(x, None, moment)
    # every token computed, by the modules as they are, and then thrown away where it does not pass
    normed = layer.mixer_norm(x)
    mixed = layer.mixer(normed, None, moment)[0]
    thought, woken = layer.feed_forward(layer.feed_forward_norm(x + mixed), moment)
    strength = 2 / (1 + torch.exp(-(normed @ layer.gate.weight)))[..., None]
    torch.testing.assert_close(y, torch.where(passes[..., None], x + strength * (mixed + thought), x))
    assert torch.equal(y[~passes], x[~passes])
    assert torch.equal(routing.gate.units[:, 0] != ASLEEP, passes.flatten())
    if woken is not None:
        assert torch.equal(routing.passed.units, woken.units[passes.flatten()])
        assert (routing.units[~passes.flatten()] == ASLEEP).all()


@torch.no_grad()
def test_the_others_are_not_computed(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(gates={"layers": [1]})
    forced(model, 1, PATTERNS["some"])
    rows: dict[str, int] = {}
    layer: Any = model.model.layers[1]
    for name in ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj", "feed_forward.thalamus"):
        module = layer.get_submodule(name)
        module.register_forward_pre_hook(lambda _, x, name=name: rows.__setitem__(name, x[0][..., 0].numel()))
    model(tokens)
    count = int(PATTERNS["some"].sum())
    assert rows == {
        "mixer.q_proj": count,
        "mixer.k_proj": 24,
        "mixer.v_proj": 24,
        "mixer.o_proj": count,
        "feed_forward.thalamus": count,
    }


@torch.no_grad()
def test_who_passes_by_is_still_heard(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(num_hidden_layers=1, gates={"layers": [0]}, experts=None, feed_forward={"width": 8})
    passes = torch.zeros(1, 12, dtype=torch.bool)
    passes[0, 9] = True
    forced(model, 0, passes)
    changed = tokens[:1].clone()
    changed[0, 4] = (changed[0, 4] + 1) % 61
    before, after = model(tokens[:1]).logits[0], model(changed).logits[0]
    assert not torch.allclose(before[9], after[9], atol=1e-3)
    assert torch.equal(before[8], after[8])


@torch.no_grad()
def test_a_row_is_what_it_is_alone_and_padded(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(gates={"layers": [0, 1]})
    both = model(tokens).logits
    torch.testing.assert_close(torch.cat([model(row[None]).logits for row in tokens]), both, rtol=1e-4, atol=1e-5)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(logits, both, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_generate_goes_row_by_row(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(gates={"layers": [1]}, dendrites={"num_dendrites": 2})
    said = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for row, words in zip(tokens, said, strict=True):
        assert torch.equal(model.generate(row[None], max_new_tokens=6, do_sample=False, pad_token_id=0)[0], words)


@torch.no_grad()
def test_fewer_pass_where_fewer_may(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(gates={"layers": [0, 1]})
    for _ in range(20):
        model.rebalance(model(tokens).routings)
    counts = []
    for gates in (1.0, 0.5, 0.2):
        routings = model(tokens, setting=Setting(gates=gates)).routings
        counts.append(sum(int((routing.gate.units != ASLEEP).sum()) for routing in routings))
        assert all((routing.units[routing.gate.units[:, 0] == ASLEEP] == ASLEEP).all() for routing in routings)
    assert counts[0] > counts[1] > counts[2] > 0
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=rf"gates is {wrong}; it must lie in \(0, 1\]"):
            Setting(gates=wrong)


def test_a_router_behind_a_gate_is_told_of_those_that_passed(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(gates={"layers": [1]}, experts={"thalamus": {"kind": "threshold"}})
    forced(model, 1, PATTERNS["some"])
    routings = model(tokens).routings
    model.rebalance(routings)
    thresholds: Any = model.model.layers[1].feed_forward.thalamus.thresholds
    heard = routings[1].scores[PATTERNS["some"].flatten()].detach()
    torch.testing.assert_close(thresholds[7], torch.quantile(heard, 1 - 2 / 8, dim=0))
    forced(model, 1, PATTERNS["none"])
    model.rebalance(model(tokens).routings)  # nobody passed: nothing to learn from


def test_checkpointed_gradients_are_the_same(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(gates={"layers": [0, 1]}, experts={"num_shared": 1}).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert "model.layers.0.gate.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_rounded_weights_keep_their_thresholds(tiny_model: Make, tokens: Tensor, tmp_path: Any) -> None:
    model = tiny_model(gates={"layers": [1]}, experts=None, feed_forward={"width": 8})
    model.rebalance(model(tokens).routings)
    threshold: Any = model.model.layers[1].gate.thresholds
    model.save_pretrained(tmp_path)
    again: Any = PragnosiaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.model.layers[1].gate.weight.dtype is torch.bfloat16
    assert torch.equal(again.model.layers[1].gate.thresholds, threshold)
    again.rebalance(again(tokens).routings)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gates": {"layers": [2]}}, r"gates.layers names 2, the model has 2 layers: 0 to 1"),
        ({"gates": {"layers": []}}, r"gates.layers is \[\]; name layers"),
        ({"gates": {"layers": [True]}}, "gates.layers names True"),
        ({"gates": {"layers": [-1]}}, "gates.layers names -1"),
        ({"gates": {"layers": [0], "share": 1.0}}, "gates.share is 1.0; it must lie between 0 and 1"),
        ({"gates": {"layers": [0], "share": 0}}, "gates.share is 0"),
        ({"gates": {"layer": [0]}}, "Did you mean 'layers'"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], words: str, tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(**given)


def test_a_mixer_that_knows_no_gates(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from pragnosia.model.attention import Attention

    monkeypatch.setattr(Attention, "lets_pass", False)
    with pytest.raises(ConfigError, match=r"gates.layers names 1, whose mixer Attention mixes every token"):
        tiny_model(gates={"layers": [1]})
