from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pragnosia.data import (
    Batches,
    Corpus,
    PackingOptions,
    Place,
    Texts,
    TokenShards,
    build_corpus,
    shorten,
    tokenize,
    validation_batches,
)
from pragnosia.errors import DataError

T = 16


@pytest.fixture(scope="module")
def shards(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return tokenize(texts, tokenizer, tmp_path_factory.mktemp("cache"), PackingOptions(validation_fraction=0.05))


def test_windows_of_the_stream(shards: TokenShards) -> None:
    stream = shards.train.read(0, shards.train.tokens)
    windows = np.lib.stride_tricks.sliding_window_view(stream, T + 1)
    known = {window.tobytes() for window in windows}
    batch = Batches(shards, 8, T, seed=0).batch(3)
    assert batch.shape == (8, T + 1)
    assert batch.dtype == torch.int64
    assert all(row.numpy().tobytes() in known for row in batch)


def test_an_epoch_covers_the_text_once(shards: TokenShards) -> None:
    batches = Batches(shards, 1, T, seed=3)
    (windows,) = batches._windows
    for epoch in range(2):
        starts = windows.starts(np.arange(windows.count) + epoch * windows.count)
        assert len({int(start) % T for start in starts}) == 1  # one cut, no overlap
        assert len(set(starts.tolist())) == windows.count
        assert starts.min() >= 0
        assert starts.max() + T + 1 <= shards.train.tokens
        assert windows.count * T > shards.train.tokens - 2 * T
    first, second = (windows.starts(np.arange(20) + n) for n in (0, windows.count))
    assert first.tolist() != second.tolist()


def test_seeds_differ_and_repeat(shards: TokenShards) -> None:
    one, again, two = (Batches(shards, 4, T, seed=seed).batch(0) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(0, 60), more=st.integers(1, 5), batch_size=st.integers(1, 7), seed=st.integers(-5, 2**70))
def test_resume_is_exact(shards: TokenShards, steps: int, more: int, batch_size: int, seed: int) -> None:
    straight = Batches(shards, batch_size, T, seed)
    for _ in range(steps):
        next(straight)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = Batches(shards, batch_size, T, seed)
    resumed.load_state_dict(state)
    for i in range(more):
        batch = next(straight)
        assert torch.equal(next(resumed), batch)
        assert torch.equal(straight.batch(steps + i), batch)


def test_ranks_share_the_rows(shards: TokenShards) -> None:
    whole = Batches(shards, 6, T, seed=0)
    ranks = [Batches(shards, 2, T, seed=0, place=Place(rank, 3)) for rank in range(3)]
    for _ in range(4):
        assert torch.equal(next(whole), torch.cat([next(rank) for rank in ranks]))
    assert ranks[0].state_dict() == whole.state_dict()


def test_resume_with_another_batch_size_goes_on_with_the_next_row(shards: TokenShards) -> None:
    small, large = Batches(shards, 2, T, seed=0), Batches(shards, 6, T, seed=0)
    next(small)
    large.load_state_dict(small.state_dict())
    assert torch.equal(torch.cat([next(small) for _ in range(3)]), next(large))


@pytest.mark.parametrize(
    ("change", "match"), [({"seed": 9}, "seed was 9, is 0"), ({"row": -1}, "position"), ({"data": []}, "data was")]
)
def test_resume_elsewhere(shards: TokenShards, change: dict[str, object], match: str) -> None:
    batches = Batches(shards, 2, T, seed=0)
    with pytest.raises(DataError, match=match):
        batches.load_state_dict({**batches.state_dict(), **change})
    with pytest.raises(DataError, match="sequence length was 16, is 8"):
        Batches(shards, 2, 8, seed=0).load_state_dict(batches.state_dict())


def test_mixture_shares(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("7" * 4000)
    (tmp_path / "b.txt").write_text("z" * 9000)
    data = [f"{tmp_path / 'a.txt'}@3", f"{tmp_path / 'b.txt'}@1"]
    corpus = build_corpus(data, tokenizer, tmp_path / "cache")
    assert corpus.weights == (0.75, 0.25)
    batches = Batches(corpus, 40, T, seed=0)
    sevens = set(tokenizer("7" * 4000).input_ids)
    for _ in range(30):  # past the end of a.txt, which begins again
        rows = Counter(int(row[T // 2]) in sevens for row in next(batches))
        assert 29 <= rows[True] <= 31
    first, second = batches.epochs
    assert first > 1 > second
    assert corpus.bytes_per_token == pytest.approx(
        0.75 * corpus.parts[0].train.bytes_per_token + 0.25 * corpus.parts[1].train.bytes_per_token
    )


@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=6), st.integers(1, 5000))
def test_turns(weights: list[float], rows: int) -> None:
    from pragnosia.data.batches import _Turns

    shares = tuple(weight / sum(weights) for weight in weights)
    turns = _Turns.by_weight(shares)
    part, nth = turns.locate(np.arange(rows))
    for i, share in enumerate(shares):
        assert nth[part == i].tolist() == list(range((part == i).sum()))  # nothing skipped, nothing twice
        assert abs((part == i).sum() - share * rows) < 3 + rows * len(weights) / 1024
        assert turns.rows_by_part(rows)[i] == (part == i).sum()


def test_validation_covers_everything_once(shards: TokenShards) -> None:
    tokens = shards.validation.read(0, shards.validation.tokens)
    batches = list(validation_batches(shards, 4, T))
    targets = torch.cat([batch[:, 1:].reshape(-1) for batch in batches])
    inputs = torch.cat([batch[:, :-1].reshape(-1) for batch in batches])
    assert targets.tolist() == tokens[1:].tolist()
    assert inputs.tolist() == tokens[:-1].tolist()
    halves = [list(validation_batches(shards, 4, T, Place(rank, 2))) for rank in range(2)]
    assert sum(len(half) for half in halves) == len(batches)
    assert torch.equal(halves[1][0], batches[1])
    assert len(list(validation_batches(shards, 4, T, max_batches=2))) == 2


def test_shorter_rows_hold_the_same_tokens(shards: TokenShards) -> None:
    batch = Batches(shards, 4, T, seed=0).batch(0)
    short = shorten(batch, 4)
    assert short.shape == (16, 5)
    assert torch.equal(short[:, 1:].reshape(4, T), batch[:, 1:])
    assert torch.equal(short[:, :-1].reshape(4, T), batch[:, :-1])
    assert torch.equal(shorten(batch, T), batch)
    with pytest.raises(DataError, match="use a divisor"):
        shorten(batch, 5)


def test_too_little_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    few = tokenize(Texts(["7 7 7 7 7 7 7"], name="few"), tokenizer, tmp_path, PackingOptions(validation_fraction=0))
    with pytest.raises(DataError, match=rf"few has {few.train.tokens} tokens .* a window needs 65"):
        Batches(few, 1, 64, seed=0)
    exact = Batches(few, 3, few.train.tokens - 1, seed=0)
    assert torch.equal(next(exact)[0], torch.from_numpy(few.train.read(0, few.train.tokens)))


@pytest.mark.parametrize(("batch_size", "length"), [(0, 4), (4, 0), (-1, 4)])
def test_impossible_sizes(shards: TokenShards, batch_size: int, length: int) -> None:
    with pytest.raises(DataError, match="expected at least 1"):
        Batches(shards, batch_size, length, seed=0)
    with pytest.raises(DataError, match="rank is 2"):
        Place(2, 2)


@pytest.fixture(scope="module")
def two(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two texts that share no window."""
    made = [Texts([f"{name} {i}. {name} met {name}. " * 9 for i in range(90)], name=name) for name in ("Ann", "Bob")]
    cache = tmp_path_factory.mktemp("two")
    return Corpus(tuple(tokenize(texts, tokenizer, cache, PackingOptions()) for texts in made), (0.5, 0.5))


def rows_of(batches: Batches, count: int) -> list[list[int]]:
    return [row.tolist() for _ in range(count) for row in next(batches)]


def test_another_mix_goes_on_where_each_part_was_left(two: Corpus) -> None:
    """Held to the windows that each part gives in its own order, whatever the mix."""
    batches = Batches(two, 4, T, 3)
    orders = [
        [part.train.read(int(start), T + 1).tolist() for start in windows.starts(np.arange(60))]
        for part, windows in zip(two.parts, batches._windows, strict=True)
    ]
    taken = [0, 0]
    for weights, steps in ((two.weights, 3), ((1.0, 0.0), 2), ((0.25, 0.75), 4), (two.weights, 2)):
        batches.remix(weights)
        assert batches.mix == weights
        before = list(taken)
        for row in rows_of(batches, steps):
            part = next(part for part in (0, 1) if row == orders[part][taken[part]])
            taken[part] += 1
        assert abs((taken[0] - before[0]) - weights[0] * 4 * steps) <= 1, "within a row"
    assert sum(taken) == 44
    counts = [windows.count for windows in batches._windows]
    assert batches.epochs == tuple(n / count for n, count in zip(taken, counts, strict=True))


def test_a_mix_is_part_of_the_position(two: Corpus) -> None:
    whole = Batches(two, 4, T, 3)
    whole.remix((0.9, 0.1))  # before the first row
    at_first = json.loads(json.dumps(whole.state_dict()))
    first = rows_of(whole, 3)
    whole.remix((0.2, 0.8))
    rows_of(whole, 2)
    later = json.loads(json.dumps(whole.state_dict()))
    for state, rows in ((at_first, first), (later, rows_of(whole, 3))):
        resumed = Batches(two, 4, T, 3)
        resumed.load_state_dict(state)
        assert rows_of(resumed, 3) == rows
    plain = Batches(two, 4, T, 3)
    assert "mix" not in plain.state_dict(), "positions of runs without stages are as they were"
    with pytest.raises(DataError, match="give each a share"):
        plain.remix((1.0,))
    with pytest.raises(DataError, match="cannot resume: the mix"):
        plain.load_state_dict(later | {"mix": [1, 2]})
