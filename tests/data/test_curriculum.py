"""Orders from easy to hard: the pace of the paper, difficulties written out, and rows that depend on nothing else."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pragnosia.data import MEASURES, Batches, Corpus, Curriculum, Pace, PackingOptions, Texts, TokenShards, tokenize
from pragnosia.data.curriculum import window_count
from pragnosia.errors import DataError

T = 8


@pytest.fixture(scope="module")
def shards(tokenizer: PreTrainedTokenizerFast, texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return tokenize(texts, tokenizer, tmp_path_factory.mktemp("cache"), PackingOptions(validation_fraction=0.05))


PACE = Pace(64, 0.1)


def made(shards: TokenShards, by: str = "frequency", pace: Pace = PACE) -> Curriculum:
    count = window_count(shards.train.tokens, T)
    return Curriculum(by, pace, (MEASURES[by](shards, T, count),))


def test_competence_is_the_papers() -> None:
    rows = np.array([0, 25, 50, 100, 1000])
    root = np.sqrt(np.minimum(1, rows * (1 - 0.01**2) / 100 + 0.01**2))
    assert Pace(100).competence(rows) == pytest.approx(root)
    linear = np.minimum(1, rows * (1 - 0.2) / 100 + 0.2)
    assert Pace(100, 0.2, 1).competence(rows) == pytest.approx(linear)


def test_difficulties_token_by_token(shards: TokenShards) -> None:
    count = window_count(shards.train.tokens, T)
    stream = shards.train.read(0, shards.train.tokens).tolist()
    seen = Counter(stream[: count * T])
    sizes, document = [], 0
    for token in stream:
        document += 1
        if token == shards.separator:
            sizes += [document] * document
            document = 0
    sizes += [document] * document
    rare, long = (MEASURES[by](shards, T, count) for by in ("frequency", "length"))
    for window in (0, 1, count // 2, count - 1):
        places = range(window * T, window * T + T)
        expected = sum(-math.log(seen[stream[at]] / (count * T)) for at in places) / T
        assert rare[window] == pytest.approx(expected, rel=1e-5)
        assert long[window] == pytest.approx(sum(math.log(sizes[at]) for at in places) / T, rel=1e-5)


@pytest.mark.parametrize("by", list(MEASURES))
def test_rows_come_from_the_easiest_and_later_from_all(shards: TokenShards, by: str) -> None:
    pace = Pace(64, 0.1)
    curriculum = made(shards, by, pace)
    paced = Batches(shards, 1, T, seed=5, curriculum=curriculum)
    plain = Batches(shards, 1, T, seed=5)
    order, count = curriculum.orders[0], len(curriculum.difficulties[0])
    assert (np.diff(curriculum.difficulties[0][order]) >= 0).all()
    drawn = set()
    for row in range(64):
        reach = max(1, math.ceil(float(pace.competence(np.array([row]))[0]) * count))
        window = int(curriculum.windows(0, np.array([row]), paced._windows[0].key)[0])
        assert window in set(order[:reach].tolist())
        expected = shards.train.read(window * T, T + 1)
        assert paced.batch(row)[0].numpy().tolist() == expected.tolist()
        drawn.add(window)
    assert len(drawn) > 20, "it is a draw and no list"
    for row in (64, 65, 300):
        assert paced.batch(row).equal(plain.batch(row))


def test_a_row_depends_on_nothing_that_came_before(shards: TokenShards) -> None:
    whole = Batches(shards, 4, T, seed=1, curriculum=made(shards))
    ahead = [next(whole) for _ in range(6)]
    state = whole.state_dict()
    later = next(whole)
    other = Batches(shards, 4, T, seed=1, curriculum=made(shards))
    assert other.batch(5).equal(ahead[5])
    other.load_state_dict(state)
    assert next(other).equal(later)
    for stranger in (None, made(shards, "length"), made(shards, pace=Pace(65, 0.1))):
        with pytest.raises(DataError, match="curriculum was"):
            Batches(shards, 4, T, seed=1, curriculum=stranger or made(shards, pace=Pace(63))).load_state_dict(state)


def test_difficulties_of_another_text(shards: TokenShards) -> None:
    few = Curriculum("frequency", Pace(4), (np.zeros(3, np.float32),))
    with pytest.raises(DataError, match="the curriculum knows"):
        Batches(Corpus((shards,), (1.0,)), 2, T, seed=0, curriculum=few)


def test_without_a_curriculum_nothing_changes(shards: TokenShards, tmp_path: Path) -> None:
    assert "curriculum" not in Batches(shards, 2, T, seed=0).state_dict()
