"""Stages: a run in parts, in which the model grows up; stopped and resumed anywhere it is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pragnosia.errors import ConfigError
from pragnosia.training.configuration import read_config
from pragnosia.training.events import events_of
from pragnosia.training.log import read_log
from pragnosia.training.progress import Record, Silent
from pragnosia.training.stages import default_stages
from pragnosia.training.trainer import train

Configure = Callable[..., dict[str, Any]]
MODEL = {"num_hidden_layers": 4}
MUON = {"optimiser": {"name": "muon"}, "ema": {"decay": 0.9, "every": 2}}


def stages(corner: Path) -> list[dict[str, Any]]:
    text = str(corner / "text.txt")
    return [
        {"name": "infant", "layers": 1, "sequence_length": 4, "awake": 1, "steps": 3, "data": {text: 1}},
        {"name": "child", "layers": 2, "sequence_length": 8, "plateau": {"window": 1, "gain": 0.9}},
        {"name": "adult"},
    ]


@pytest.fixture
def sources(corner: Path) -> dict[str, float]:
    other = corner / "other.txt"
    if not other.exists():
        other.write_text("".join(f"Nobody knows {a} under {b}.\n" for a in range(60) for b in ("snow", "rain")))
    return {str(corner / "text.txt"): 0.5, str(other): 0.5}


def config(configure: Configure, corner: Path, sources: dict[str, float], **more: Any) -> dict[str, Any]:
    cache = {"data": {"sources": sources, "validation_fraction": 0.1, "cache": str(corner / "two")}}
    few = {"logging": {"validation_tokens": 200}}
    return configure(**({"model": MODEL, "stages": stages(corner)} | cache | few | more))


def history(out: Path) -> list[Any]:
    keys = ("step", "loss", "gradient_norm", "validation_loss", "stage", "sequence_length", "operations", "events")
    return [[record.get(key) for key in keys] for record in read_log(out / "log.jsonl")]


def test_a_model_grows_up(configure: Configure, corner: Path, sources: dict[str, float], tmp_path: Path) -> None:
    given = config(configure, corner, sources, steps=9, checkpoint={"every": 5})
    train(given, out=tmp_path / "run", reporter=Silent())
    records = read_log(tmp_path / "run" / "log.jsonl")
    events = events_of(records)
    assert [(event.step, event.births) for event in events] == [(3, 4), (5, 8)]
    assert [event.reason.split(":")[0] for event in events] == ["infant took 3 steps", "plateau"]
    assert all(abs(event.jump or 0.0) < 1e-5 for event in events)
    assert "1 -> 2 layers, 1 -> 2 units awake, rows of 4 -> 8 tokens, another mix of data" in events[0].detail
    by_step = {record["step"]: record for record in records}
    assert [by_step[step]["sequence_length"] for step in (3, 4, 5, 6)] == [4, 8, 8, 16]
    assert [by_step[step]["units_awake"] for step in (3, 4)] == [1, 2]
    assert [len(by_step[step]["utilisation"]) for step in (3, 4, 6)] == [1, 2, 4]
    first, second = (by_step[step]["operations"] for step in (1, 2))
    assert second == 2 * first > 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000005" / "state.json").read_text())
    assert state["batches"]["mix"] == [[0.5, 0.5], 12, [12, 0]], "three steps of four rows of one text"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.num_hidden_layers == 4
    assert model.config.experts.thalamus.num_awake == 2


def test_the_adult_is_what_was_configured(
    configure: Configure, corner: Path, sources: dict[str, float], tmp_path: Path
) -> None:
    """But for its numbers it is the model of a run without stages."""
    train(config(configure, corner, sources), out=tmp_path / "grown", reporter=Silent())
    train(config(configure, corner, sources, stages=None, steps=1), out=tmp_path / "plain", reporter=Silent())
    grown, plain = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("grown", "plain"))
    assert grown.config.to_dict() | {"_name_or_path": ""} == plain.config.to_dict() | {"_name_or_path": ""}
    assert {n: t.shape for n, t in grown.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}


@pytest.mark.parametrize(("change", "stops"), [({}, (2, 3, 7)), (MUON, (4,))], ids=["adamw", "muon-ema"])
def test_a_run_stopped_at_any_stage_goes_on_as_if_it_had_not(
    configure: Configure,
    corner: Path,
    sources: dict[str, float],
    tmp_path: Path,
    change: dict[str, Any],
    stops: tuple[int, ...],
) -> None:
    given = config(configure, corner, sources, steps=8, checkpoint={"every": 100}, **change)
    train(given, out=tmp_path / "whole", reporter=Silent())
    one = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")

    for stop in stops:  # 3 is the step between two stages

        class Impatient(Silent):  # type: ignore[misc]
            def advance(self, step: int, record: Record | None, stop: int = stop) -> None:
                if step == stop:
                    raise KeyboardInterrupt

        broken = given | {"checkpoint": {"every": stop}}
        with pytest.raises(KeyboardInterrupt):
            train(broken, out=tmp_path / f"broken-{stop}", reporter=Impatient())
        train(given, out=tmp_path / f"broken-{stop}", resume=True, reporter=Silent())
        assert history(tmp_path / f"broken-{stop}") == history(tmp_path / "whole")
        other = AutoModelForCausalLM.from_pretrained(tmp_path / f"broken-{stop}")
        for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs), name


def test_rows_grow_longer_without_any_growth(configure: Configure, tmp_path: Path) -> None:
    """Sequence-length warm-up by stages alone: a dense model of the same depth throughout."""
    parts = [{"name": "short", "sequence_length": 4, "share": 0.25}, {"name": "long"}]
    dense = {"experts": None, "feed_forward": {"width": 16}}
    train(configure(stages=parts, model=dense), out=tmp_path / "run", reporter=Silent())
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["sequence_length"] for record in records] == [4] * 3 + [16] * 9
    (event,) = events_of(records)
    assert event.detail == "long: rows of 4 -> 16 tokens"
    assert event.parameters[0] == event.parameters[1]


def test_five_stages_by_default() -> None:
    made = default_stages(24, 256)
    assert [stage.layers for stage in made] == [2, 4, 8, 12, None]
    assert [stage.sequence_length for stage in made] == [64, 128, 256, 256, None]
    assert [stage.name for stage in made] == ["newborn", "infant", "child", "adolescent", "adult"]
    assert [stage.layers for stage in default_stages(8, 96)] == [2, 4, None]
    assert [stage.sequence_length for stage in default_stages(8, 36)] == [18, 18, None], "whole rows, not too short"


def test_the_default_runs(configure: Configure, tmp_path: Path) -> None:
    train(configure(stages="default", model=MODEL, steps=14), out=tmp_path / "run", reporter=Silent())
    assert [event.step for event in events_of(read_log(tmp_path / "run" / "log.jsonl"))] == [1]


NAMED = {"name": "adult"}
WRONG: dict[str, tuple[Any, str]] = {
    "shrinks": ([{"name": "a", "layers": 3, "steps": 2}, {"name": "b", "layers": 2, "steps": 2}, NAMED],
                "the stages shrink: 'a' has 3 layers, 'b' after it 2"),
    "from all": ([{"name": "a", "steps": 2}, {"name": "b", "layers": 2, "steps": 2}, NAMED],
                 "the stages shrink: 'a' has all layers"),
    "rows": ([{"name": "a", "sequence_length": 8, "steps": 2}, {"name": "b", "sequence_length": 4, "steps": 1}, NAMED],
             "'a' has 8 tokens in a row"),
    "cut": ([{"name": "a", "sequence_length": 5, "steps": 2}, NAMED], "which does not divide batch.sequence_length 16"),
    "endless": ([{"name": "a", "layers": 1}, NAMED], "nothing ends stage 'a'"),
    "ends": ([{"name": "a", "steps": 3}], "lasts as long as the run"),
    "too long": ([{"name": "a", "steps": 12}, NAMED], "take 12 steps, the run has 12"),
    "twice": ([{"name": "adult", "steps": 1}, NAMED], "two stages are named 'adult'"),
    "too deep": ([{"name": "a", "layers": 9, "steps": 1}, NAMED], "has 9 layers, the model has 4"),
    "not adult": ([{"name": "a", "layers": 1, "steps": 1}, {"name": "b", "layers": 2}], "leave its layers out"),
    "awake": ([{"name": "a", "awake": 5, "steps": 1}, NAMED], "wakes 5 units a token, the model has 4"),
    "source": ([{"name": "a", "data": {"x.txt": 1}, "steps": 1}, NAMED], "data.sources have no shares"),
    "unknown key": ([{"name": "a", "layer": 1, "steps": 1}, NAMED], "Did you mean 'stages.layers'"),
    "none": ([], "stages is empty"),
    "zero": ([{"name": "a", "layers": 0, "steps": 1}, NAMED], "layers of stage 'a' is 0"),
    "both": ([{"name": "a", "share": 0.1, "steps": 1}, NAMED], "has steps and share"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_list_that_cannot_be_is_refused_in_one_line(configure: Configure, tmp_path: Path, wrong: str) -> None:
    parts, told = WRONG[wrong]
    with pytest.raises(ConfigError, match=r"stage|wakes") as error:
        train(configure(stages=parts, model=MODEL), out=tmp_path / "run", reporter=Silent())
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"num_hidden_layers": 2, "feed_forwards": ["experts", "dense"], "feed_forward": {"width": 8}}},
         "feed_forwards names experts, dense"),
        ({"model": {"num_hidden_layers": 2, "exits": {"layers": [1]}}}, "exits.layers names layers by number"),
        ({"schedule": {"first_length": 4, "length_warmup_steps": 4}}, "both say how long rows are"),
        ({"model": {"experts": None, "feed_forward": {"width": 8}},
          "stages": [{"name": "a", "awake": 1, "steps": 1}, NAMED]}, "the model is dense"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_grow_up_is_refused(
    configure: Configure, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    parts = [{"name": "a", "layers": 1, "steps": 2}, NAMED]
    with pytest.raises(ConfigError, match=told):
        train(configure(**({"stages": parts} | changes)), out=tmp_path / "run", reporter=Silent())


def test_a_stage_of_another_run_is_not_resumed(configure: Configure, tmp_path: Path) -> None:
    parts = [{"name": "a", "layers": 1, "steps": 2}, NAMED]
    train(configure(stages=parts, steps=5), out=tmp_path / "run", reporter=Silent())
    with pytest.raises(ConfigError, match="stages changed since the run was started"):
        train(configure(steps=5), out=tmp_path / "run", resume=True, reporter=Silent())


def test_stages_are_read_from_yaml_as_written(configure: Configure) -> None:
    given = configure(stages=[{"name": "a", "layers": 1, "share": 0.5}, NAMED])
    assert read_config(read_config(given).write()) == read_config(given)
