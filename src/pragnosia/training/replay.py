"""Replay: lessons told again to a model until it has them by heart, through the few slots that are theirs alone.

    loss = mean over lessons of worth x mean over told tokens of -log p(token | lesson so far)
    slot -= rate ease(slot) d loss / d slot                            ease: training/slot_use.py

A token is told where what stands before it in its lesson begins no other lesson: nobody could know it before. A lesson
is by heart when the model, given that beginning, says what is told. The step is plain: one that makes every slot's move
as large as any other's, as Adam does, forgets many times more. A round that costs the old text more than the bound is
undone and the next ones go at half the pace: what is written is never dearer than the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from pragnosia.errors import CheckpointError, ConfigError, TrainingError
from pragnosia.training.slot_use import own_slots

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

    from pragnosia.model.cortex import Cortex

CUE = 3
"""Tokens that a lesson is recognised by, at least."""
BY_HEART = 0.95
"""Of what is told, what must be said right."""
_PATIENCE = 3
"""Rounds that may be undone before the night ends."""
_IDLE = 8
"""Rounds in a row that may bring nothing: no lesson more, and no lower loss."""
_STEPS = 16  # of a round, about, at least: looking how it went costs as much
_TOGETHER = 32  # lessons that are looked at together
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How a night goes."""

    recall: float = 0.95
    """Share of the lessons that are to be known by heart; then it ends."""
    bound: float = 0.05
    """Nats per token by which the loss on old text may rise."""
    slots: int = 256
    """Of a lesson's own, at most."""
    rounds: int = 80
    rate: float = 2e-3
    """Of a step."""
    batch: int = 8
    """Lessons at a time."""
    most: int | None = None
    """Lessons that are replayed, those of most worth; None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ConfigError(f"recall is {self.recall}; it must lie in (0, 1]: the share of lessons known by heart")
        if not self.bound >= 0:
            raise ConfigError(f"bound is {self.bound}; it must be 0 or more: nats per token")
        if not self.rate > 0:
            raise ConfigError(f"rate is {self.rate}; it must be greater than 0")
        for name in ("slots", "rounds", "batch", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")


@dataclass(frozen=True, eq=False)
class Script:
    """Lessons to replay: their tokens, which of them are told, and what each is worth."""

    tokens: Sequence[Int[Tensor, " T"]]
    cues: Sequence[int]
    """Of each, the tokens it is recognised by; the others are told."""
    worths: Float[Tensor, " L"]

    @classmethod
    def of(cls, tokens: Iterable[Sequence[int]], worths: Sequence[float]) -> Script:
        """Worths are made to have mean 1. A lesson has two tokens or more."""
        rows = [torch.tensor(list(row), dtype=torch.long) for row in tokens]
        given = torch.tensor(worths, dtype=torch.float32).clamp_min(1e-3)
        return cls(rows, beginnings([row.tolist() for row in rows]), given / given.mean())

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, lessons: Sequence[int]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Tokens, and where the next one is told; shorter lessons end in padding, which nothing before it sees."""
        rows = pad_sequence([self.tokens[one] for one in lessons], batch_first=True)
        told = torch.zeros(rows.shape, dtype=torch.bool)
        for number, one in enumerate(lessons):
            told[number, self.cues[one] - 1 : len(self.tokens[one]) - 1] = True
        return rows, told

    def batches(self, lessons: Sequence[int], size: int) -> Iterator[Sequence[int]]:
        """The lessons, those of like length together."""
        ordered = sorted(lessons, key=lambda one: len(self.tokens[one]))
        for first in range(0, len(ordered), size):
            yield ordered[first : first + size]


def beginnings(lessons: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens of each lesson it takes to tell it from all others; at least CUE where there are more."""
    shared = [0] * len(lessons)
    ordered = sorted(range(len(lessons)), key=lambda one: tuple(lessons[one]))
    for one, other in pairwise(ordered):
        pairs = zip(lessons[one], lessons[other], strict=False)
        common = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(lessons[one]), len(lessons[other])))
        shared[one], shared[other] = max(shared[one], common), max(shared[other], common)
    return [min(max(common + 1, CUE), len(row) - 1) for common, row in zip(shared, lessons, strict=True)]


def losses(model: Cortex, tokens: Int[Tensor, "B T"], told: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Of each lesson, the mean over what is told [nats]."""
    hidden = model.model(tokens, use_cache=False).last_hidden_state[told]
    each = F.cross_entropy(model.lm_head(hidden).float(), tokens.roll(-1, 1)[told], reduction="none")
    lesson = told.nonzero()[:, 0]
    summed = each.new_zeros(len(tokens)).index_add_(0, lesson, each)
    return summed / told.sum(1).clamp_min(1)


@torch.no_grad()
def by_heart(model: Cortex, script: Script, size: int = 64) -> Bool[Tensor, " L"]:
    """Which lessons the model says by itself once it has their beginning."""
    known = torch.zeros(len(script), dtype=torch.bool)
    for some in script.batches(range(len(script)), size):
        tokens, told = script.batch(some)
        hidden = model.model(tokens, use_cache=False).last_hidden_state[told]
        right = (model.lm_head(hidden).argmax(-1) == tokens.roll(-1, 1)[told]).float()
        hits = right.new_zeros(len(some)).index_add_(0, told.nonzero()[:, 0], right)
        known[list(some)] = hits >= BY_HEART * told.sum(1)
    return known


@torch.no_grad()
def old_loss(model: Cortex, windows: Sequence[Tensor]) -> float:
    """Mean over windows (T,) of text [nats per token]. Raises CheckpointError where it is no number."""
    nats = tokens = 0.0
    for length in sorted({len(window) for window in windows}):
        alike = torch.stack([window for window in windows if len(window) == length])
        for some in alike.split(max(1, 4096 // length)):
            hidden = model.model(some[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden).float().flatten(0, 1)
            nats += float(F.cross_entropy(logits, some[:, 1:].flatten(), reduction="sum"))
            tokens += some[:, 1:].numel()
    if not math.isfinite(nats):
        raise CheckpointError(f"the model's predictions sum to {nats} nats, not a number: its weights are damaged")
    return nats / tokens


@dataclass(frozen=True)
class Replayed:
    """What a night came to."""

    known_before: int
    known: int
    """Lessons by heart."""
    old_loss_before: float
    old_loss: float
    rounds: int
    undone: int
    written: Int[Tensor, " S"]
    """The slots that changed."""
    ended: str
    """recall: as many are known as were asked for; bound: more would cost too much; rounds, or stopped."""


class Replay:
    """One night of a model with long-term memory. Only rows of its table change."""

    def __init__(self, model: Cortex, script: Script, old: Sequence[Tensor], config: ReplayConfig) -> None:
        self.model, self.script, self.old, self.config = model, script, old, config
        self.rows: nn.Parameter = model.model.hippocampus.rows
        self.known = torch.zeros(len(script), dtype=torch.bool)
        self.chosen = torch.zeros(len(self.rows), dtype=torch.bool)
        self.ease = torch.zeros(len(self.rows))

    def choose(self, ease: Float[Tensor, " M"]) -> None:
        """Say which slots may be written: of each lesson that is not known yet those most its own."""
        self.ease, self.known = ease, by_heart(self.model, self.script)
        for some in self.script.batches((~self.known).nonzero()[:, 0].tolist(), _TOGETHER):
            for own in own_slots(self.model, *self.script.batch(some), ease, self.config.slots):
                self.chosen[own] = True

    def run(self, progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False) -> Replayed:
        """Rounds, until the lessons are known, the bound is met, or somebody stops it."""
        config, count = self.config, len(self.script)
        self.model.eval().requires_grad_(requires_grad=False)
        self.rows.requires_grad_(True)
        moved = self.chosen.nonzero()[:, 0]
        kept = start = self.rows.detach()[moved].clone()
        kept_loss = before = old_loss(self.model, self.old)
        kept_known, first = self.known, int(self.known.sum())
        rate, lowest, undone, idle, number = config.rate, math.inf, 0, 0, 0
        draw = torch.Generator().manual_seed(config.seed)
        while True:
            best = int(kept_known.sum())
            if progress is not None:
                progress(best, count)
            ended = self._ended(best, number, undone, idle, stopped=stopped())
            if ended:
                break
            number += 1
            loss = self._round(rate, draw)
            self.known, now = by_heart(self.model, self.script), old_loss(self.model, self.old)
            found = int(self.known.sum())
            if now - before > config.bound:
                self._put(moved, kept)
                rate, undone, self.known = rate / 2, undone + 1, kept_known
                continue
            idle = 0 if found > best or loss < 0.99 * lowest else idle + 1
            lowest = min(lowest, loss)
            if found >= best:
                kept, kept_loss, kept_known = self.rows.detach()[moved].clone(), now, self.known
        self._put(moved, kept)
        self.known, self.rows.grad = kept_known, None
        written = moved[(kept != start).any(1)]
        return Replayed(first, best, before, kept_loss, number, undone, written, ended)

    def _ended(self, best: int, number: int, undone: int, idle: int, *, stopped: bool) -> str:
        """Why the night is over; empty while it is not."""
        if best >= math.ceil(self.config.recall * len(self.script)):
            return "recall"
        if stopped:
            return "stopped"
        if undone >= _PATIENCE:
            return "bound"
        return "rounds" if number >= self.config.rounds or idle >= _IDLE else ""

    @torch.no_grad()
    def _put(self, moved: Int[Tensor, " S"], rows: Float[Tensor, "S D"]) -> None:
        self.rows[moved] = rows

    def _round(self, rate: float, draw: torch.Generator) -> float:
        """Tell every lesson, of a few several times, in an order of its own; the mean loss."""
        parts = list(self.script.batches(range(len(self.script)), self.config.batch))
        parts *= max(1, _STEPS // len(parts))
        total = 0.0
        for at in torch.randperm(len(parts), generator=draw).tolist():
            some = parts[at]
            loss = (losses(self.model, *self.script.batch(some)) * self.script.worths[list(some)]).mean()
            if not bool(loss.isfinite()):
                raise TrainingError(f"the loss of a replay is {float(loss.detach())}; lower --rate")
            total += float(loss.detach()) / len(parts)
            loss.backward()
            rows, slope = own_alone(self.rows.grad, self.chosen)
            with torch.no_grad():
                self.rows.index_add_(0, rows, slope * self.ease[rows, None], alpha=-rate)
            self.rows.grad = None
        return total


def own_alone(slope: Tensor | None, chosen: Bool[Tensor, " M"]) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
    """Of a table's sparse gradient what falls on chosen rows, which may come several times."""
    assert slope is not None
    rows, values = slope._indices()[0], slope._values()
    kept = chosen[rows]
    return rows[kept], values[kept].float()
