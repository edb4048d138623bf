"""`optimiser.elders`: what was there before growth learns less than newborns, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from organs_at_work import DENSE, SPARSE, at_work, words

from pragnosia.errors import ConfigError
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.learning import learning_rule
from pragnosia.plasticity.growth import add_units, deepen, split_rows, widen
from pragnosia.training.growing import asleep, awaken, follow, resting, settle
from pragnosia.training.log import read_log
from pragnosia.training.optimisers import OptimiserConfig, Optimisers, embedded_in
from pragnosia.training.progress import Silent
from pragnosia.training.snapshot import save_model
from pragnosia.training.trainer import train


class Run:
    """A run without its data."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.rule = model.train(), learning_rule("backprop")
        config = OptimiserConfig(learning_rate=1e-2, **options)
        self.optimisers = Optimisers(self.rule.changes(model), embedded_in(model), config)
        awaken(model, self.optimisers)

    def step(self) -> None:
        self.optimisers.zero()
        lesson = self.rule.learn(self.model, words(4), 1.0)
        self.optimisers.step(1.0)
        rested = resting(self.model, self.optimisers)
        self.rule.settle(self.model, [lesson])
        settle(self.model, self.optimisers, rested)

    def grow(self, verb: Callable[[Any], Any]) -> Any:
        change = verb(self.model)
        follow(change, self.model, self.rule, self.optimisers)
        return change


def held(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("organs", ["sigmoid", "threshold"])
def test_of_frozen_elders_nothing_moves_and_newborns_learn(organs: str) -> None:
    run = Run(at_work(SPARSE[organs]), elders=0.0, newborn_steps=4)
    for _ in range(3):
        run.step()
    lobes = dict(run.model.config.units.lobes)
    run.grow(lambda model: add_units(model, dict.fromkeys(lobes, 1)))
    old, first = [], 0
    for size in lobes.values():
        old += range(first, first + size)
        first += size + 1
    born = [unit for unit in range(first) if unit not in old]
    before = held(run.model)
    for _ in range(12):
        run.step()
    for name, now in held(run.model).items():
        was = before[name]
        dim = 1 if name.endswith("thresholds") else 0
        if ".bank." in name or name.endswith(("thalamus.weight", "thalamus.bias", "balance", "thresholds")):
            assert torch.equal(now.index_select(dim, torch.tensor(old)), was.index_select(dim, torch.tensor(old))), name
            moved = not torch.equal(
                now.index_select(dim, torch.tensor(born)), was.index_select(dim, torch.tensor(born))
            )
            assert moved or name.endswith("bias"), name
        else:
            assert torch.equal(now, was), name
    asking = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert asking
    assert all("feed_forward.bank." in name or ".thalamus." in name for name in asking), "what rests costs no gradient"


@pytest.mark.parametrize("elders", [0.0, 0.25])
def test_elders_go_their_part_of_the_way(elders: float) -> None:
    """Beside the same step at full rate: the step of one who is not newborn is so much shorter."""
    moved = []
    for share in (1.0, elders):
        run = Run(at_work(DENSE["memory"]), elders=share, newborn_steps=0, weight_decay=0.0, clip=None)
        run.step()
        run.grow(lambda model: deepen(model, 1, after=[2]))
        before = held(run.model)
        run.step()
        moved.append({name: now - before[name] for name, now in held(run.model).items() if now.is_floating_point()})
    full, less = moved
    for name, way in full.items():
        part = 1.0 if name.startswith("model.layers.3.") else elders
        torch.testing.assert_close(less[name], part * way, rtol=1e-3, atol=1e-7, msg=name)
    assert any(bool(way.any()) for name, way in full.items() if name.startswith("model.layers.3."))
    assert bool(full["model.hippocampus.rows"].any())


@pytest.mark.parametrize(
    ("organs", "verb"),
    [
        (SPARSE["sigmoid"], lambda model: widen(model, 1.5)),
        (DENSE["memory"], split_rows),
    ],
)
def test_a_number_is_newborn_if_any_of_its_places_is(organs: dict[str, Any], verb: Any) -> None:
    run = Run(at_work(organs), elders=0.0, newborn_steps=0)
    run.step()
    change = run.grow(verb)
    before = held(run.model)
    run.step()
    learned = False
    for name, weight in run.model.named_parameters():
        origin = change.origins.get(name)
        born = torch.zeros(weight.shape, dtype=torch.bool)
        for axis in () if origin is None else origin.axes:
            born |= (axis.source < 0).view([-1 if dim == axis.dim else 1 for dim in range(weight.dim())])
        way = weight.detach() - before[name]
        assert not way[~born].any(), name
        learned |= bool(way[born].any())
    assert learned


def test_a_second_growth_takes_in_what_rested() -> None:
    run = Run(at_work(SPARSE["sigmoid"]), elders=0.0)
    run.grow(lambda model: deepen(model, 1, after=[2]))
    run.step()
    assert not dict(run.model.named_parameters())["model.layers.0.feed_forward.bank.up"].requires_grad
    run.grow(lambda model: add_units(model, {"a": 1}))
    before = held(run.model)
    for _ in range(3):
        run.step()
    name = "model.layers.3.feed_forward.bank.up"
    assert not torch.equal(run.model.state_dict()[name], before[name]), "the first newborns go on"
    name = "model.layers.0.feed_forward.bank.up"
    assert dict(run.model.named_parameters())[name].requires_grad
    kept = [0, 1, 3, 4, 5, 6]
    assert torch.equal(run.model.state_dict()[name][kept], before[name][kept])
    assert not dict(run.model.named_parameters())["model.layers.0.mixer_norm.weight"].requires_grad


def test_what_sleeps_since_it_grew_is_found() -> None:
    model: Any = at_work(SPARSE["sigmoid"])
    assert asleep(model) == {}
    add_units(model, {"b": 1})
    deepen(model, 1, after=[0])
    found = asleep(model)
    assert found["model.layers.0.feed_forward.bank.down"].nonzero().flatten().tolist() == [6]
    assert found["model.layers.0.feed_forward.thalamus.weight"].nonzero().flatten().tolist() == [6]
    assert "model.layers.0.mixer_norm.weight" not in found
    assert all(bool(found[name].all()) for name in found if name.startswith("model.layers.1."))
    assert any(name.startswith("model.layers.1.mixer") for name in found)


def test_a_run_that_starts_from_a_grown_model(configure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """What was there stays to the bit, through a stop too; a model that has not grown is refused."""
    first = configure(steps=3)
    train(first, out=tmp_path / "first", reporter=Silent())
    model: Any = load_model(tmp_path / "first")
    tokenizer = load_tokenizer(tmp_path / "first", int(model.config.vocab_size), model.config.tokenizer_digest)
    add_units(model, 2)
    (tmp_path / "grown").mkdir()
    save_model(model, tokenizer, tmp_path / "grown")
    settings = {key: value for key, value in first.items() if key not in ("model", "tokenizer")}
    settings |= {
        "start": str(tmp_path / "grown"),
        "steps": 8,
        "optimiser": {"learning_rate": 0.01, "elders": 0.0, "newborn_steps": 3},
        "schedule": {"name": "constant"},
        "checkpoint": {"every": 4},
    }
    train(settings, out=tmp_path / "whole", reporter=Silent())
    train(settings | {"steps": 4}, out=tmp_path / "cut", reporter=Silent())
    train(settings, out=tmp_path / "cut", reporter=Silent(), resume=True)
    losses = [[record["loss"] for record in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    now = load_model(tmp_path / "whole").state_dict()
    old = [0, 1, 2, 3]
    for name, was in load_model(tmp_path / "grown").state_dict().items():
        of_units = ".bank." in name or ".thalamus." in name
        assert torch.equal(now[name][old] if of_units else now[name], was[old] if of_units else was), name
    assert not torch.equal(
        now["model.layers.0.feed_forward.bank.up"][4:],
        load_model(tmp_path / "grown").state_dict()["model.layers.0.feed_forward.bank.up"][4:],
    )
    with pytest.raises(ConfigError, match=r"elders is 0, and nothing in this run is newborn"):
        train(settings | {"start": str(tmp_path / "first")}, out=tmp_path / "none", reporter=Silent())
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match=r"elders is 2.0; it must lie between"):
        train(settings | {"optimiser": {"elders": 2}}, out=tmp_path / "none", reporter=Silent())
