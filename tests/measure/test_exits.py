"""Calibration: thresholds keep what they promise, and what is told of a text is what the exits do on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.data import Texts, train_tokenizer
from pragnosia.data.tokenizers import load_tokenizer
from pragnosia.errors import ConfigError, DataError
from pragnosia.measure.accounting import account
from pragnosia.measure.evaluation import evaluate
from pragnosia.measure.exits import Guesses, _simulated, calibrate_exits, exit_layers, threshold
from pragnosia.measure.leaving import answers, leaving
from pragnosia.model.setting import Setting

STORY = "Once upon a time there was a small brain. It slept most of the day, and woke a little for every word.\n" * 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(Texts([STORY], "story"), 300, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def model() -> Any:
    """Five layers of which the last three say little."""
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=300,
        hidden_size=24,
        num_hidden_layers=5,
        max_position_embeddings=64,
        initializer_range=0.3,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
        feed_forward={"width": 32},
    )
    found: Any = PragnosiaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for layer in found.model.layers[2:]:
            layer.mixer.o_proj.weight.mul_(0.05)
            layer.feed_forward.down.weight.mul_(0.05)
    return found


def test_a_threshold_keeps_its_promise() -> None:
    torch.manual_seed(0)
    sure = torch.rand(700)
    right = torch.rand(700) < sure.sqrt()
    for agreement in (0.8, 0.9, 0.95):
        found = threshold(Guesses(right, sure), agreement)
        assert found is not None
        leave = sure >= found
        assert right[leave].float().mean() >= agreement
        lower = sure >= sure[sure < found].max()
        rest = [right[sure >= level].sum() / ((sure >= level).sum() + 1) for level in sure[sure < found]]
        assert max(rest) < agreement, "no smaller one would do"
        assert lower.sum() == leave.sum() + 1


def test_equals_leave_together() -> None:
    sure = torch.tensor([0.9] * 50 + [0.5] * 50)
    right = torch.tensor([True] * 75 + [False] * 25)
    assert threshold(Guesses(right, sure), 0.95) == pytest.approx(0.9)
    assert threshold(Guesses(right, torch.full((100,), 0.7)), 0.9) is None


def test_a_handful_opens_no_exit() -> None:
    assert threshold(Guesses(torch.ones(50, dtype=torch.bool), torch.rand(50)), 0.99) is None
    assert threshold(Guesses(torch.ones(150, dtype=torch.bool), torch.rand(150)), 0.99) is not None


def test_what_is_calibrated(model: Any, tokenizer: Any) -> None:
    found = calibrate_exits(model, tokenizer, Texts([STORY], "story"), layers=[1, 3], agreement=0.9, tokens=1200)
    assert [entry.layer for entry in found.exits] == [1, 3]
    assert found.num_layers == 5
    assert found.tokens == 1200
    assert found.exits[1].guesses_right > found.exits[0].guesses_right > 0
    assert found.agreed > 0.85
    assert sum(entry.left for entry in found.exits) > 0.2, "nobody left: a test of nothing"
    depth = 5 - sum(entry.left * (5 - entry.layer) for entry in found.exits)
    assert found.layers_per_token == pytest.approx(depth)
    assert found.draft is not None
    assert found.draft.layer in (1, 3)


def test_evaluation_leaves_where_calibration_says(model: Any, tokenizer: Any) -> None:
    story = [STORY[:3000]]
    whole = evaluate(model, tokenizer, story)
    assert whole.layers_per_token == 5
    never = evaluate(model, tokenizer, story, setting=Setting(leave=((2, 1.1),)))
    assert (never.nats, never.layers_per_token) == (pytest.approx(whole.nats), 5)
    some = evaluate(model, tokenizer, story, setting=Setting(leave=((1, 0.7), (3, 0.5))))
    assert 1 < some.layers_per_token < 5
    always = evaluate(model, tokenizer, story, setting=Setting(leave=((2, 0.0),)))
    assert always.layers_per_token == 2
    assert always.nats != pytest.approx(whole.nats)


def test_who_leaves_where(model: Any) -> None:
    tokens = torch.randint(0, 300, (2, 20))
    with torch.inference_mode():
        output = model.model(tokens, use_cache=False, output_hidden_states=True)
        hidden, depths = leaving(model, output, 7, [(1, 0.8), (3, 0.6)])
        for row in range(2):
            for place in range(7):
                for layer, least in ((1, 0.8), (3, 0.6), (5, 0.0)):
                    stream = output.hidden_states[layer][row, 13 + place]
                    state = stream if layer == 5 else model.model.norm(stream)
                    if float(model.lm_head(state).softmax(-1).max()) >= least:
                        break
                assert int(depths[row * 7 + place]) == layer
                torch.testing.assert_close(hidden[row * 7 + place], state)
        words, sure = answers(hidden, model.lm_head)
        torch.testing.assert_close(sure, model.lm_head(hidden).softmax(-1).max(-1).values)
        assert torch.equal(words, model.lm_head(hidden).argmax(-1))


def test_drafts_that_hold_gain_and_others_do_not(model: Any) -> None:
    counted = account(model)
    sure = torch.rand(600)
    never, ever = torch.zeros(600, dtype=torch.bool), torch.ones(600, dtype=torch.bool)
    good, bad = (_simulated(1, 0.0, Guesses(right, sure), counted) for right in (ever, never))
    assert good.gain > 1.2
    assert good.accepted == 1
    assert bad.gain < 1
    assert bad.accepted == 0
    wary = _simulated(1, 1.0, Guesses(never, sure), counted)
    assert bad.gain < wary.gain < 1, "who never drafts loses only the exit's head"


def test_which_layers(model: Any) -> None:
    assert exit_layers(model.config) == [1, 2, 3, 4]
    assert exit_layers(PragnosiaConfig(num_hidden_layers=20)) == [4, 8, 12, 16]
    assert exit_layers(PragnosiaConfig(num_hidden_layers=1)) == []
    assert exit_layers(PragnosiaConfig(exits={"layers": [2, 1]})) == [1, 2]


def test_what_cannot_be(model: Any, tokenizer: Any) -> None:
    text = Texts([STORY], "story")
    with pytest.raises(ConfigError, match="an exit after layer 5 is none: the model has 5 layers"):
        calibrate_exits(model, tokenizer, text, layers=[2, 5])
    with pytest.raises(ConfigError, match="the agreement is 1"):
        calibrate_exits(model, tokenizer, text, agreement=1)
    with pytest.raises(DataError, match=r"the text has \d+ tokens; calibrating to an agreement of 0.99 takes 2000"):
        calibrate_exits(model, tokenizer, Texts([STORY[:400]], "story"))
