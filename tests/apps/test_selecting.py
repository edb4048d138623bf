"""`select`: what is chosen, written and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia.data import documents

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.txt"
    tales = [f"A tale of {n} brains that slept {n * 7} days." for n in range(12)]
    path.write_text("\n<|endoftext|>\n".join([*tales, "zq" * 40]), "utf-8")
    return path


def test_it_chooses_within_the_budget_and_keeps_it(run: Run, model: Path, pool: Path, tmp_path: Path) -> None:
    for by, name in (("loss", "a.jsonl"), ("disagreement", "b.txt"), ("random", "c.txt")):
        out = tmp_path / name
        found = run("select", model, "--pool", pool, "--budget", 120, "--by", by, "--out", out, "--json").values
        assert found["tokens"] == sum(one["tokens"] for one in found["chosen"]) <= 120
        assert found["texts"] == len(found["chosen"]) > 1
        assert [text.strip() for text in documents(out)] == [one["text"].strip() for one in found["chosen"]]
        if by == "loss":
            scores = [one["score"] for one in found["chosen"]]
            assert scores == sorted(scores, reverse=True)
            assert found["loss"] >= found["pool_loss"]
            assert set(json.loads(out.read_text("utf-8").splitlines()[0])) == {"text", "document"}
        if by == "disagreement":
            assert "half of the units" in found["committee"]


def test_in_words(run: Run, model: Path, pool: Path) -> None:
    shown = run("select", model, "--pool", pool, pool, "--budget", 60)
    assert shown.code == 0
    for word in ("diversity", "28 texts", "chosen", "nothing; --out FILE"):
        assert word in shown.out


def test_what_cannot_be_chosen(at_once: Run, run: Run, model: Path, pool: Path, tmp_path: Path) -> None:
    at_once("select", model, "--pool", pool, "--budget", 10, "--by", "lose").refused("lose", "loss")
    at_once("select", model, "--pool", tmp_path / "none", "--budget", 10).refused("no such file")
    at_once("select", model, "--pool", f"{pool}@0.5", "--pool", f"{pool}@0.5", "--budget", 9).refused("no weights")
    run("select", model, "--pool", pool, "--budget", 10, "--against", model).refused("--against", "disagreement")
    run("select", model, "--pool", pool, "--budget", 10, "--out", tmp_path).refused("that is a folder")
    run("select", model, "--pool", pool, "--budget", 1).refused("budget is 1", "--budget")
    run("select", model, "--pool", pool, "--budget", 99, "--piece", 100).refused("--piece is 100", "holds 64")
