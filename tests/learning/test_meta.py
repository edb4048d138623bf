"""Meta-learning against what torch computes through the inner steps, and what it is for: learning a task quickly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.learning import learning_rule
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

META = ("reptile", "fomaml", "maml")


class Plain(nn.Module):
    """A model of torch's own parts, whose slopes have slopes."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.head = nn.Embedding(9, width), nn.Linear(width, 9)

    def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> Any:
        logits = self.head(torch.tanh(self.table(input_ids[:, :-1])).cumsum(1))
        return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()), routings=())


def by_torch(model: Plain, rows: Tensor, k: int, rate: float, name: str) -> list[Tensor]:
    """The wishes, by the graph of everything."""
    size = (rows.shape[1] - 1) // (k + 1)
    total = [torch.zeros_like(weight) for weight in model.parameters()]
    for row in rows:
        names = [each for each, _ in model.named_parameters()]
        start = list(model.parameters())
        weights, walked = start, []
        for piece in range(k + 1):
            tokens = row[None, piece * size : (piece + 1) * size + 1]
            call = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (tokens, tokens, False))
            if piece == k and name == "maml":
                wish = torch.autograd.grad(call.loss, start)
                break
            slopes = torch.autograd.grad(call.loss, weights, create_graph=name == "maml")
            walked.append(slopes)
            weights = [weight - rate * slope for weight, slope in zip(weights, slopes, strict=True)]
        if name == "reptile":  # where it leads, over how far a step goes
            wish = [(one - two) / (rate * (k + 1)) for one, two in zip(start, weights, strict=True)]
        elif name == "fomaml":
            wish = walked[-1]
        total = [sum_ + one.detach() / len(rows) for sum_, one in zip(total, wish, strict=True)]
    return total


@pytest.mark.parametrize("name", META)
def test_wishes_are_torchs_own(name: str) -> None:
    model, rows = Plain(), torch.randint(0, 9, (3, 13), generator=torch.Generator().manual_seed(0))
    rule = learning_rule(name, told={"inner_steps": 2, "inner_rate": 0.5})
    rule.learn(model, rows, 1.0)
    expected = by_torch(model, rows, 2, 0.5, name)
    for (named, weight), wish in zip(model.named_parameters(), expected, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, wish, rtol=2e-3, atol=2e-5, msg=named)


def test_second_order_is_not_the_first() -> None:
    rows = torch.randint(0, 9, (3, 13), generator=torch.Generator().manual_seed(0))
    wishes = []
    for name in ("maml", "fomaml"):
        model = Plain()
        learning_rule(name, told={"inner_steps": 2, "inner_rate": 0.5}).learn(model, rows, 1.0)
        wishes.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    assert (wishes[0] - wishes[1]).norm() > 0.05 * wishes[0].norm()


def shifted_counting(rows: int, length: int, chance: torch.Generator) -> Tensor:
    """Each row counts by a step of its own, forwards or backwards: what comes next depends on the task."""
    starts = torch.randint(0, 12, (rows, 1), generator=chance)
    steps = torch.tensor([1, 5, 7, 11])[torch.randint(0, 4, (rows, 1), generator=chance)]
    return (starts + steps * torch.arange(length)) % 12


def after_learning(model: nn.Module, rows: Tensor, k: int, rate: float) -> float:
    """Mean loss of the last piece after k steps on the ones before, of tasks nobody trained on."""
    rule = learning_rule("fomaml", told={"inner_steps": k, "inner_rate": rate})
    losses = []
    for row in rows.split(1):
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        losses.append(float(rule._adapt(model, weights, rule._pieces(row))[-1].loss))  # type: ignore[attr-defined]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", META)
def test_tasks_are_learned_in_few_steps(name: str) -> None:
    k, rate, chance = 2, 2.0, torch.Generator().manual_seed(0)
    exam = shifted_counting(8, 13, torch.Generator().manual_seed(9))

    class Next(Plain):
        """Sees the last token alone: the step must be learned, it cannot be read."""

        def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> Any:
            logits = self.head(self.table(input_ids[:, :-1]))
            return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()), routings=())

    found = {}
    for rule_name in (name, "backprop"):
        model = Next()
        model.table, model.head = nn.Embedding(12, 12), nn.Linear(12, 12)
        told = {} if rule_name == "backprop" else {"inner_steps": k, "inner_rate": rate}
        rule, chance = learning_rule(rule_name, told=told), torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(30):
            optimiser.zero_grad()
            rule.learn(model, shifted_counting(4, 13, chance), 1.0)
            optimiser.step()
        found[rule_name] = after_learning(model, exam, k, rate)
    assert found[name] < found["backprop"]


def test_a_model_that_remembers_learns_tasks_too() -> None:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "attention": {"num_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        "feed_forward": {"width": 16},
        "feed_forwards": ["dense", "memory"],
        "hippocampus": {"num_rows": 16, "num_heads": 2, "num_awake": 2, "key_width": 8},
    }
    model = PragnosiaForCausalLM(PragnosiaConfig(**shape)).train()
    for name in META:
        model.zero_grad()
        rule = learning_rule(name)
        lesson = rule.learn(model, torch.randint(0, 32, (2, 17)), 1.0)
        rows = model.model.hippocampus.rows.grad
        assert rows is not None
        assert rows.is_sparse, "rows that nobody recalled are left alone"
        rule.settle(model, [lesson])


def test_what_cannot_be_told() -> None:
    for told, word in (
        ({"inner_step": 2}, "inner_steps"),
        ({"inner_steps": 0}, "1 or more"),
        ({"inner_steps": True}, "whole number"),
        ({"inner_rate": -1}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=word):
            learning_rule("reptile", told=told)
    with pytest.raises(ConfigError, match="nothing of its own"):
        learning_rule("backprop", told={"inner_steps": 2})
    with pytest.raises(ConfigError, match="bf16"):
        learning_rule("maml", autocast=torch.bfloat16)
    with pytest.raises(ConfigError, match="cannot be cut"):
        learning_rule("reptile", told={"inner_steps": 9}).learn(Plain(), torch.zeros(1, 8, dtype=torch.long), 1.0)
    exits = PragnosiaForCausalLM(PragnosiaConfig(num_hidden_layers=2, exits={"layers": [1]}, vocab_size=20))
    with pytest.raises(ConfigError, match="exits are not trained"):
        learning_rule("reptile").changes(exits)
