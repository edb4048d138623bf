"""A purse: what a talk may cost is never passed by more than a token, and the dial goes down before it is empty."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.errors import PromptError
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.dial import Notch
from pragnosia.inference.ending import Spoken
from pragnosia.inference.exits import Draft
from pragnosia.inference.ladder import climbable
from pragnosia.inference.sampling import Sampling
from pragnosia.measure.accounting import account
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.dial import notch
from pragnosia.measure.energy import energy_model
from pragnosia.measure.evaluation import Evaluation, EvaluationOptions, _Reader
from pragnosia.measure.meter import EnergyMeter
from pragnosia.measure.purse import Purse
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.units import parse_joules

MODEL = energy_model("circuit-7nm-ddr")
PROMPT = list(range(12))


EXITS = ((1, 0.03), (2, 0.03))


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


@pytest.fixture(scope="module")
def notches(speaker: Any) -> list[Notch]:
    """All of it, less and less awake, and then layers passed by: costs as measured, however badly it predicts."""
    settings = [WHOLE, *(Setting(awake=share) for share in (0.7, 0.5, 0.3, 0.1))]
    settings += [Setting(awake=0.1, leave=EXITS, memory="propagated")] * climbable(speaker)
    counted, found = account(speaker, precision="float32"), []
    rows = torch.randint(90, (1, 81))
    for number, setting in enumerate(settings):
        reader = _Reader(speaker, EvaluationOptions(setting=setting))
        with torch.inference_mode():
            reader.scores(rows, 80)
        read = replace(SOME, passed=reader.passed(), heads_per_token=reader.heads / 80)
        read = replace(read, awake_per_token=reader.meter.activity().awake_per_token)
        found.append(replace(notch(setting, read, counted, MODEL, 1.0), bits_per_byte=2.0 + number))
    return found


SOME = Evaluation(
    **dict.fromkeys(("nats", "seconds", "operations_per_token", "bytes_per_token", "joules"), 1.0),  # type: ignore[arg-type]
    **dict.fromkeys(("tokens", "bytes", "words", "documents", "context", "stride", "tokens_read"), 80),  # type: ignore[arg-type]
    passed=(),
    heads_per_token=1.0,
    awake_per_token=(),
    joules_source="model",
)


def costs(model: Any, trace: Trace) -> list[float]:
    """Joules of the prompt and of each token, counted from who woke and which layers were passed."""
    meter, past, sums = ActivityMeter(account(model, precision="float32")), 0, []
    for routings, tokens in trace.steps():
        meter.add(routings, tokens=tokens, past=past, logits=1)
        past += tokens
        sums.append(meter.activity().energy(MODEL).joules)
    for climb in trace.climbs:
        if climb.start == 0:
            sums.append(0.0)
        meter.climbed(climb)
        sums[-1] = meter.activity().energy(MODEL).joules
    return [sums[0], *(after - before for before, after in itertools.pairwise(sums))]


def answered(
    model: Any, joules: float, notches: Any = (), new: int = 60, setting: Setting = WHOLE
) -> tuple[Purse, list[float], str]:
    trace = Trace()
    decoder = Decoder(model, 200, setting, trace)
    purse = Purse(joules, decoder, account(model, precision="float32"), MODEL, notches)
    purse.read(PROMPT, new)
    spoken = Spoken(decoder, new, Sampling(), (), purse.ran_out)
    list(spoken)
    return purse, costs(model, trace), spoken.stopped


def test_it_is_never_passed_by_more_than_a_token(speaker: Any, notches: list[Notch]) -> None:
    whole = sum(answered(speaker, 1.0)[1])
    chosen = set()
    for share in (0.2, 0.35, 0.5, 0.6, 0.7, 0.9):
        purse, each, stopped = answered(speaker, share * whole, notches)
        assert purse.spent == pytest.approx(sum(each))
        assert sum(each) <= share * whole + each[-1]
        assert purse.decoder.setting != WHOLE, "the dial went down"
        chosen.add(purse.decoder.setting)
        if stopped == "energy":
            assert purse.ran_out()
            assert sum(each[:-1]) < share * whole
    assert len(chosen) > 1


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_who_leaves_early_is_counted(speaker: Any, notches: list[Notch]) -> None:
    """What the layers above remember is paid for, too."""
    whole = sum(answered(speaker, 1.0)[1])
    purse, each, _ = answered(speaker, 0.25 * whole, notches)
    assert purse.decoder.setting.leave == EXITS
    assert purse.decoder.decoding == "leaving early"
    assert sum(purse.decoder.tally.left[layer] for layer, _ in EXITS) > 5
    assert sum(each) <= 0.25 * whole + each[-1]
    assert purse.spent == pytest.approx(sum(each))


def test_without_a_dial_it_stays(speaker: Any) -> None:
    whole = sum(answered(speaker, 1.0)[1])
    purse, each, stopped = answered(speaker, 0.4 * whole)
    assert purse.decoder.setting == WHOLE
    assert stopped == "energy"
    assert 0.4 * whole <= sum(each) <= 0.4 * whole + each[-1]


def test_nothing_is_drafted(speaker: Any) -> None:
    decoder = Decoder(speaker, 200, Setting(leave=EXITS))
    decoder.draft = Draft(layer=1, confidence=0.5)
    Purse(1.0, decoder, account(speaker, precision="float32"), MODEL)
    assert decoder.draft is None
    assert decoder.setting.memory == "propagated", "what would be caught up with is paid for at once"


def test_what_suffices_changes_nothing(speaker: Any, notches: list[Notch]) -> None:
    purse, each, stopped = answered(speaker, 1.0, notches)
    assert (purse.decoder.setting, stopped, len(each)) == (WHOLE, "length", 60)
    half = Setting(awake=0.5)
    assert answered(speaker, 1.0, notches, setting=half)[0].decoder.setting == half
    own = Setting(awake=0.35)
    assert answered(speaker, 1e-4, notches, setting=own)[0].decoder.setting == own, "the dial does not know it"
    whole = sum(answered(speaker, 1.0)[1])
    turned = answered(speaker, whole / 4, notches, setting=half)[0].decoder.setting
    assert turned.awake < 0.5, "down from there, never up"


def test_the_cost_it_expects_is_near_the_cost_that_comes(speaker: Any, notches: list[Notch]) -> None:
    for one in notches[:5]:
        trace = Trace()
        decoder = Decoder(speaker, 200, one.setting, trace)
        purse = Purse(1.0, Decoder(speaker, 200), account(speaker, precision="float32"), MODEL, notches)
        decoder.read(PROMPT)
        list(decoder.speak(20, Sampling()))
        each = costs(speaker, trace)
        reading = purse.reading(len(PROMPT), 0, one.setting)
        assert each[0] <= reading < 2 * each[0], "a prompt may wake fewer units than it could"
        share = one.joules_per_token / notches[0].joules_per_token
        assert purse.saying(len(PROMPT) + 8, one.setting, share) == pytest.approx(each[9], rel=0.05)


def test_a_prompt_that_cannot_be_paid_for(speaker: Any) -> None:
    decoder = Decoder(speaker, 200)
    purse = Purse(1e-9, decoder, account(speaker, precision="float32"), MODEL)
    with pytest.raises(PromptError, match=r"1 nJ of 1 nJ is left, and reading this prompt of 12 tokens takes about"):
        purse.choose(12, 10)


def test_what_a_later_prompt_takes_is_asked_of_what_is_left(speaker: Any) -> None:
    """The second turn's, in one line; nothing is spent on it, and a shorter one is read."""
    purse, each, _ = answered(speaker, 1.0, new=20)
    decoder, spent = purse.decoder, purse.spent
    assert spent == pytest.approx(sum(each))
    purse.joules = spent + 3 * each[-1]
    ids, state = list(decoder.ids), decoder.state
    with pytest.raises(PromptError, match=r"is left, and reading this prompt of 150 tokens takes about") as told:
        purse.read([5] * 150, 10)
    assert "\n" not in str(told.value)
    assert (decoder.ids, decoder.state, purse.spent) == (ids, state, spent)
    assert not purse.empty
    purse.read([5], 10)
    spoken = Spoken(decoder, 10, Sampling(), (), purse.ran_out)
    said = list(spoken)
    assert spoken.stopped == "energy"
    assert len(said) < 4
    assert purse.joules <= purse.spent <= purse.joules + 2 * each[-1]
    with pytest.raises(PromptError, match=r"nothing of .* is left"):
        purse.read([5], 10)


class Each:
    """A counter: so many joules for each token that was read, and some for whatever else runs."""

    source = "rapl"

    def __init__(self, trace: Trace, each: float) -> None:
        self.trace, self.each, self.else_ = trace, each, 0.0

    def joules(self) -> float:
        """So far."""
        return self.else_ + self.each * sum(self.trace.num_tokens)


def counted_answer(model: Any, budget: float, prompt: list[int], notches: Any = (), new: int = 60) -> tuple[Purse, int]:
    """By counters; and the tokens that were said."""
    trace = Trace()
    counter = Each(trace, 1.0)
    with EnergyMeter([counter]) as meter:
        purse = Purse(
            budget, Decoder(model, 200, WHOLE, trace), account(model, precision="float32"), MODEL, notches, meter
        )
        counter.else_ += 1000.0  # before anything is asked
        purse.read(prompt, new)
        said = len(list(Spoken(purse.decoder, new, Sampling(), (), purse.ran_out)))
        counter.else_ += 1000.0  # while somebody thinks
        return purse, said


def test_counters_are_asked_while_a_prompt_is_read(speaker: Any, notches: list[Notch]) -> None:
    """Joules of the machine, which are not the model's: 1 for a token."""
    purse, said = counted_answer(speaker, 40.5, PROMPT)
    assert said == 30, "12 were given, and the last one said has not been read"
    assert purse.spent == 41
    purse, said = counted_answer(speaker, 1000.0, PROMPT, notches)
    assert (purse.spent, said, purse.decoder.setting) == (71, 60, WHOLE)
    purse, _ = counted_answer(speaker, 40.5, PROMPT, notches)
    assert purse.decoder.setting != WHOLE, "though by the model it is enough"


@pytest.mark.parametrize("budget", [0.5, 3.5, 9.0, 11.5])
def test_a_prompt_takes_at_most_a_token_too_many(speaker: Any, budget: float) -> None:
    """Of the machine's joules, too."""
    trace = Trace()
    counter = Each(trace, 1.0)
    with EnergyMeter([counter]) as meter:
        decoder = Decoder(speaker, 200, WHOLE, trace)
        purse = Purse(budget, decoder, account(speaker, precision="float32"), MODEL, (), meter)
        with pytest.raises(PromptError, match=r"nothing of .* is left: reading \d+ of the prompt's 13 tokens took"):
            purse.read([*PROMPT, 7], 10)
        assert budget <= purse.spent <= budget + 1
        assert purse.empty
        assert (decoder.ids, decoder.length) == ([], 0)
        with pytest.raises(PromptError, match=r"nothing of .* is left, and reading this prompt of 1 tokens"):
            purse.read([7], 10)


def test_pieces_say_what_the_whole_says(speaker: Any) -> None:
    whole, parts = Decoder(speaker, 200), Decoder(speaker, 200)
    for decoder in (whole, parts):
        decoder.read(PROMPT)
    for piece in (1, 2, 50):
        parts.take_in(piece)
    assert parts.length == len(PROMPT) - 1
    said = [list(decoder.speak(20, Sampling())) for decoder in (whole, parts)]
    assert said[0] == said[1]


@pytest.mark.parametrize(("text", "joules"), [("50J", 50), ("200 mJ", 0.2), ("1.5kJ", 1500), ("3", 3), ("7uJ", 7e-6)])
def test_joules_as_people_write_them(text: str, joules: float) -> None:
    assert parse_joules(text) == pytest.approx(joules)


@pytest.mark.parametrize("text", ["fifty", "50W", "", "-3J"])
def test_what_is_no_energy(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and one of J"):
        parse_joules(text)
