"""Rows of examples: nothing learned is lost, nothing is seen from another example, and a run goes on where it was."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pragnosia.data import (
    Dialogue,
    Document,
    Message,
    Place,
    TuningBatch,
    TuningBatches,
    TuningExamples,
    segment_mask,
    tokenize_conversations,
)
from pragnosia.data.tuning_rows import Stretches, packed
from pragnosia.errors import DataError

PAD = 9999


def made(*examples: tuple[int, list[bool]]) -> TuningExamples:
    """Examples of a first id and what is learned; no two tokens of all are alike."""
    masks = [np.array(mask) for _, mask in examples]
    ids = [np.arange(first, first + len(mask)) for (first, _), mask in zip(examples, masks, strict=True)]
    labels = [np.where(mask, ids_, -100) for ids_, mask in zip(ids, masks, strict=True)]
    return TuningExamples(
        ids=np.concatenate(ids).astype(np.int32),
        labels=np.concatenate(labels).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(mask) for mask in masks])]),
        origins=np.arange(len(masks)),
        pad_id=PAD,
    )


def conversations(lengths: list[int]) -> TuningExamples:
    """Of each the first half is a prompt."""
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    return made(
        *((int(first), [i >= n / 2 and i > 0 for i in range(n)]) for first, n in zip(firsts, lengths, strict=False))
    )


def equal(one: TuningBatch, other: TuningBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def segments_of(batch: TuningBatch) -> list[dict[str, list[int]]]:
    """What each segment of each row holds."""
    found = []
    for row in range(batch.input_ids.shape[0]):
        for segment in range(1, int(batch.segments[row].max()) + 1):
            at = batch.segments[row] == segment
            fields = ("input_ids", "labels", "position_ids")
            found.append({name: getattr(batch, name)[row][at].tolist() for name in fields})
    return found


LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(12, 40), st.booleans(), st.integers(1, 5), st.integers(0, 2**70))
def test_an_epoch_holds_every_example_once(
    lengths: list[int], room: int, packing: bool, batch_size: int, seed: int
) -> None:
    examples = conversations(lengths)

    def reached(n: int) -> bool:
        """Whether a row has room for the prompt and one token of the answer."""
        return -(-n // 2) < room

    try:
        batches = TuningBatches(examples, batch_size, room, seed, packing)
    except DataError:
        assert not any(map(reached, lengths))
        return
    read = list(batches.one_epoch())
    found = {segment["input_ids"][0]: segment for batch in read for segment in segments_of(batch)}
    firsts = [int(first) for first in examples.offsets[:-1]]
    expected = {first: n for first, n in zip(firsts, lengths, strict=True) if n <= room or reached(n)}
    assert set(found) == set(expected)
    learned = 0
    for first, n in expected.items():
        kept = min(n, room)
        assert found[first] == {
            "input_ids": list(range(first, first + kept)),
            "position_ids": list(range(kept)),
            "labels": [first + i if i and i >= n / 2 else -100 for i in range(kept)],
        }
        learned += sum(label >= 0 for label in found[first]["labels"])
    assert sum(batch.input_ids.shape[0] for batch in read) == batches.rows_per_epoch
    assert sum(int((batch.labels >= 0).sum()) for batch in read) == batches.tokens_learned == learned
    assert sum(int((batch.segments > 0).sum()) for batch in read) == batches.tokens
    assert batches.stretches.tokens_lost == int((examples.labels >= 0).sum()) - learned
    assert batches.stretches.num_cut == sum(n > room and reached(n) for n in lengths)
    assert batches.stretches.num_dropped == sum(n > room and not reached(n) for n in lengths)
    for batch in read:
        padding = batch.segments == 0
        assert (batch.input_ids[padding] == PAD).all()
        assert (batch.labels[padding] == -100).all()
        assert all(tensor.dtype == torch.int64 for tensor in vars(batch).values())
    # The endless iterator goes through the same rows, each once an epoch.
    rows = torch.cat([batch.input_ids for batch in islice(batches, -(-2 * batches.rows_per_epoch // batch_size))])
    one = Counter(map(tuple, torch.cat([batch.input_ids for batch in read]).tolist()))
    n = batches.rows_per_epoch
    assert Counter(map(tuple, rows[:n].tolist())) == one == Counter(map(tuple, rows[n : 2 * n].tolist()))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300))
def test_packing_is_tight(lengths: list[int]) -> None:
    rows = packed(np.array(lengths), 50)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    fills = [sum(lengths[number] for number in row) for row in rows]
    assert max(fills) <= 50
    assert len(rows) <= 11 / 9 * max(1, -(-sum(lengths) // 50), sum(n > 25 for n in lengths)) + 4
    assert sum(fill <= 25 for fill in fills) <= 1, "two half-empty rows would be one"


@given(st.lists(st.integers(2, 100), min_size=1, max_size=8), st.integers(2, 30))
def test_long_texts_go_on_in_the_next_stretch(lengths: list[int], room: int) -> None:
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    texts = made(*((int(first), [False] + [True] * (n - 1)) for first, n in zip(firsts, lengths, strict=False)))
    batches = TuningBatches(texts, 2, room, seed=0)
    learned = [label for batch in batches.one_epoch() for label in batch.labels.flatten().tolist() if label >= 0]
    assert sorted(learned) == sorted(texts.labels[texts.labels >= 0].tolist()), "each token once"
    assert batches.stretches.num_split == sum(n > room for n in lengths)
    assert (batches.stretches.num_cut, batches.stretches.num_dropped, batches.stretches.tokens_lost) == (0, 0, 0)
    assert batches.stretches.told(room) is None


def test_what_does_not_fit_is_told() -> None:
    prompt, answer = [False] * 6, [True] * 4
    examples = made((0, prompt + answer), (100, prompt * 3 + answer), (200, [False, True]))
    stretches = Stretches.of(examples, 8)
    assert stretches.bounds.tolist() == [[32, 34], [0, 8]]
    assert stretches.told(8) == (
        "longer than 8 tokens: 1 conversations lose their end, 1 are dropped whole; 6 tokens of answers are lost, "
        "a longer sequence length keeps them"
    )
    with pytest.raises(DataError, match="none of 1 conversations has an answer within its first 8 tokens"):
        Stretches.of(made((100, prompt * 3 + answer)), 8)


@given(LENGTHS, st.integers(0, 40), st.integers(1, 4), st.integers(1, 4))
def test_a_run_goes_on_where_it_was(lengths: list[int], steps: int, batch_size: int, later: int) -> None:
    examples = conversations(lengths)
    whole, first, second = (TuningBatches(examples, size, 40, 7) for size in (1, batch_size, later))
    for _ in range(steps):
        next(first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.epochs == first.epochs == steps * batch_size / first.rows_per_epoch
    rows = list(islice(whole, steps * batch_size + 3 * later))[steps * batch_size :]
    for number, batch in enumerate(islice(second, 3)):
        for slot in range(later):
            assert torch.equal(batch.input_ids[slot], rows[number * later + slot].input_ids[0])
            assert torch.equal(batch.labels[slot], rows[number * later + slot].labels[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"examples": conversations([9, 9, 9, 9, 7])}, "data was '"),
        ({"seed": 2}, "seed was 1, is 2"),
        ({"sequence_length": 12}, "sequence length was 20, is 12"),
        ({"packing": False}, "packing was True, is False"),
    ],
)
def test_resuming_otherwise_is_refused(change: dict[str, Any], match: str) -> None:
    settings: dict[str, Any] = {"examples": conversations([9, 9, 9, 9, 8]), "sequence_length": 20, "seed": 1}
    state = TuningBatches(batch_size=2, **settings).state_dict()
    other = TuningBatches(batch_size=2, **(settings | change))
    with pytest.raises(DataError, match=f"cannot resume: {match}"):
        other.load_state_dict(state)
    same = TuningBatches(batch_size=2, **settings)
    for row in ("3", -1, None):
        with pytest.raises(DataError, match="the position in the data is"):
            same.load_state_dict({**state, "row": row})


def test_epochs_are_shuffled_and_seeds_differ() -> None:
    examples = conversations([30] * 50)
    orders = []
    for seed in (0, 0, 1):
        batches = TuningBatches(examples, 50, 40, seed)
        orders += [next(batches).input_ids[:, 0].tolist() for _ in range(2)]
    assert orders[:2] == orders[2:4]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_processes_share_the_rows_out() -> None:
    examples = conversations([30] * 12)
    alone = TuningBatches(examples, 4, 40, 0)
    both = [TuningBatches(examples, 2, 40, 0, place=Place(rank, 2)) for rank in (0, 1)]
    for _ in range(5):
        parts = [next(batches).input_ids for batches in both]
        assert torch.equal(torch.cat(parts), next(alone).input_ids)
    counts = [sum(batch.input_ids.shape[0] for batch in batches.one_epoch()) for batches in both]
    assert counts == [6, 6]


def test_impossible_sizes() -> None:
    examples = conversations([4])
    with pytest.raises(DataError, match="batch_size is 0, expected at least 1"):
        TuningBatches(examples, 0, 8, 0)
    with pytest.raises(DataError, match="sequence_length is 1, expected at least 2"):
        TuningBatches(examples, 1, 1, 0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_the_mask_of_segments(lengths: list[int]) -> None:
    segments = torch.tensor([[number for number, n in enumerate(lengths) for _ in range(n)] + [0] * 3])
    mask = segment_mask(segments)
    length = segments.shape[1]
    assert mask.shape == (1, 1, length, length)
    assert mask.dtype == torch.bool
    for i in range(length):
        assert mask[0, 0, i, i], "no place looks nowhere"
        for j in range(length):
            assert mask[0, 0, i, j] == (segments[0, i] == segments[0, j] and j <= i)


def test_a_packed_row_is_as_each_example_alone() -> None:
    """A transformers model says the same of an example in company as of it alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    batches = TuningBatches(conversations([9, 7, 12, 5, 20, 3]), 2, 30, 0)
    compared = 0
    for batch in batches.one_epoch():
        ids = batch.input_ids % 64
        with torch.no_grad():
            packed_logits = model(
                input_ids=ids, position_ids=batch.position_ids, attention_mask=segment_mask(batch.segments)
            ).logits
            assert packed_logits.isfinite().all()
            for row in range(len(ids)):
                for segment in range(1, int(batch.segments[row].max()) + 1):
                    at = batch.segments[row] == segment
                    alone = model(input_ids=ids[row, at][None]).logits[0]
                    torch.testing.assert_close(packed_logits[row, at], alone, rtol=1e-4, atol=1e-5)
                    compared += 1
    assert compared == 6


def talks(tokenizer: PreTrainedTokenizerFast, *, count: int = 40) -> TuningExamples:
    teachings = [
        Dialogue((Message("user", f"질문 {i}? 👋"), Message("assistant", f"Answer {i}, 대답! 👩‍👩‍👧" * (1 + i % 5))))
        for i in range(count)
    ]
    return tokenize_conversations([*teachings, Document("A text of its own. 글 하나.")], tokenizer)


def test_answers_come_back_from_packed_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = talks(tokenizer)
    read = Counter(
        tokenizer.decode([label for label in segment["labels"] if label >= 0])
        for batch in TuningBatches(examples, 3, 256, 0).one_epoch()
        for segment in segments_of(batch)
    )
    first = tokenizer.decode(tokenizer("A text of its own. 글 하나.")["input_ids"][:1])
    answers = [f"Answer {i}, 대답! 👩‍👩‍👧" * (1 + i % 5) + "<|endoftext|>" for i in range(40)]
    assert read == Counter([*answers, "A text of its own. 글 하나.<|endoftext|>".removeprefix(first)])


def test_the_same_conversations_are_the_same_data(tokenizer: PreTrainedTokenizerFast) -> None:
    assert talks(tokenizer).digest == talks(tokenizer).digest
    assert talks(tokenizer, count=39).digest != talks(tokenizer).digest


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5])
def test_held_out_conversations(fraction: float, tokenizer: PreTrainedTokenizerFast) -> None:
    examples = talks(tokenizer)
    train, validation = examples.split(fraction, seed=3)
    assert len(validation) == (max(1, round(fraction * 41)) if fraction else 0)
    assert len(train) + len(validation) == len(examples)

    def contents(part: TuningExamples) -> list[bytes]:
        bounds = zip(part.offsets[:-1], part.offsets[1:], strict=True)
        return [part.ids[a:b].tobytes() + part.labels[a:b].tobytes() for a, b in bounds]

    assert sorted([*contents(train), *contents(validation)]) == sorted(contents(examples))
    assert contents(examples.split(fraction, seed=3)[1]) == contents(validation)
    if fraction:
        assert contents(examples.split(fraction, seed=4)[1]) != contents(validation)


def test_equal_conversations_and_all_answers_of_one_stay_together() -> None:
    firsts = [first for first in (0, 100, 200, 0, 100, 200) for _ in range(2)]
    examples = made(*((first, [False, True, True]) for first in firsts))
    examples = TuningExamples(examples.ids, examples.labels, examples.offsets, np.arange(12) // 2, PAD)
    for seed in range(5):
        train, validation = examples.split(0.2, seed)
        assert len(validation) == 4
        assert set(train.ids.tolist()) & set(validation.ids.tolist()) == set()
    same = made((0, [False, True]), (0, [False, True]))
    with pytest.raises(DataError, match="2 conversations, all held out"):
        same.split(0.1)
    with pytest.raises(DataError, match=r"validation_fraction is 0\.7"):
        same.split(0.7)
