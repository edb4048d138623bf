"""How well a model predicts text: bits per byte and perplexity by strided sliding windows.

    bits per byte = nats / (ln 2 bytes)        perplexity = exp(nats / tokens)        nats = - sum_i ln p(t_i | before)

A document is tokenised whole, without special tokens, and stands behind the token documents begin with (else the one
they end with), so that all of its tokens, and so all of its bytes, are scored; its end is not. A tokenizer with neither
leaves each document's first token unscored, and the characters that token reaches into uncounted.

Window k reads tokens k S to k S + C of its document (context C, stride S) and scores those that window k - 1 has not:
each token once, with C - S or more tokens before it as far as the document has them, whatever comes after it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.data.sources import Source
from pragnosia.errors import CheckpointError, ConfigError, DataError
from pragnosia.inference.exits import check_layers
from pragnosia.inference.mixing import Mixes
from pragnosia.measure.accounting import DEFAULT_CONTEXT, account, stored
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.energy import EnergyModel, energy_model
from pragnosia.measure.leaving import read_leaving
from pragnosia.measure.meter import EnergyMeter
from pragnosia.measure.passages import Passage, Passages, windows
from pragnosia.measure.scoring import Scores, listening, score
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import WHOLE, Setting

# Tokens in one forward pass, and in the windows that wait for others of their length.
_BATCH_TOKENS = 8192
_WAITING_TOKENS = 1024**2
_ROWS = 128  # logits held at once where memory has its say

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How text is read."""

    context: int | None = None
    """Tokens in a window; None: what the model holds, at most 2048."""
    stride: int | None = None
    """Tokens from one window to the next; None: half the context."""
    batch_size: int | None = None
    """Windows in one forward pass; None: as many as make 8192 tokens."""
    setting: Setting = WHOLE
    """How much wakes, and where tokens leave: each as if it had been spoken."""
    max_bytes: int | None = None
    """Of text; None: all there is."""
    mixing: Mixes | None = None
    """Memory, or a learner beside the model (companion.py); windows are then read one by one, in order."""

    def __post_init__(self) -> None:
        for name in ("context", "stride", "batch_size", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")

    def window(self, limit: int) -> tuple[int, int]:
        """Context and stride for a model that holds `limit` tokens. Raises ConfigError where they do not fit."""
        context = min(DEFAULT_CONTEXT, limit) if self.context is None else self.context
        stride = max(1, context // 2) if self.stride is None else self.stride
        if context > limit:
            raise ConfigError(f"context is {context} tokens; the model holds {limit}")
        if stride > context:
            raise ConfigError(f"stride is {stride}, context {context}; a stride past the context would skip tokens")
        return context, stride


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of it. `tokens`, `bytes` and `words` are those that were scored."""

    nats: float
    tokens: int
    bytes: int
    words: int
    documents: int
    context: int
    stride: int
    seconds: float
    passed: tuple[float, ...]
    """For each layer, the share of the scored tokens that passed it; the others left before."""
    gates: tuple[float, ...] = ()
    """For each layer, the share of the tokens that its gate let pass; 1 where it has none."""
    heads_per_token: float
    """How often the output head was asked for one: at every exit it came by, and at the end."""
    tokens_read: int
    """Windows overlap, so more are read than scored; what woke is told per token read."""
    awake_per_token: tuple[float, ...]
    """Units, for each layer."""
    operations_per_token: float
    bytes_per_token: float
    """To and from memory."""
    joules: float
    joules_source: str

    @property
    def bits_per_byte(self) -> float:
        """Of UTF-8."""
        return self.nats / (math.log(2) * self.bytes)

    @property
    def perplexity(self) -> float:
        """Per token: not comparable between tokenizers."""
        return _exp(self.nats / self.tokens)

    @property
    def word_perplexity(self) -> float:
        """Per word and line end, as WikiText is reported."""
        return _exp(self.nats / max(self.words, 1))

    @property
    def layers_per_token(self) -> float:
        """That computed something for a scored token, mean: it had not left, and no gate let it pass the layer by."""
        return sum(map(math.prod, zip(self.passed, self.gates or (1.0,) * len(self.passed), strict=True)))

    @property
    def tokens_per_second(self) -> float:
        """Scored, of wall time."""
        return self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        derived = ("bits_per_byte", "perplexity", "word_perplexity", "layers_per_token", "tokens_per_second")
        return {**{name: getattr(self, name) for name in derived}, **asdict(self)}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def evaluate(
    model: Cortex,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[str] | Source,
    *,
    progress: Progress | None = None,
    words: list[Tensor] | None = None,
    **options: Any,
) -> Evaluation:
    """Score `documents`; `options` as in EvaluationOptions. `progress` is told the tokens scored so far.

    `words` gets the likeliest token in place of each that was scored (N,), batch by batch: of one text and one window
    they come in one order, so that those of two settings can be compared.

    Raises:
        DataError: no text, text that is none, or a tokenizer that is not the model's.
        ConfigError: a window that does not fit the model.
        CheckpointError: a model whose predictions are not numbers.
    """
    choices = EvaluationOptions(**options)
    context, stride = choices.window(int(model.config.max_position_embeddings))
    texts = documents.documents() if isinstance(documents, Source) else documents
    passages = Passages(tokenizer, int(model.config.vocab_size)).of(texts, choices.max_bytes)
    reader = _Reader(model, choices)
    counts = _Counts()
    together = choices.batch_size if choices.mixing is None else 1
    nats = 0.0
    began = time.perf_counter()
    with listening(model), EnergyMeter() as counters:
        for batch, num_scored in _batches(_spans(passages, context, stride, counts), together):
            scores = reader.scores(batch, num_scored)
            nats -= float(scores.log_probabilities.sum(dtype=torch.float32))
            if words is not None:
                words.append(scores.likeliest.cpu())
            counts.tokens += len(batch) * num_scored
            if progress is not None:
                progress(counts.tokens)
    _check(nats, counts)
    if choices.mixing is not None:
        reader.meter.recalled(choices.mixing.effort())
    done = reader.meter.activity()
    energy = done.energy(reader.energy_model(), counters.measured)
    return Evaluation(
        nats=nats,
        tokens=counts.tokens,
        bytes=counts.bytes,
        words=counts.words,
        documents=counts.documents,
        context=context,
        stride=stride,
        seconds=time.perf_counter() - began,
        passed=reader.passed(),
        gates=done.passed,
        heads_per_token=reader.heads / max(counts.tokens, 1),
        tokens_read=done.tokens,
        awake_per_token=done.awake_per_token,
        operations_per_token=done.operations_per_token,
        bytes_per_token=done.bytes_per_token,
        joules=energy.joules,
        joules_source=energy.source,
    )


@dataclass
class _Counts:
    """What was scored so far."""

    tokens: int = 0
    bytes: int = 0
    words: int = 0
    documents: int = 0


def _check(nats: float, counts: _Counts) -> None:
    if not counts.tokens or not counts.bytes:
        raise DataError("there is no token to score: the tokenizer has no begin or end token and the text is too short")
    if not math.isfinite(nats):
        raise CheckpointError(f"the model's predictions sum to {nats} nats, not a number: its weights are damaged")


class _Reader:
    """Reads batches of windows and keeps account of who woke."""

    def __init__(self, model: Cortex, choices: EvaluationOptions) -> None:
        self.model = model
        self.setting, self.mixing = choices.setting, choices.mixing
        self.heads = 0
        num_layers = int(model.config.num_hidden_layers)
        check_layers((layer for layer, _ in self.setting.leave), num_layers)
        self._left = torch.zeros(num_layers + 1, dtype=torch.long)  # tokens by the layers they passed
        self.meter = ActivityMeter(account(model, precision=stored(model), awake=self.setting.awake))

    def passed(self) -> tuple[float, ...]:
        """The share of tokens that passed each layer."""
        beyond = self._left.flip(0).cumsum(0).flip(0)  # those that passed so many layers, or more
        return tuple((beyond[1:] / beyond[0].clamp_min(1)).tolist())

    def scores(self, batch: Int[Tensor, "B T+1"], num_scored: int) -> Scores:
        """Of the last `num_scored` tokens of each row; which are likeliest is what the model says without memory."""
        rows = batch.to(self.model.device)
        if self.setting.leave:
            read = read_leaving(self.model, rows[:, :-1], num_scored, self.setting)
            hidden, depths, routings = read.hidden, read.depths.cpu(), read.routings
        else:
            output = self.model.model(rows[:, :-1], use_cache=False, setting=self.setting)
            hidden, routings = output.last_hidden_state[:, -num_scored:].flatten(0, 1), output.routings
            depths = torch.full((len(hidden),), len(self._left) - 1)
        self.meter.add(routings, tokens=rows.shape[1] - 1, sequences=len(rows), logits=num_scored)
        self._left += torch.bincount(depths, minlength=len(self._left))
        exits = sum(int((depths >= layer).sum()) for layer, _ in self.setting.leave)
        self.heads += exits + int((depths == len(self._left) - 1).sum())
        scores = score(hidden, self.model.lm_head, rows[:, -num_scored:].flatten())
        if self.mixing is None:
            return scores
        return replace(scores, log_probabilities=self._recalled(self.mixing, rows[0].tolist(), hidden))

    def _recalled(self, mixing: Mixes, ids: list[int], hidden: Tensor) -> Float[Tensor, " N"]:
        """Log-probabilities of the last of `ids`, one for each state (N, D), with what memory says of each."""
        first = len(ids) - len(hidden)
        if first == 1:  # a document begins
            mixing.cut(0)
        found = []
        for at, states in zip(range(0, len(hidden), _ROWS), hidden.split(_ROWS), strict=True):
            seen = ids[: first + at + len(states)]
            found.append(torch.from_numpy(mixing.score(seen, states, self.model.lm_head(states))))
        return torch.cat(found).float()

    def energy_model(self) -> EnergyModel:
        """The stated one of this device."""
        return energy_model(device=self.model.device.type)


def _spans(
    passages: Iterable[Passage], context: int, stride: int, counts: _Counts
) -> Iterator[tuple[Int[Tensor, " T+1"], int]]:
    """Each window's tokens with the one after it, and how many of the last are scored; counts what they stand for."""
    for passage in passages:
        counts.documents += 1
        counts.bytes += passage.num_bytes
        counts.words += passage.num_words
        for window in windows(len(passage.tokens) - 1, context, stride):
            # A copy: what waits must not keep its whole document.
            yield passage.tokens[window.start : window.stop + 1].clone(), window.num_scored


def _batches(
    spans: Iterable[tuple[Int[Tensor, " T+1"], int]], batch_size: int | None
) -> Iterator[tuple[Int[Tensor, "B T+1"], int]]:
    """Windows of one shape together, so that nothing is padded: what is read, and wakes units, is text."""
    waiting: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    num_waiting = 0
    for tokens, num_scored in spans:
        key = len(tokens), num_scored
        waiting[key].append(tokens)
        num_waiting += len(tokens)
        if len(waiting[key]) >= (batch_size or max(1, _BATCH_TOKENS // len(tokens))):
            rows = waiting.pop(key)
            num_waiting -= sum(map(len, rows))
            yield torch.stack(rows), num_scored
        if num_waiting >= _WAITING_TOKENS:
            yield from _flush(waiting)
            num_waiting = 0
    yield from _flush(waiting)


def _flush(waiting: dict[tuple[int, int], list[Tensor]]) -> Iterator[tuple[Int[Tensor, "B T+1"], int]]:
    for (_, num_scored), rows in waiting.items():
        yield torch.stack(rows), num_scored
    waiting.clear()
