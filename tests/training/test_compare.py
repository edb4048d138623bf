"""Compare: the same tokens for every arm, one of them dense and of equal compute, and figures that add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia.data import load_tokenizer
from pragnosia.errors import BudgetError, ConfigError
from pragnosia.training.arms import read_arms, reference, with_dense
from pragnosia.training.compare import CompareReport, Sweep, compare
from pragnosia.training.comparison import Spread
from pragnosia.training.log import read_log
from pragnosia.training.progress import Silent

Configure = Callable[..., dict[str, Any]]
QUICK = Sweep(multiples=(0.5, 1.0), share=0.4)


@pytest.fixture(scope="module")
def report(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> CompareReport:
    out = tmp_path_factory.mktemp("compare") / "out"
    return compare([configure()], seeds=2, out=out, sweep=QUICK, reporter=Silent())


def test_a_dense_arm_joins_and_the_figures_add_up(report: CompareReport) -> None:
    sparse, dense = report.arms
    assert (sparse.dense, dense.dense) == (False, True)
    assert 1 <= dense.operations_per_token / sparse.operations_per_token < 1.15
    assert sparse.total_parameters > dense.total_parameters
    assert dense.against_dense is None
    assert sparse.against_dense is not None
    assert sparse.against_dense.mean == pytest.approx(sparse.bits_per_byte.mean - dense.bits_per_byte.mean)
    assert len(sparse.sweep) >= 2
    assert len(sparse.sweep) == len(dense.sweep) or sparse.learning_rate != dense.learning_rate

    out = Path(report.out)
    assert json.loads((out / "compare.json").read_text())["arms"][0]["name"] == sparse.name
    assert (out / "compare.png").stat().st_size > 10_000
    table = report.table()
    assert any(line.startswith("dense") for line in table)
    for seed in range(2):
        runs = [read_log(out / arm.name / f"seed-{seed}" / "log.jsonl") for arm in report.arms]
        assert [row["tokens"] for row in runs[0]] == [row["tokens"] for row in runs[1]]


def test_started_again_it_finds_everything_trained(configure: Configure, report: CompareReport) -> None:
    again = compare([configure()], seeds=2, out=report.out, sweep=QUICK, reporter=Silent())
    assert again.to_dict() == report.to_dict()


def test_a_comparison_cut_short_goes_on(
    configure: Configure, report: CompareReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(Silent):  # type: ignore[misc]
        def note(self, line: str) -> None:
            if line.startswith("dense: 12 steps") and line.endswith("seed 1"):
                raise KeyboardInterrupt

    config = configure(data={"cache": None})
    with pytest.raises(KeyboardInterrupt):
        compare([config], seeds=2, out=tmp_path / "out", sweep=QUICK, reporter=Impatient())
    again = compare([config], seeds=2, out=tmp_path / "out", sweep=QUICK, reporter=Silent())
    assert [arm.bits_per_byte for arm in again.arms] == [arm.bits_per_byte for arm in report.arms]


def test_a_given_dense_arm_of_equal_compute_is_the_dense_arm(configure: Configure, corner: Path) -> None:
    twin = configure(model={"experts": None, "feed_forward": {"width": 26}})
    arms = with_dense(read_arms([configure(), twin], []), load_tokenizer(corner / "tokenizer"))
    assert [arm.name for arm in arms] == ["arm1", "arm2"]
    small = configure(model={"experts": None, "feed_forward": {"width": 4}})
    arms = with_dense(read_arms([configure(), small], []), load_tokenizer(corner / "tokenizer"))
    assert [arm.name for arm in arms] == ["arm1", "arm2", "dense"]
    assert reference(arms).name == "dense"


@pytest.mark.parametrize("change", [{"steps": 5}, {"batch": {"batch_size": 2}}, {"data": {"validation_fraction": 0.2}}])
def test_arms_must_see_the_same_tokens(configure: Configure, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} differs"):
        read_arms([configure(), configure(**change)], [])


def test_another_comparison_is_not_mixed_in(configure: Configure, report: CompareReport) -> None:
    with pytest.raises(ConfigError, match="another comparison"):
        compare([configure(steps=9)], seeds=1, out=report.out, sweep=QUICK, reporter=Silent())


def test_bad_input(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds is 0"):
        compare([configure()], seeds=0, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([], out=tmp_path / "a")
    with pytest.raises(ConfigError, match="held-out"):
        compare([configure(data={"validation_fraction": 0})], out=tmp_path / "b", reporter=Silent())
    with pytest.raises(BudgetError, match="training needs about"):
        compare([configure() | {"model": {"preset": "450b"}}], out=tmp_path / "b", reporter=Silent())
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="multiples"):
        Sweep(multiples=())


def test_spread() -> None:
    assert Spread.of([1.0, 3.0]) == Spread(mean=2.0, std=pytest.approx(2**0.5), min=1.0, max=3.0)
    assert Spread.of([1.0]).std == 0
