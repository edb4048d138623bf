"""A run that grows where it is short: with a reason, within its budgets, and resumed exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pragnosia.errors import BudgetError, ConfigError
from pragnosia.learning import Lesson
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.thalamus import Routing
from pragnosia.training.events import events_of
from pragnosia.training.log import read_log
from pragnosia.training.progress import Record, Silent
from pragnosia.training.trainer import train
from pragnosia.training.triggers import PlasticityConfig, Triggers

Configure = Callable[..., dict[str, Any]]
ALWAYS = {"window": 1, "gain": 0.99}
SOON = {"every": 2, "rest": 1}
FEW = {"validation_tokens": 200, "validate_every": 100}


def small(**more: Any) -> PragnosiaConfig:
    """Two layers of four units."""
    experts = {"num_units": 4, "unit_width": 8, "thalamus": {"num_awake": 2, "kind": "sigmoid", "balance_rate": 1e-3}}
    attention = {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    given = {"experts": experts, "attention": attention, "num_hidden_layers": 2} | more
    return PragnosiaConfig(vocab_size=32, hidden_size=16, **given)


def lesson(*loads: list[int]) -> Lesson:
    """A lesson of sparse layers whose units woke so often."""
    routings = []
    for load in loads:
        units = torch.tensor([unit for unit, times in enumerate(load) for _ in range(times)])[:, None]
        routings.append(Routing(units, torch.ones(len(units), 1), torch.rand(len(units), len(load))))
    return Lesson(torch.tensor(1.0), tuple(routings))


def looked(config: PlasticityConfig, loads: list[list[list[int]]], model: Any, loss: float = 1.0) -> list[Any]:
    """What is proposed after each step of such loads."""
    triggers = Triggers(config, seed=0)
    found = []
    for step, load in enumerate(loads, start=1):
        triggers.learned(loss, [lesson(*load)])
        found += triggers.look(step, model)
    return found


def test_a_plateau_adds_layers_where_gradients_are_largest(configure: Configure, tmp_path: Path) -> None:
    plasticity = {"max_parameters": 1e6, "plateau": ALWAYS, "grow": "layers", **SOON}
    train(configure(steps=8, plasticity=plasticity, logging=FEW), out=tmp_path / "run", reporter=Silent())
    records = read_log(tmp_path / "run" / "log.jsonl")
    events = events_of(records)
    assert [event.step for event in events] == [4], "two losses after the rest, at the next look; none at the end"
    assert events[0].what == "deepen"
    assert events[0].detail == "2 -> 3 layers"
    assert events[0].reason.startswith("plateau: the loss fell by")
    assert "has the largest gradient per parameter" in events[0].reason
    assert events[0].births == 4
    assert abs(events[0].jump or 0.0) < 1e-5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.num_hidden_layers == 3
    assert records[-1]["parameters"] == events[0].parameters[1]


def test_the_budget_of_parameters_is_never_exceeded_and_a_refusal_told_once(
    configure: Configure, tmp_path: Path
) -> None:
    given = configure(steps=20, plasticity={"max_parameters": 1e6, "plateau": ALWAYS, "grow": "units", **SOON})
    given["plasticity"]["max_parameters"] = most = 11_300
    train(given | {"logging": given["logging"] | FEW}, out=tmp_path / "run", reporter=Silent())
    events = events_of(read_log(tmp_path / "run" / "log.jsonl"))
    whats = [event.what for event in events]
    assert whats[-1] == "refused"
    assert whats.count("refused") == 1
    assert "add_units" in whats, "it grew as far as it could"
    assert "the budget is 11.3 k" in events[-1].detail
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    size = sum(weight.numel() for weight in model.parameters())
    assert size == events[-2].parameters[1] <= most
    before, after = events[0].parameters
    assert size + (after - before) > most, "one more would have been too many"


def test_the_budget_of_operations_bounds_growth(configure: Configure, tmp_path: Path) -> None:
    plasticity = {"max_parameters": 1e9, "plateau": ALWAYS, **SOON}
    given = configure(steps=10, plasticity=plasticity, logging=FEW)
    train(given, out=tmp_path / "free", reporter=Silent())
    free = read_log(tmp_path / "free" / "log.jsonl")[-1]["operations"]
    shape = PragnosiaConfig.from_pretrained(tmp_path / "free")
    assert free < 3 * account(shape, context=16).operations_per_token * 64 * 10, "it was smaller at first"
    given["plasticity"]["max_operations"] = most = 0.97 * free
    train(given, out=tmp_path / "bound", reporter=Silent())
    records = read_log(tmp_path / "bound" / "log.jsonl")
    assert records[-1]["operations"] <= most
    assert any("operations by the end of the run" in event.detail for event in events_of(records))
    with pytest.raises(BudgetError, match="operations by the end of the run, the budget is"):
        train(given | {"steps": 11}, out=tmp_path / "bound", resume=True, reporter=Silent())


@pytest.mark.parametrize("stop", [3, 6])
def test_a_run_that_grew_goes_on_as_if_it_had_not_stopped(configure: Configure, tmp_path: Path, stop: int) -> None:
    plasticity = {"max_parameters": 14_000, "plateau": ALWAYS, "grow": "units", "overload": 1.5, "floor": 0.2, **SOON}
    plasticity["gates"] = {"pressure": 0.01, "crowded": 0.3}
    given = configure(steps=9, plasticity=plasticity, logging=FEW, checkpoint={"every": stop})
    train(given, out=tmp_path / "whole", reporter=Silent())

    class Impatient(Silent):  # type: ignore[misc]
        def advance(self, step: int, record: Record | None) -> None:
            if step == stop + 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(given, out=tmp_path / "broken", reporter=Impatient())
    train(given, out=tmp_path / "broken", resume=True, reporter=Silent())
    keys = ("step", "loss", "gradient_norm", "parameters", "operations", "events")
    one, other = (
        [[record.get(key) for key in keys] for record in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "broken")
    )
    assert one == other
    assert any(row[-1] for row in one), "it did grow"


def test_an_overloaded_unit_gets_newborns_that_begin_as_its_like() -> None:
    model = PragnosiaForCausalLM(small())
    config = PlasticityConfig(max_parameters=1e9, overload=2.0, units=3, every=2, rest=0)
    loads = [[[1, 1, 1, 9], [3, 3, 3, 3]]] * 2
    (proposal,) = looked(config, loads, model)
    assert proposal.what == "add_units"
    assert "unit 3 of layer 0 did 3 times an even share" in proposal.reason
    assert proposal.detail == "4 -> 7 units a layer"
    assert proposal.births == 6
    before = [layer.bank.down.detach().clone() for layer in model.experts()]
    proposal.verb(model)
    assert model.config.to_dict() == proposal.shape.to_dict()
    after = [layer.bank.down.detach() for layer in model.experts()]
    assert torch.equal(after[0][4], before[0][3]), "the busiest is the first parent"
    assert after[1].shape[0] == 7


def test_newborns_stay_in_the_lobe_of_the_one_that_did_too_much() -> None:
    experts = {"num_units": 4, "unit_width": 8, "lobes": {"a": 2, "b": 2},
               "thalamus": {"num_awake": 1, "kind": "sigmoid", "balance_rate": 1e-3}}  # fmt: skip
    model = PragnosiaForCausalLM(small(experts=experts))
    config = PlasticityConfig(max_parameters=1e9, overload=2.0, units=1, every=1, rest=0)
    (proposal,) = looked(config, [[[9, 1, 1, 1], [1, 1, 9, 9]]], model)
    proposal.verb(model)
    assert dict(model.config.experts.lobes) == {"a": 3, "b": 2}


def test_units_that_stay_idle_go_and_never_more_than_can_be_spared() -> None:
    model = PragnosiaForCausalLM(small())
    config = PlasticityConfig(max_parameters=1e9, floor=0.1, patience=3, every=1, rest=0)
    loads = [[[9, 0, 0, 0], [9, 9, 0, 9]]] * 3
    (proposal,) = looked(config, loads, model)
    assert proposal.what == "remove_units"
    assert proposal.reason == "floor: idle for 3 looks, below 0.1 of an even share"
    assert proposal.detail == "4 -> 3 units a layer", "every layer loses as many"
    assert proposal.deaths == 2
    proposal.verb(model)
    assert model.config.experts.num_units == 3
    assert model.config.to_dict() == proposal.shape.to_dict()
    restless = [loads[0], [[9, 9, 9, 9]] * 2, *loads[:2]]
    assert looked(config, restless, PragnosiaForCausalLM(small())) == [], "who worked in between is not idle"
    hard = [[[9, 0, 0, 0], [9, 0, 0, 0]]] * 3
    (proposal,) = looked(config, hard, PragnosiaForCausalLM(small()))
    assert proposal.detail == "4 -> 2 units a layer", "two wake for a token"


def test_nothing_is_looked_at_while_a_change_is_young() -> None:
    model = PragnosiaForCausalLM(small())
    config = PlasticityConfig(max_parameters=1e9, overload=2.0, every=1, rest=3)
    loads = [[[1, 1, 1, 9], [3, 3, 3, 3]]]
    assert looked(config, loads * 3, model) == []
    assert len(looked(config, loads * 4, model)) == 1


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_parameters": 100, "overload": 2}, BudgetError, "plasticity.max_parameters is 100, the model has"),
    ({"max_parameters": 1e9, "max_operations": 10, "overload": 2}, BudgetError, "plasticity.max_operations is 10, the"),
    ({"max_parameters": 1e9}, ConfigError, "nothing to act upon"),
    ({"max_parameters": 1e9, "overload": 1}, ConfigError, "plasticity.overload is 1"),
    ({"max_parameters": 1e9, "floor": 2}, ConfigError, "plasticity.floor is 2"),
    ({"max_parameters": 1e9, "overload": 2, "every": 0}, ConfigError, "plasticity.every is 0"),
    ({"max_parameters": 1e9, "overlod": 2}, ConfigError, "Did you mean 'plasticity.overload'"),
    ({"overload": 2}, ConfigError, "plasticity.max_parameters"),
]


@pytest.mark.parametrize(("plasticity", "kind", "told"), WRONG)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_made(
    configure: Configure, tmp_path: Path, plasticity: dict[str, Any], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind) as error:
        train(configure(plasticity=plasticity), out=tmp_path / "run", reporter=Silent())
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_dense_model_has_no_units_that_could_be_too_few(configure: Configure, tmp_path: Path) -> None:
    dense = {"experts": None, "feed_forward": {"width": 8}}
    with pytest.raises(ConfigError, match="this model is dense"):
        train(configure(model=dense, plasticity={"max_parameters": 1e9, "overload": 2}), out=tmp_path / "run")


def test_units_whose_gates_close_go_and_open_gates_call_for_more(configure: Configure, tmp_path: Path) -> None:
    for name, gates, what in (
        ("closing", {"pressure": 0.4, "crowded": 1.0}, "remove_units"),
        ("opening", {"pressure": 1e-6, "loudness": 1.0, "crowded": 0.25}, "add_units"),
    ):
        plasticity = {"max_parameters": 1e6, "gates": gates, **SOON}
        given = configure(steps=9, plasticity=plasticity, logging=FEW)
        train(given, out=tmp_path / name, reporter=Silent())
        events = events_of(read_log(tmp_path / name / "log.jsonl"))
        assert {event.what for event in events} == {what}, name
        assert all(event.reason.startswith("gates: ") for event in events)
        assert max(abs(event.jump or 0.0) for event in events) < 5e-3, "the closed said nothing, the newborn sleep"


def test_gates_ask_for_units_and_for_elders_that_learn(configure: Configure, tmp_path: Path) -> None:
    given = configure(plasticity={"max_parameters": 1e6, "gates": {}})
    with pytest.raises(ConfigError, match=r"optimiser\.elders rest; leave one of them out"):
        train(given | {"optimiser": {"elders": 0.5}}, out=tmp_path / "run", reporter=Silent())
    dense = {key: value for key, value in given["model"].items() if key != "experts"} | {"feed_forward": {"width": 8}}
    with pytest.raises(ConfigError, match="this model is dense"):
        train(given | {"model": dense}, out=tmp_path / "run", reporter=Silent())
