"""Exits learn in their turn, rows pass layers by, and neither changes what the end is said to lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.errors import ConfigError
from pragnosia.learning.backprop import Backprop
from pragnosia.model.exits import ExitLesson
from pragnosia.model.organs import ExitsConfig
from pragnosia.model.setting import WHOLE
from pragnosia.training.exits import dropout_rates, exit_weights, lesson_at, passing
from pragnosia.training.trainer import train

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "max_position_embeddings": 32,
    "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    "experts": {"num_units": 4, "unit_width": 8, "thalamus": {"num_awake": 2, "balance_rate": 1e-3}},
}


def tiny(**changes: Any) -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    model: PragnosiaForCausalLM = PragnosiaForCausalLM(PragnosiaConfig(**(SHAPE | changes)))
    return model.train()  # type: ignore[no-untyped-call,no-any-return]


def test_curricula() -> None:
    organ = ExitsConfig(layers=[3, 1, 2], loss_weight=0.6)
    assert [exit_weights(organ, step, 100) for step in range(4)] == [{1: 0.6}, {2: 0.6}, {3: 0.6}, {1: 0.6}]
    every = ExitsConfig(layers=[1, 2, 3], loss_weight=0.6, curriculum="all")
    assert exit_weights(every, 7, 100) == pytest.approx({1: 0.2, 2: 0.2, 3: 0.2})
    more = ExitsConfig(layers=[1, 2, 3], curriculum="gradual")
    assert [sorted(exit_weights(more, step, 100)) for step in (0, 17, 34, 50, 99)] == [
        *([3], [2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]),
    ]
    assert all(sum(exit_weights(more, step, 100).values()) == pytest.approx(1.0) for step in range(100))


def test_dropout_grows_with_depth_and_time() -> None:
    organ = ExitsConfig(layers=[1], layer_dropout=0.2)
    assert dropout_rates(organ, 0, 50, 4) == [0.0] * 4
    end = dropout_rates(organ, 49, 50, 4)
    assert end[0] == 0.0
    assert end == sorted(end)
    assert end[-1] == pytest.approx(0.2)
    assert dropout_rates(organ, 20, 50, 4)[-1] < 0.2


def test_rows_that_pass() -> None:
    organ = ExitsConfig(layers=[1], layer_dropout=0.9)
    counts = torch.zeros(4)
    for _ in range(300):
        rows = passing(organ, 49, 50, 4, 8)
        assert rows is not None
        assert all(some is None or 0 < len(some) < 8 for some in rows)
        counts += torch.tensor([8 if some is None else len(some) for some in rows])
    assert counts[0] == 2400
    assert counts[3] / 2400 == pytest.approx(0.1 + 0.9**8 / 8, abs=0.02)
    assert passing(ExitsConfig(layers=[1], layer_dropout=0), 9, 10, 4, 8) is None
    assert lesson_at(None, 0, 10, 4, 8) is None


def test_the_exits_loss_is_the_sum_of_its_parts() -> None:
    model: Any = tiny()
    tokens = torch.randint(0, 40, (3, 12))
    lesson = ExitLesson({1: 0.3, 3: 0.7})
    output = model(input_ids=tokens, labels=tokens, lesson=lesson)
    streams = model.model(tokens, output_hidden_states=True).hidden_states
    expected = sum(
        weight
        * F.cross_entropy(
            model.lm_head(model.model.norm(streams[layer]))[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        for layer, weight in lesson.weights.items()
    )
    torch.testing.assert_close(output.exit_loss, expected)
    torch.testing.assert_close(output.loss, model(input_ids=tokens, labels=tokens).loss)


def test_rows_pass_a_layer_by_and_cost_it_nothing() -> None:
    model: Any = tiny()
    tokens = torch.randint(0, 40, (4, 8))
    rows = (None, torch.tensor([0, 2]), None, torch.tensor([3]))
    some = model.model(tokens, lesson=ExitLesson({}, rows), output_hidden_states=True)
    for row in range(4):
        kept = tuple(None if passed is None or row in passed else torch.tensor([], dtype=torch.long) for passed in rows)
        x = model.model.embed_tokens(tokens[row : row + 1])
        moment = model.model.moment(x, seen=0, setting=WHOLE)
        for layer, skipped in zip(model.model.layers, kept, strict=True):
            x = layer(x, None, moment)[0] if skipped is None else x
        torch.testing.assert_close(some.last_hidden_state[row : row + 1], model.model.norm(x))
    assert [routing.units.shape[0] for routing in some.routings] == [32, 16, 32, 8]


def test_the_rule_learns_from_both_and_tells_the_ends_loss() -> None:
    tokens = torch.randint(0, 40, (4, 8))
    plain, taught = tiny(), tiny()
    first = Backprop().learn(plain, tokens, 1.0)
    second = Backprop().learn(taught, tokens, 1.0, ExitLesson({1: 1.0}))
    assert torch.equal(first.loss, second.loss)
    one, other = (model.model.layers[0].mixer.q_proj.weight.grad for model in (plain, taught))
    assert not torch.equal(one, other)
    last = [model.model.layers[3].mixer.q_proj.weight.grad for model in (plain, taught)]
    assert torch.equal(*last), "an exit does not reach the layers above it"


def test_padding_and_caches_pass_every_layer() -> None:
    model: Any = tiny()
    tokens = torch.randint(0, 40, (2, 8))
    lesson = ExitLesson({}, (None, None, None, torch.tensor([1])))
    mask = torch.ones(2, 8)
    mask[0, :3] = 0
    with pytest.raises(ConfigError, match="without a cache and without padding"):
        model.model(tokens, attention_mask=mask, lesson=lesson)
    with pytest.raises(ConfigError, match="without a cache and without padding"):
        model.model(tokens, past_key_values=model.fresh_state(2, 20), lesson=lesson)


Configure = Callable[..., dict[str, Any]]
EXITS = {"layers": [1], "curriculum": "gradual", "layer_dropout": 0.5}


def test_a_run_with_exits_goes_on_where_it_was_stopped(configure: Configure, tmp_path: Path) -> None:
    config = configure(model={"exits": EXITS})
    whole = train(config, out=tmp_path / "whole")
    assert whole.steps == 12

    class StoppedError(Exception):
        pass

    class Reporter:
        def start(self, *_: Any) -> None: ...
        def note(self, *_: Any) -> None: ...
        def stop(self) -> None: ...
        def advance(self, step: int, record: Any) -> None:
            if step == 7:
                raise StoppedError

    with pytest.raises(StoppedError):
        train(config, out=tmp_path / "parts", reporter=Reporter())  # type: ignore[arg-type]
    train(config, out=tmp_path / "parts", resume=True)
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert ours == theirs
    shape = PragnosiaConfig.from_pretrained(tmp_path / "whole")
    assert shape.exits == ExitsConfig(**EXITS)


@pytest.mark.parametrize(
    ("exits", "told"),
    [
        ({"layers": [4]}, "exits.layers names 4, the model has 4 layers; exits stand after layer 1 to 3"),
        ({"layers": [0]}, "must be greater than 0"),
        ({"layers": [1.5]}, "must be a whole number"),
        ({"layers": []}, "name layers"),
        ({"layers": "2"}, "name layers"),
        ({}, "layers"),
        ({"layers": [1], "layer_dropout": 1.0}, r"must lie in \[0, 1\)"),
        ({"layers": [1], "curriculum": "rotating"}, "Did you mean 'rotate'"),
        ({"layers": [1], "loss_weight": 0}, "must be greater than 0"),
        ({"layer": [1]}, "Did you mean 'layers'"),
    ],
)
def test_exits_that_cannot_be(exits: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PragnosiaConfig(**SHAPE, exits=exits)
