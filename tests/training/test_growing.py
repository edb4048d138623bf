"""Growth in the middle of a run: moments, averages, rates and checkpoints go along."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from organs_at_work import DENSE, SPARSE, at_work, words
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from pragnosia.inference.loading import load_model
from pragnosia.learning import learning_rule
from pragnosia.plasticity.growth import add_units, deepen, split_rows, split_units, widen
from pragnosia.training.average import Average, AverageConfig
from pragnosia.training.growing import follow, settle
from pragnosia.training.log import read_log
from pragnosia.training.optimisers import OptimiserConfig, Optimisers, embedded_in
from pragnosia.training.progress import Silent
from pragnosia.training.trainer import Trainer, train

VERBS: dict[str, Callable[[Any], Any]] = {
    "add": lambda model: add_units(model, 2),
    "split": split_units,
    "deepen": lambda model: deepen(model, 2),
    "widen": lambda model: widen(model, 1.5),
}


class Run:
    """What a run consists of, without its data."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.rule = model.train(), learning_rule("backprop")
        learners = list(self.rule.changes(model))
        config = OptimiserConfig(learning_rate=1e-2, **options)
        self.optimisers = Optimisers(learners, embedded_in(model), config)
        self.average = Average(learners, AverageConfig(decay=0.9, every=1))
        self.done = 0

    def step(self) -> float:
        self.optimisers.zero()
        lesson = self.rule.learn(self.model, words(4), 1.0)
        self.optimisers.step(1.0)
        self.rule.settle(self.model, [lesson])
        settle(self.model, self.optimisers)
        self.done += 1
        self.average.update(self.done)
        return float(lesson.loss)

    def grow(self, verb: Callable[[Any], Any]) -> Any:
        change = verb(self.model)
        follow(change, self.model, self.rule, self.optimisers, self.average)
        return change


@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit", "muon"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_run_goes_on_and_learns(verb: str, optimiser: str) -> None:
    run = Run(at_work(SPARSE["sigmoid"]), name=optimiser)
    for _ in range(5):
        run.step()
    with torch.no_grad():
        before = float(run.model(words(4), labels=words(4)).loss)
    run.grow(VERBS[verb])
    with torch.no_grad():
        assert float(run.model(words(4), labels=words(4)).loss) == pytest.approx(before, abs=1e-5)
    losses = [run.step() for _ in range(8)]
    assert losses[0] == pytest.approx(before, rel=1e-3)
    assert losses[-1] < before
    assert max(losses) < before * 1.02, "the rest is not thrown off its way"
    held = {id(weight) for part in run.optimisers.parts for group in part.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in run.model.parameters()}
    assert set(run.average.means) == {name for name, _ in run.model.named_parameters()}
    for name, weight in run.model.named_parameters():
        assert run.average.means[name].shape == weight.shape


def test_moments_follow_and_newborns_have_none() -> None:
    run = Run(at_work(SPARSE["sigmoid"]))
    for _ in range(3):
        run.step()
    name = "model.layers.0.feed_forward.bank.up"
    before = run.optimisers.state()[f"{name}/exp_avg"].clone()
    run.grow(lambda model: add_units(model, {"a": 1, "b": 1}))
    after = run.optimisers.state()[f"{name}/exp_avg"]
    assert torch.equal(after[[0, 1, 3, 4, 5, 6]], before)
    assert not after[[2, 7]].any()
    assert run.optimisers.newborns.ages[name][0].lt(200).nonzero().flatten().tolist() == [2, 7]


def test_new_layers_have_moments_of_their_own() -> None:
    run = Run(at_work(DENSE["dense"]))
    for _ in range(3):
        run.step()
    before = run.optimisers.state()
    run.grow(lambda model: deepen(model, 1, after=[1]))
    after = run.optimisers.state()
    up = "feed_forward.up.weight"
    assert f"model.layers.2.{up}/exp_avg" not in after
    for old, new in ((0, 0), (1, 1), (2, 3)):
        assert torch.equal(after[f"model.layers.{new}.{up}/exp_avg"], before[f"model.layers.{old}.{up}/exp_avg"])
    run.step()
    assert int(run.optimisers.state()[f"model.layers.2.{up}/step"]) == 1


def test_newborns_learn_slowly_at_first() -> None:
    steps = []
    for newborn_steps in (0, 4):
        run = Run(at_work(DENSE["dense"]), newborn_steps=newborn_steps)
        run.step()
        run.grow(lambda model: deepen(model, 1, after=[2]))
        moved = []
        for _ in range(6):
            before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
            run.step()
            moved.append(
                {name: float((w.detach() - before[name]).abs().mean()) for name, w in run.model.named_parameters()}
            )
        steps.append(moved)
        assert not run.optimisers.newborns.ages
    plain, slow = steps
    young, old = "model.layers.3.feed_forward.down.weight", "model.layers.0.feed_forward.down.weight"
    assert slow[0][young] == pytest.approx(plain[0][young] / 4, rel=1e-4)
    assert slow[0][old] == pytest.approx(plain[0][old], rel=1e-4)
    assert slow[1][young] < 0.7 * plain[1][young]
    assert slow[5][young] > 0.7 * plain[5][young]


def test_averages_are_the_averages_of_what_was() -> None:
    """An average that has gone another way than the weights stays what it was, as a model, through every verb."""
    run = Run(at_work(SPARSE["sigmoid"]))
    for _ in range(4):
        run.step()
    for verb in VERBS.values():
        with run.average.in_place(), torch.no_grad():
            before = run.model.eval()(words()).logits
        run.grow(verb)
        with run.average.in_place(), torch.no_grad():
            after = run.model.eval()(words()).logits
        torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
        run.model.train()
        run.step()


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_grew_resumes_exactly(verb: str) -> None:
    run = Run(at_work(SPARSE["sigmoid"]))
    for _ in range(3):
        run.step()
    run.grow(VERBS[verb])
    run.step()
    saved = {name: value.clone() for name, value in run.optimisers.state().items()}
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    shape = type(run.model.config).from_dict(run.model.config.to_dict())
    on = [run.step() for _ in range(3)]

    again = Run(type(run.model)(shape))
    again.model.load_state_dict(weights)
    again.optimisers.load_state(saved)
    assert [again.step() for _ in range(3)] == on
    for (name, mine), (_, theirs) in zip(again.model.named_parameters(), run.model.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("organs", ["sigmoid", "columns", "threshold"])
def test_newborn_units_wake(organs: str) -> None:
    run = Run(at_work(SPARSE[organs]), newborn_steps=60)
    for _ in range(2):
        run.step()
    old = run.model.config.units.num_units
    run.grow(lambda model: add_units(model, dict(model.config.units.lobes)))
    born = []
    first = 0
    for size in run.model.config.units.lobes.values():
        born += range(first + size // 2, first + size)
        first += size
    assert first == 2 * old

    def woken() -> int:
        with torch.no_grad():
            routings = run.model(words(4)).routings
        return sum(int(torch.isin(routing.units, torch.tensor(born)).sum()) for routing in routings)

    assert woken() == 0
    for _ in range(90):
        run.step()
    assert woken() > 0


def test_rows_of_memory_follow() -> None:
    run = Run(at_work(DENSE["memory"]))
    for _ in range(3):
        run.step()
    name = "model.hippocampus.rows"
    before = {moment: run.optimisers.state()[f"{name}/{moment}"] for moment in ("first", "second", "recalled")}
    run.grow(split_rows)
    after = run.optimisers.state()
    for moment, value in before.items():
        twins = after[f"{name}/{moment}"].view(16, 2, 16, 2, -1)
        assert torch.equal(twins[:, 0, :, 0].flatten(), value.flatten())
        assert not twins[:, 1].any()
    run.step()


def test_growth_twice_remembers_who_is_how_old() -> None:
    run = Run(at_work(SPARSE["sigmoid"]))
    run.grow(lambda model: add_units(model, {"b": 1}))
    for _ in range(3):
        run.step()
    run.grow(lambda model: add_units(model, {"a": 1}))
    ages = run.optimisers.newborns.ages["model.layers.1.feed_forward.bank.down"][0]
    assert ages[[2, 7]].tolist() == [0, 3]
    assert (ages[[0, 1, 3, 4, 5, 6]] > 1000).all()


def test_a_whole_run_grows_and_is_resumed_exactly(
    configure: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows behind step 3, is saved at step 5, and goes on from there as the run that was not interrupted."""
    plain_step = Trainer._step

    def step(self: Trainer) -> None:
        plain_step(self)
        if self.course.step == 3:
            for verb in (lambda model: add_units(model, 2), lambda model: deepen(model, 1)):
                follow(verb(self.model), self.model, self.rule, self.optimisers, self.average)

    monkeypatch.setattr(Trainer, "_step", step)
    losses = {}
    for name, stops in (("whole", [8]), ("cut", [5, 8])):
        for resume, steps in enumerate(stops):
            config = configure(steps=steps, ema={"every": 1}, schedule={"name": "constant"}, checkpoint={"every": 5})
            train(config, out=tmp_path / name, reporter=Silent(), resume=bool(resume))
        losses[name] = [record["loss"] for record in read_log(tmp_path / name / "log.jsonl")]
    assert losses["cut"] == losses["whole"]
    assert len(losses["whole"]) == 8
    grown = load_model(tmp_path / "whole")
    assert (grown.config.experts.num_units, grown.config.num_hidden_layers) == (6, 3)


@pytest.mark.parametrize("newborn_steps", [4, 9])
def test_newborn_units_wake_while_newborns_learn_slowly(newborn_steps: int) -> None:
    run = Run(at_work(SPARSE["sigmoid"]), newborn_steps=newborn_steps)
    run.step()
    run.grow(lambda model: add_units(model, 2))
    thalamus = next(run.model.experts()).thalamus
    young = run.optimisers.newborns.ages["model.layers.0.feed_forward.thalamus.weight"][0] == 0
    depths = []
    for _ in range(newborn_steps):
        depths.append(float(thalamus.balance[~young].min() - thalamus.balance[young].max()))
        run.step()
    assert depths[0] > 0.9
    assert depths[-1] < 10 ** (-2.9 * (newborn_steps - 1) / newborn_steps), "nearly awake"
    assert all(now < before for before, now in itertools.pairwise(depths))


def _one_of_two(rank: int, folder: str) -> None:
    """A process of a data-parallel run: its own rows, a growth in the middle, and what it holds at the end."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    run = Run(at_work(SPARSE["sigmoid as it is"]))
    wrapped = DistributedDataParallel(run.model)
    for step in range(6):
        if step == 3:
            torch.manual_seed(rank)  # what else was drawn there must not matter
            for verb in VERBS.values():
                run.grow(verb)
            wrapped = DistributedDataParallel(run.model)
        run.optimisers.zero()
        for part in words(4)[2 * rank : 2 * rank + 2]:  # accumulated, one row at a time
            (wrapped(input_ids=part[None], labels=part[None], use_cache=False).loss / 2).backward()
        run.optimisers.step(1.0)
        settle(run.model, run.optimisers)
    save_file(
        {name: w.detach().contiguous() for name, w in run.model.named_parameters()}, f"{folder}/{rank}.safetensors"
    )
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_grow_alike_stay_alike(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    grown = at_work(SPARSE["sigmoid as it is"])
    for verb in VERBS.values():
        verb(grown)
    assert {name: w.shape for name, w in grown.named_parameters()} == {name: w.shape for name, w in one.items()}
