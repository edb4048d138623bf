"""How likely a model thinks given continuations of given contexts: the question behind multiple choice.

Rows of similar length are read together, padded on the right, where a causal model never looks. A long context that
several continuations share is read once, and what was remembered of it is lent to each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pragnosia.errors import ConfigError, DataError
from pragnosia.measure.scoring import listening, score
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.state import KeyValues, State

BATCH_TOKENS = 8192
# Tokens that must be saved before a context is worth a pass of its own.
_WORTH_SHARING = 128


class Continuation(NamedTuple):
    """What was there (at least one token), and what is said to follow."""

    context: Sequence[int]
    tokens: Sequence[int]


class Likelihood(NamedTuple):
    """Of one continuation."""

    log_probability: float
    """Nats."""
    greedy: bool
    """Whether the model itself would have said exactly this."""


@dataclass(frozen=True)
class _Row:
    """Tokens to read, of which the last `len(targets)` predict `targets`; `index` is the request's."""

    index: int
    inputs: list[int]
    targets: list[int]


def likelihoods(
    model: Cortex,
    requests: Sequence[Continuation],
    *,
    setting: Setting = WHOLE,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Likelihood]:
    """One for each request, in order. Contexts that are too long lose their beginning.

    Raises:
        DataError: a continuation longer than what the model holds.
        ConfigError: a setting at which tokens leave early; they are all read at once here.
    """
    if setting.leave:
        raise ConfigError(
            f"continuations are scored with all layers, and the setting is {setting}; leave its exits out"
        )
    limit = int(model.config.max_position_embeddings)
    reader = _Reader(model, setting, batch_tokens)
    answers = dict.fromkeys(range(len(requests)), Likelihood(0.0, True))  # what an empty continuation gets
    alone: list[_Row] = []
    with listening(model):
        for context, indices in _by_context(requests):
            rows = [_row(index, context, list(requests[index].tokens), limit) for index in indices]
            rows = [row for row in rows if row.targets]
            whole = all(len(row.inputs) == len(context) + len(row.targets) - 1 for row in rows)
            if whole and (len(rows) - 1) * (len(context) - 1) >= _WORTH_SHARING and reader.can_lend:
                answers.update(reader.read_behind(context[:-1], rows))
            else:
                alone.extend(rows)
        answers.update(reader.read(alone))
    return [answers[index] for index in range(len(requests))]


def _by_context(requests: Sequence[Continuation]) -> Iterator[tuple[list[int], list[int]]]:
    """Each context with the requests that stand behind it."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        assert request.context, "a continuation needs a token to be predicted from"
        groups[tuple(request.context)].append(index)
    return ((list(context), indices) for context, indices in groups.items())


def _row(index: int, context: list[int], tokens: list[int], limit: int) -> _Row:
    if len(tokens) > limit:
        raise DataError(f"a continuation has {len(tokens)} tokens, the model holds {limit}; shorten it")
    return _Row(index, [*context, *tokens][:-1][-limit:], tokens)


class _Reader:
    """Reads rows in batches."""

    def __init__(self, model: Cortex, setting: Setting, batch_tokens: int) -> None:
        self.model = model
        self.setting = setting
        self.batch_tokens = batch_tokens
        self.can_lend = all(isinstance(memory, KeyValues) for memory in model.fresh_state(1, 1).layers)

    def read(self, rows: Sequence[_Row], past: State | None = None) -> dict[int, Likelihood]:
        """Every row, longest first, behind what `past` remembers."""
        answers: dict[int, Likelihood] = {}
        for batch in _batches(rows, self.batch_tokens, 0 if past is None else past.length):
            answers.update(self._read_batch(batch, past))
        return answers

    def read_behind(self, context: list[int], rows: Sequence[_Row]) -> dict[int, Likelihood]:
        """Read `context` once and each row's remainder behind it."""
        state = self.model.fresh_state(1, len(context))
        ids = torch.tensor([context], device=self.model.device)
        past = self.model.model(ids, past_key_values=state, setting=self.setting).past_key_values
        return self.read([_Row(row.index, row.inputs[len(context) :], row.targets) for row in rows], past)

    def _read_batch(self, rows: Sequence[_Row], past: State | None) -> Iterator[tuple[int, Likelihood]]:
        inputs = pad_sequence([torch.tensor(row.inputs) for row in rows], batch_first=True).to(self.model.device)
        state = None if past is None else _lent(past, len(rows))
        hidden = self.model.model(
            inputs, past_key_values=state, use_cache=False, setting=self.setting
        ).last_hidden_state  # (B, T, D)
        ends = [hidden[at, len(row.inputs) - len(row.targets) : len(row.inputs)] for at, row in enumerate(rows)]
        targets = torch.tensor([token for row in rows for token in row.targets], device=hidden.device)
        scores = score(torch.cat(ends), self.model.lm_head, targets)
        lengths = [len(row.targets) for row in rows]
        chosen, greedy = scores.log_probabilities.cpu().split(lengths), scores.greedy.cpu().split(lengths)
        for row, values, hits in zip(rows, chosen, greedy, strict=True):
            yield row.index, Likelihood(float(values.sum()), bool(hits.all()))


def _batches(rows: Sequence[_Row], batch_tokens: int, seen: int) -> Iterator[list[_Row]]:
    """Rows of similar length, as many as make `batch_tokens` with the padding and what is remembered for each."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -len(row.inputs)):
        if batch and (len(batch) + 1) * (seen + len(batch[0].inputs)) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _lent(past: State, batch: int) -> State:
    """One text's memory for each of `batch` rows, without a copy: its arena is full, so writing moves to a new one."""

    def expanded(memory: KeyValues) -> KeyValues:
        assert memory.length == memory.keys.shape[2]
        return KeyValues(_rows(memory.keys, batch), _rows(memory.values, batch), memory.length)

    return State(tuple(expanded(memory) for memory in past.layers if isinstance(memory, KeyValues)), past.length)


def _rows(tensor: Tensor, batch: int) -> Tensor:
    return tensor.expand(batch, *tensor.shape[1:])
