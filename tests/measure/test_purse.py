"""A purse: what a talk may cost is never passed by more than a token, and the dial goes down before it is empty."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.errors import PromptError
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.ending import Spoken
from pragnosia.inference.sampling import Sampling
from pragnosia.measure.accounting import account
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.energy import energy_model
from pragnosia.measure.purse import Purse
from pragnosia.units import parse_joules

MODEL = energy_model("circuit-7nm-ddr")
PROMPT = list(range(12))


@pytest.fixture(scope="module")
def speaker() -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=90,
        hidden_size=32,
        num_hidden_layers=3,
        max_position_embeddings=256,
        initializer_range=0.2,
        attention={"num_heads": 4, "num_key_value_heads": 2},
        feed_forward={"width": 40},
        feed_forwards=["dense", "experts", "experts"],
        experts={"num_units": 40, "unit_width": 16, "thalamus": {"kind": "sigmoid", "num_awake": 10}},
    )
    return PragnosiaForCausalLM(config).eval()  # type: ignore[no-any-return,no-untyped-call]


def costs(model: Any, decoder: Decoder, trace: Trace) -> list[float]:
    """Joules of each pass, counted from who woke."""
    meter, past, sums = ActivityMeter(account(model, precision="float32")), 0, []
    for routings, tokens in trace.steps():
        meter.add(routings, tokens=tokens, past=past, logits=1)
        past += tokens
        sums.append(meter.activity().energy(MODEL).joules)
    return [sums[0], *(after - before for before, after in itertools.pairwise(sums))]


def answered(model: Any, joules: float, new: int = 60, energy: float = 1.0) -> tuple[Purse, list[float], str]:
    trace = Trace()
    decoder = Decoder(model, 200, energy, trace)
    purse = Purse(joules, decoder, account(model, precision="float32"), MODEL)
    decoder.energy = purse.choose(len(PROMPT), new)
    decoder.read(PROMPT)
    spoken = Spoken(decoder, new, Sampling(), (), purse.ran_out)
    list(spoken)
    return purse, costs(model, decoder, trace), spoken.stopped


def test_it_is_never_passed_by_more_than_a_token(speaker: Any) -> None:
    whole = sum(answered(speaker, 1.0)[1])
    for share in (0.2, 0.35, 0.5, 0.7):
        purse, each, stopped = answered(speaker, share * whole)
        assert purse.spent == pytest.approx(sum(each))
        assert sum(each) <= share * whole + each[-1]
        assert purse.decoder.energy < 1, "the dial went down"
        if stopped == "energy":
            assert purse.ran_out()
            assert sum(each[:-1]) < share * whole


def test_nothing_is_drafted(speaker: Any) -> None:
    decoder = Decoder(speaker, 200)
    decoder.early = object()  # type: ignore[assignment]  # whatever speaks with fewer layers
    Purse(1.0, decoder, account(speaker, precision="float32"), MODEL)
    assert decoder.early is None


def test_what_suffices_changes_nothing(speaker: Any) -> None:
    purse, each, stopped = answered(speaker, 1.0)
    assert (purse.decoder.energy, stopped, len(each)) == (1.0, "length", 60)
    assert answered(speaker, 1.0, energy=0.35)[0].decoder.energy == 0.35


def test_the_cost_it_expects_is_near_the_cost_that_comes(speaker: Any) -> None:
    for level in (1.0, 0.3):
        trace = Trace()
        decoder = Decoder(speaker, 200, level, trace)
        purse = Purse(1.0, Decoder(speaker, 200), account(speaker, precision="float32"), MODEL)
        decoder.read(PROMPT)
        list(decoder.speak(20, Sampling()))
        each = costs(speaker, decoder, trace)
        assert each[0] <= purse.cost(len(PROMPT), 0, level) < 2 * each[0], "a prompt may wake fewer units than it could"
        assert purse.cost(1, len(PROMPT) + 8, level) == pytest.approx(each[9], rel=0.01)


def test_a_prompt_that_cannot_be_paid_for(speaker: Any) -> None:
    decoder = Decoder(speaker, 200)
    purse = Purse(1e-9, decoder, account(speaker, precision="float32"), MODEL)
    with pytest.raises(PromptError, match=r"of 1 nJ are left, and reading this prompt of 12 tokens takes about"):
        purse.choose(12, 10)


@pytest.mark.parametrize(("text", "joules"), [("50J", 50), ("200 mJ", 0.2), ("1.5kJ", 1500), ("3", 3), ("7uJ", 7e-6)])
def test_joules_as_people_write_them(text: str, joules: float) -> None:
    assert parse_joules(text) == pytest.approx(joules)


@pytest.mark.parametrize("text", ["fifty", "50W", "", "-3J"])
def test_what_is_no_energy(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and one of J"):
        parse_joules(text)
