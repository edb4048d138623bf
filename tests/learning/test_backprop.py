"""Back-propagation: the loss of a toy task falls, and only what is declared changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pragnosia.errors import ConfigError
from pragnosia.learning import RULES, LearningRule, learning_rule
from pragnosia.learning.backprop import Backprop, together
from pragnosia.learning.feedback_alignment import FeedbackAlignment
from pragnosia.learning.forward_forward import ForwardForward
from pragnosia.learning.meta import MetaRule
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM


def tiny_model(**changes: object) -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
        "attention": {"num_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        "experts": {
            "num_units": 4,
            "unit_width": 8,
            "thalamus": {"kind": "sigmoid", "num_awake": 2, "balance_rate": 1e-3},
        },
    }
    model = PragnosiaForCausalLM(PragnosiaConfig(**(shape | changes)))  # type: ignore[arg-type]
    model.train()
    return model


def counting(rows: int = 8, length: int = 16) -> torch.Tensor:
    """Sequences that count upwards: the next token is fully determined."""
    starts = torch.randint(0, 32, (rows, 1))
    return (starts + torch.arange(length)) % 32


TOLD = {name: {"inner_steps": 1} for name in ("reptile", "fomaml", "maml")}


@pytest.fixture(params=sorted(RULES))
def rule(request: pytest.FixtureRequest) -> LearningRule:
    return learning_rule(request.param, told=TOLD.get(request.param))


def test_every_rule_keeps_the_protocol(rule: LearningRule) -> None:
    assert isinstance(rule, LearningRule)


def test_the_loss_of_a_toy_task_falls(rule: LearningRule) -> None:
    rows, rate, steps, goal, tied = 8, 1e-2, 60, 0.5, True
    if isinstance(rule, MetaRule):  # takes row after row, so few
        rows, rate, steps, goal = 2, 4e-2, 30, 0.8
    elif isinstance(
        rule, FeedbackAlignment | ForwardForward
    ):  # slower, and a readout of its own is what random feedback aligns with
        steps, tied = 120, False
    model = tiny_model(tie_word_embeddings=tied)
    optimiser = torch.optim.AdamW([weight for _, weight in rule.changes(model)], lr=rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        lesson = rule.learn(model, counting(rows), 1.0)
        optimiser.step()
        rule.settle(model, [lesson])
        losses.append(float(lesson.loss))
    assert losses[-1] < goal * losses[0]


def test_only_declared_parameters_receive_wishes(rule: LearningRule) -> None:
    model = tiny_model()
    frozen = model.model.layers[0].mixer.q_proj.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rule.learn(model, counting(), 1.0)
    declared = {name for name, _ in rule.changes(model)}
    wished = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert frozen.grad is None
    assert wished <= declared
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # learning is not yet changing


def test_shares_add_up_to_the_whole_batch(rule: LearningRule) -> None:
    batch = counting(8)
    whole, halves = tiny_model(), tiny_model()
    rule.learn(whole, batch, 1.0)
    for half in batch.chunk(2):
        rule.learn(halves, half, 0.5)
    for (name, one), (_, other) in zip(whole.named_parameters(), halves.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_settling_moves_the_balance_once_by_all_lessons() -> None:
    rule, model = Backprop(), tiny_model()
    lessons = [rule.learn(model, counting(4), 0.5), rule.learn(model, counting(4), 0.5)]
    merged = together([lesson.routings for lesson in lessons])
    assert merged[0] is not None
    assert merged[0].units.shape[0] == 2 * 4 * 16
    balance = model.model.layers[0].feed_forward.thalamus.balance
    assert torch.equal(balance, torch.zeros(4))
    rule.settle(model, lessons)
    assert balance.abs().max() == pytest.approx(1e-3)


def test_a_dense_model_settles_in_silence() -> None:
    model = tiny_model(experts=None, feed_forward={"width": 32})
    rule = Backprop()
    rule.settle(model, [rule.learn(model, counting(), 0.5), rule.learn(model, counting(), 0.5)])


def test_bfloat16_gradients_agree_with_float32() -> None:
    exact, rough = tiny_model(), tiny_model()
    batch = counting()
    Backprop().learn(exact, batch, 1.0)
    Backprop(autocast=torch.bfloat16).learn(rough, batch, 1.0)
    one, other = (model.lm_head.weight.grad for model in (exact, rough))
    assert one is not None
    assert other is not None
    assert other.dtype is torch.float32
    assert nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"backprop"):
        learning_rule("bakprop")


def test_a_rule_from_outside_the_tree() -> None:
    assert isinstance(learning_rule("pragnosia.learning.backprop:Backprop"), Backprop)
