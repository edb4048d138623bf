"""A list of who fired beside the dense counts it was made of, and a readout that reads it beside the plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pragnosia import NeuroGenForCausalLM, kernels
from pragnosia.spiking.fires import Fires
from pragnosia.spiking.voice import FEATURES, Readout, traced

MakeMind = Callable[..., NeuroGenForCausalLM]
TOKENS, ROWS, NEURONS = 7, 3, 20
KAPPAS = [0.5, 0.8]


@pytest.fixture
def counts() -> Tensor:
    """(7, 3, 20) spikes, most of them none; in one token nobody fires."""
    found = torch.randint(-5, 4, (TOKENS, ROWS, NEURONS), generator=torch.Generator().manual_seed(0)).clamp(min=0)
    found[4] = 0
    return found.int()


def test_a_list_is_the_counts(counts: Tensor) -> None:
    fires = Fires.listed(list(counts))
    assert torch.equal(fires.dense(), counts.float())
    assert len(fires.who) == int((counts > 0).sum())
    assert torch.equal(fires.each, counts.sum((0, 1)).double())
    torch.testing.assert_close(fires.mean, counts.float().mean())
    some = [slice(12, 17), slice(2, 5)]
    assert torch.equal(fires.among(some).dense(), torch.cat([counts[..., span] for span in some], -1).float())


def test_what_is_left_of_it_is_the_last_trace(counts: Tensor) -> None:
    _, last = traced(counts.float(), torch.zeros(2, ROWS, NEURONS), KAPPAS)
    for kappa, expected in zip(KAPPAS, last, strict=True):
        torch.testing.assert_close(Fires.listed(list(counts)).faded(kappa), expected)


def test_a_readout_of_events_is_the_plain_one(counts: Tensor) -> None:
    """Logits, gradients and what is carried on, from traces that are not empty."""
    torch.manual_seed(0)
    read = Readout(11, 2 * NEURONS, 5)
    for weight in read.parameters():
        torch.nn.init.normal_(weight)
    before = torch.rand(2, ROWS, NEURONS)
    assert read.down is not None
    codes = torch.stack([one @ rows for one, rows in zip(before, read.down.detach().split(NEURONS), strict=True)])
    said, last = read.events(Fires.listed(list(counts)), codes, KAPPAS)
    worth = torch.randn(TOKENS, ROWS, 11)
    (read.say(said) * worth).sum().backward()
    got = {name: weight.grad.clone() for name, weight in read.named_parameters() if weight.grad is not None}
    read.zero_grad()
    traces, after = traced(counts.float(), before, KAPPAS)
    torch.testing.assert_close(read.say(said), read(traces))
    torch.testing.assert_close(last, torch.stack([a @ b for a, b in zip(after, read.down.split(NEURONS), strict=True)]))
    torch.testing.assert_close(got["up"], worth.flatten(0, 1).T @ read.codes(traces).flatten(0, 1))
    # slopes of `down` come from what was heard now; what was there before passes none back, as in the brain itself
    fresh = traced(counts.float(), torch.zeros_like(before), KAPPAS)[0]
    torch.testing.assert_close(got["down"], fresh.flatten(0, 1).T @ (worth @ read.up.detach()).flatten(0, 1))


def test_codes_of_other_weights_are_computed_anew(make_mind: MakeMind, tokens: Tensor) -> None:
    if kernels.native_library() is None:
        pytest.skip("no compiled kernels here: products")
    model = make_mind("two")
    with torch.no_grad():
        state = model(tokens[:, :6]).past_key_values
        assert state.codes is not None
        model.read.down.mul_(1.5)
        again = model(tokens[:, 6:], past_key_values=state).logits
        torch.testing.assert_close(again, model(tokens).logits[:, 6:])


def test_many_features_are_heard_less() -> None:
    small, large = (Readout(4, features, 3) for features in (FEATURES, 16 * FEATURES))
    assert (small.gain, large.gain) == (1.0, 1 / 16)
    for read in (small, large):
        for weight in read.parameters():
            torch.nn.init.ones_(weight)
    # a step of Adam moves all weights alike: it then moves logits alike
    heard = [read(torch.ones(1, read.features)) for read in (small, large)]
    torch.testing.assert_close(heard[0], heard[1])
