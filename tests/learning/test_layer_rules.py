"""Rules that train the cortex layer by layer: what they hand back, and what they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pragnosia.errors import ConfigError
from pragnosia.learning.backprop import Backprop
from pragnosia.learning.cortex import walk
from pragnosia.learning.feedback_alignment import FeedbackAlignment, angle
from pragnosia.learning.forward_forward import EVERY, ForwardForward, falsified
from pragnosia.learning.local_loss import LocalLoss
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.exits import ExitLesson
from pragnosia.model.modeling import PragnosiaForCausalLM


def cortex(**changes: object) -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 12,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16,
        "attention": {"num_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        "feed_forward": {"width": 24},
        "tie_word_embeddings": False,
    }
    return PragnosiaForCausalLM(PragnosiaConfig(**(shape | changes))).train()  # type: ignore[arg-type]


def counting() -> torch.Tensor:
    return (torch.randint(0, 12, (8, 1)) + torch.arange(9)) % 12


def grads(model: nn.Module, part: str) -> list[torch.Tensor]:
    return [weight.grad for name, weight in model.named_parameters() if part in name and weight.grad is not None]


def test_one_layer_alone_learns_as_by_backprop() -> None:
    one, other, rows = cortex(num_hidden_layers=1), cortex(num_hidden_layers=1), counting()
    ours, exact = LocalLoss().learn(one, rows, 0.5), Backprop().learn(other, rows, 0.5)
    torch.testing.assert_close(ours.loss, exact.loss)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize("rule", [LocalLoss(), ForwardForward()], ids=["local", "forward_forward"])
def test_a_layer_hears_of_no_other(rule: LocalLoss | ForwardForward) -> None:
    """Another last layer changes nothing of what the first one wishes."""
    one, other, rows = cortex(), cortex(), counting()
    with torch.no_grad():
        for weight in other.model.layers[1].parameters():
            weight.mul_(3)
    for model in (one, other):
        rule.learn(model, rows, 1.0)
    for a, b in zip(grads(one, "layers.0"), grads(other, "layers.0"), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(grads(one, "layers.1")[0], grads(other, "layers.1")[0])


def test_the_readout_hears_the_exact_error_and_layers_a_random_one() -> None:
    one, other, rows = cortex(), cortex(), counting()
    rule = FeedbackAlignment()
    rule.learn(one, rows, 1.0)
    Backprop().learn(other, rows, 1.0)
    for part in ("lm_head", "model.norm"):
        torch.testing.assert_close(grads(one, part), grads(other, part))
    assert not torch.allclose(grads(one, "layers.0")[0], grads(other, "layers.0")[0])
    again = cortex()
    FeedbackAlignment().learn(again, rows, 1.0)
    assert torch.equal(grads(one, "layers.0")[0], grads(again, "layers.0")[0]), "the feedback is drawn by one seed"


def test_feedback_alignment_aligns() -> None:
    """After some steps what layers wish is less than a right angle from the gradient: the readout came to agree."""
    model, rule = cortex(), FeedbackAlignment()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        rule.learn(model, counting(), 1.0)
        optimiser.step()
    rows = counting()
    wishes = []
    for one in (rule, Backprop()):
        model.zero_grad()
        one.learn(model, rows, 1.0)
        wishes.append([wish.clone() for wish in grads(model, "layers")])
    assert angle(*wishes) < 80


def test_a_false_row_differs_where_it_is_judged() -> None:
    rows = torch.randint(0, 5, (6, 18))
    false, judged = falsified(rows)
    for row, other, where in zip(rows.tolist(), false.tolist(), judged.tolist(), strict=True):
        for at in range(18):
            expected = row[at - 9] if (at + sum(row)) % EVERY == 0 else row[at]
            assert other[at] == expected
            assert where[at] == (expected != row[at])
    assert 0 < int(judged.sum()) <= 6 * 5
    assert torch.equal(falsified(rows[2:4])[0], false[2:4]), "a row is made false by itself"
    with pytest.raises(ConfigError, match="takes 8 tokens, these have 7"):
        falsified(rows[:, :7])


def test_layers_come_to_tell_text_from_what_is_none_and_hear_of_no_readout() -> None:
    model, rule = cortex(), ForwardForward()
    other = cortex()
    with torch.no_grad():
        other.lm_head.weight.mul_(3)
    rows = counting()
    for one in (model, other):
        rule.learn(one, rows, 1.0)
    for a, b in zip(grads(model, "layers"), grads(other, "layers"), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(grads(model, "embed")[0], grads(other, "embed")[0])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        rule.learn(model, counting(), 1.0)
        optimiser.step()
    rows = counting()
    false, judged = falsified(rows)
    with torch.no_grad():
        for real, unreal in zip(walk(model, rows), walk(model, false), strict=True):
            right = (rule.goodness(unreal)[judged] < 0).float().mean(), (rule.goodness(real)[judged] > 0).float().mean()
            assert sum(map(float, right)) / 2 > 0.8


@pytest.mark.parametrize("told", [{"sharp": 0.0}, {"threshold": -1.0}])
def test_forward_forward_refuses_what_makes_no_sense(told: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="greater than 0"):
        ForwardForward(**told)


@pytest.mark.parametrize(
    "rule", [LocalLoss(), FeedbackAlignment(), ForwardForward()], ids=["local", "dfa", "forward_forward"]
)
def test_what_a_rule_is_not_defined_for_is_refused(rule: LocalLoss | FeedbackAlignment | ForwardForward) -> None:
    with pytest.raises(ConfigError, match="Linear"):
        rule.learn(nn.Linear(2, 2), counting(), 1.0)
    with pytest.raises(ConfigError, match="exits"):
        rule.learn(cortex(), counting(), 1.0, exits=ExitLesson.__new__(ExitLesson))
