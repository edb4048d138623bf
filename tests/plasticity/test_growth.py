"""Growth keeps the function: whatever the organs, the logits are those of before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from organs_at_work import DENSE, SPARSE, at_work, experts, words

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.errors import ConfigError
from pragnosia.inference.loading import load_model
from pragnosia.inference.stream import load_streamed
from pragnosia.measure.accounting import account
from pragnosia.model.cortex import PlainCortex
from pragnosia.plasticity.growth import add_units, deepen, split_rows, split_units, widen

EVERY = SPARSE | DENSE
UNITS: dict[str, Callable[[Any], Any]] = {
    "twice": lambda model: add_units(model, model.config.units.num_units),
    "split": split_units,
}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(words()).logits


def assert_kept(model: Any, before: torch.Tensor) -> None:
    """To 1e-5, of the largest logit where that is more than 1: fp32 rounds to 1e-7 of a number."""
    largest = max(1.0, float(before.abs().max()))
    assert float((logits(model) - before).abs().max()) <= 1e-5 * largest


@pytest.mark.parametrize("verb", UNITS)
@pytest.mark.parametrize("organs", SPARSE)
def test_units_keep_the_function(organs: str, verb: str) -> None:
    model = at_work(SPARSE[organs])
    units, before = model.config.units.num_units, logits(model)
    change = UNITS[verb](model)
    assert_kept(model, before)
    assert model.config.units.num_units == 2 * units
    assert change.total_after > change.total_before
    assert change.total_after == account(model).total_parameters == account(model.config).total_parameters
    for layer in model.experts():
        assert layer.bank.num_units == layer.thalamus.num_units == 2 * units


def newborn_places(before: dict[str, int], after: dict[str, int]) -> list[int]:
    """A lobe's newborn lie behind its older units."""
    places, first = [], 0
    for label, size in after.items():
        places += range(first + before[label], first + size)
        first += size
    return places


@pytest.mark.parametrize("organs", ["sigmoid", "threshold", "columns", "softmax", "mixed"])
def test_newborns_sleep_and_cost_nothing(organs: str) -> None:
    model = at_work(SPARSE[organs])
    active, lobes, before = account(model).active_parameters, dict(model.config.units.lobes), logits(model)
    change = add_units(model, 3)
    assert_kept(model, before)
    born = newborn_places(lobes, model.config.units.lobes)
    assert len(born) == 3
    per_token = account(model).active_parameters - active
    assert per_token < (change.total_after - change.total_before) / 4, "rows of the router and no unit"
    with torch.no_grad():
        routings = [routing for routing in model(words()).routings if routing is not None]
    assert routings
    for routing in routings:
        assert not set(routing.units.flatten().tolist()) & set(born)


def test_a_lobe_grows_where_it_is_told_to() -> None:
    model = at_work(experts(kind="sigmoid"))
    before, kept = logits(model), [experts.bank.up.detach().clone() for experts in model.experts()]
    add_units(model, {"a": 1}, parents=[[0], [1], [1]], noise=0.0)
    assert_kept(model, before)
    assert model.config.experts.lobes == {"a": 3, "b": 4}
    for parent, old, layer in zip((0, 1, 1), kept, model.experts(), strict=True):
        assert layer.lobes == {"a": range(3), "b": range(3, 7)}
        assert torch.equal(layer.bank.up[2], old[parent])
        assert torch.equal(layer.bank.up[3:], old[2:])
        assert float(layer.thalamus.balance[2]) == -1.0
        assert not layer.thalamus.balance[3:].any()


def test_lobes_share_newborns_in_proportion() -> None:
    model = at_work(experts(kind="sigmoid"))
    add_units(model, 3)
    assert model.config.experts.lobes == {"a": 3, "b": 6}


def test_twins_wake_together_and_differ() -> None:
    model = at_work(SPARSE["sigmoid"])
    split_units(model, 3)
    with torch.no_grad():
        routing = model(words()).routings[0]
    woken = routing.units.sort(1).values.view(len(routing.units), -1, 3)
    assert (woken % 3 == torch.arange(3)).all()
    twins = next(model.experts()).bank
    assert torch.equal(twins.up[0], twins.up[1])
    assert not torch.equal(twins.down[0], twins.down[1])


@pytest.mark.parametrize("organs", EVERY)
def test_deeper_keeps_the_function(organs: str) -> None:
    model = at_work(EVERY[organs])
    before = logits(model)
    deepen(model, 2)
    assert torch.equal(logits(model), before)
    assert model.config.num_hidden_layers == len(model.model.layers) == 5
    assert account(model).total_parameters == account(model.config).total_parameters


@pytest.mark.parametrize("organs", EVERY)
@pytest.mark.parametrize("factor", [1.5, 2])
def test_wider_keeps_the_function(organs: str, factor: float) -> None:
    model = at_work(EVERY[organs])
    before = logits(model)
    widen(model, factor)
    largest = max(1.0, float(before.abs().max()))
    assert float((logits(model) - before).abs().max()) <= 1e-5 * largest
    assert model.config.hidden_size == 24 * factor


def test_rows_of_memory_keep_the_function() -> None:
    model = at_work(DENSE["memory"])
    before = logits(model)
    split_rows(model)
    assert_kept(model, before)
    assert model.config.hippocampus.num_rows == 1024
    assert model.config.hippocampus.num_awake == 16
    assert len(model.model.hippocampus.rows.unique(dim=0)) == 1024, "twins differ"


@settings(max_examples=15)
@given(
    units=st.integers(2, 5),
    awake=st.integers(1, 2),
    kind=st.sampled_from(["softmax", "sigmoid", "threshold"]),
    renormalise=st.booleans(),
    balance=st.booleans(),
    more=st.integers(1, 4),
    share=st.sampled_from([1.25, 1.5, 3]),
    layers=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape_is_kept_by_all_in_turn(
    units: int, awake: int, kind: str, renormalise: bool, balance: bool, more: int, share: float, layers: int, seed: int
) -> None:
    router = {"kind": kind, "num_awake": awake, "renormalise": renormalise, "balance_rate": 1e-3 * balance}
    organ = {"num_units": units, "unit_width": 4, "num_shared": 0, "bias": seed % 2 == 0, "thalamus": router}
    model = at_work({"hidden_size": 16, "num_hidden_layers": 2, "experts": organ}, seed)
    before = logits(model)
    even = kind == "softmax" and not (renormalise and not balance)
    add_units(model, more * units if even else more, seed=seed)
    assert_kept(model, before)
    split_units(model, seed=seed)
    assert_kept(model, before)
    deepen(model, layers, seed=seed)
    assert_kept(model, before)
    widen(model, share, seed=seed)
    assert_kept(model, before)


def test_stacked_layers_are_copies() -> None:
    model = at_work(SPARSE["sigmoid"])
    before = logits(model)
    deepen(model, 3, stack=True)
    layers = model.model.layers
    for one, other in ((0, 1), (2, 3), (4, 5)):
        for mine, theirs in zip(layers[one].parameters(), layers[other].parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert float((logits(model) - before).abs().max()) > 1e-3


def test_layers_that_are_named_move_along() -> None:
    model = at_work(DENSE["slots"])
    deepen(model, 2, after=[0, 1])
    config = model.config
    assert (config.working_memory.layers, config.workspace.layers) == ([2], [4])
    assert (config.exits.layers, config.fleeting.layers) == ([1], [0, 1, 4])


@pytest.mark.parametrize(
    "verb", [lambda m: add_units(m, 2), split_units, lambda m: deepen(m, 1), lambda m: widen(m, 2)]
)
def test_a_grown_model_is_a_model_like_any_other(verb: Callable[[Any], Any], tmp_path: Path) -> None:
    model = at_work(SPARSE["sigmoid"])
    verb(model)
    after = logits(model)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded), after)
    streamed, _ = load_streamed(tmp_path, 1 << 30)
    torch.testing.assert_close(logits(streamed), after, rtol=1e-4, atol=1e-4)
    said = model.generate(words(1, 4), max_new_tokens=6, do_sample=False)
    assert torch.equal(said, loaded.generate(words(1, 4), max_new_tokens=6, do_sample=False))


def test_the_same_seed_grows_the_same() -> None:
    grown = [at_work(SPARSE["sigmoid"]) for _ in range(2)]
    for chance, model in enumerate(grown):
        torch.manual_seed(chance)
        add_units(model, 2, seed=5)
        widen(model, 2, seed=6)
    for (name, mine), (_, theirs) in zip(*(model.state_dict().items() for model in grown), strict=True):
        assert torch.equal(mine, theirs), name


def test_what_a_model_is_in_stays() -> None:
    model = at_work(SPARSE["sigmoid"]).to(torch.bfloat16).train()
    for experts_ in model.experts():
        experts_.bank.requires_grad_(False)
    add_units(model, 2)
    deepen(model, 1)
    assert model.training
    assert all(weight.dtype is torch.bfloat16 for weight in model.parameters())
    assert not any(weight.requires_grad for experts_ in model.experts() for weight in experts_.bank.parameters())
    assert all(experts_.thalamus.weight.requires_grad for experts_ in model.experts())


def test_a_plain_cortex_grows_as_well() -> None:
    model = at_work(SPARSE["sigmoid"])
    plain = PlainCortex(model.config).eval()
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    before = logits(plain)
    widen(plain, 2)
    assert_kept(plain, before)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Any], Any], str]] = {
    "dense": (DENSE["dense"], lambda m: add_units(m, 2), "this model is dense"),
    "none": (SPARSE["sigmoid"], lambda m: add_units(m, 0), "cannot add 0 units"),
    "lobe": (SPARSE["sigmoid"], lambda m: add_units(m, {"c": 1}), "[Uu]nknown lobe 'c'"),
    "softmax": (SPARSE["softmax as it is"], lambda m: add_units(m, 2), "give a multiple of 6"),
    "parents": (SPARSE["sigmoid"], lambda m: add_units(m, 1, parents=[[0], [9], [0]]), "no unit 9"),
    "too few": (SPARSE["sigmoid"], lambda m: add_units(m, 2, parents=[[0]]), "expected 3 layers of 2"),
    "split": (SPARSE["sigmoid"], lambda m: split_units(m, 1), "cannot split by 1"),
    "no rows": (SPARSE["sigmoid"], split_rows, "no long-term memory"),
    "rows": (DENSE["memory"], lambda m: split_rows(m, 8), "at most 2 can be split so"),
    "layers": (DENSE["dense"], lambda m: deepen(m, 0), "cannot add 0 layers"),
    "place": (DENSE["dense"], lambda m: deepen(m, 1, after=[7]), "no layer 7"),
    "memory": (DENSE["memory"], lambda m: deepen(m, 1, after=[1]), "would not be silent"),
    "thin": (DENSE["dense"], lambda m: widen(m, 0.5), "cannot widen by 0.5"),
    "odd": (DENSE["dense"], lambda m: widen(m, 1.3), "hidden_size is 24, and 1.3 times that is 31.2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept_is_refused(case: str) -> None:
    organs, verb, said = REFUSED[case]
    model = at_work(organs)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ConfigError, match=said) as told:
        verb(model)
    assert "\n" not in str(told.value)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_packed_or_adapted_model_is_refused() -> None:
    model = PragnosiaForCausalLM(PragnosiaConfig(num_hidden_layers=1))
    model.model.layers[0].mixer.q_proj.adapter = torch.nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="packed, sparsified or wears adapters"):
        deepen(model, 1)


@pytest.mark.parametrize("organs", SPARSE)
def test_newborns_in_a_lobe_of_their_own_can_be_silenced_as_one(organs: str) -> None:
    """However much they have learned and whoever they wake for: without them the model is what it was."""
    model: Any = at_work(SPARSE[organs]).eval()
    lobes = dict(model.config.units.lobes)
    with torch.no_grad():
        before = model(words()).logits
        try:
            add_units(model, model.config.units.num_units, lobe="new")
        except ConfigError:
            pytest.skip("every unit counts in its strengths")
        torch.testing.assert_close(model(words()).logits, before, rtol=0, atol=1e-5)
        assert dict(model.config.units.lobes) == lobes | {"new": sum(lobes.values())}
        for organ in model.experts():
            born = slice(sum(lobes.values()), None)
            organ.bank.down[born].normal_()
            thalamus = organ.thalamus
            if getattr(thalamus, "balance", None) is not None:
                thalamus.balance[born] = thalamus.balance.max()
            if hasattr(thalamus, "thresholds"):
                thalamus.thresholds[:, born] = 0.1
        assert float((model(words()).logits - before).abs().max()) > 0.01
        with model.lesion("new"):
            told = model(words()).logits
    if not organs.startswith(("softmax as", "softmax bal")):
        torch.testing.assert_close(told, before, rtol=0, atol=1e-5)


def test_a_new_lobe_has_a_new_name() -> None:
    model = at_work(SPARSE["sigmoid"])
    with pytest.raises(ConfigError, match="there is a lobe 'a' already"):
        add_units(model, 2, lobe="a")
    with pytest.raises(ConfigError, match="cannot add 0 units to the new lobe 'c'"):
        add_units(model, 0, lobe="c")
