"""Sleep: what a model was told becomes what it knows. Episodes are replayed into slots of long-term memory.

    store -> lessons by worth -> slots that are theirs alone -> rounds of replay -> a new model, and its store

The model and the store that were given stay as they are. What comes of a night is a directory of its own, which is
there whole or not at all: the same weights but for the slots that were written, and the same lessons, read anew by this
model and marked `consolidated` where it knows them without the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.checkpoints.writer import new_directory
from pragnosia.data import Joined, Mixture
from pragnosia.errors import ConfigError, DataError, InterruptedTrainingError, StoreError, TrainingError
from pragnosia.inference.loading import load_config, load_model, load_tokenizer
from pragnosia.inference.remembering import header_of
from pragnosia.inference.teaching import Piece, Teacher
from pragnosia.measure.calibration import cut
from pragnosia.store.episode import worth
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import beside
from pragnosia.training.interruption import Interruption
from pragnosia.training.replay import Progress, Replay, ReplayConfig, Replayed, Script, by_heart
from pragnosia.training.slot_use import SlotUse, used
from pragnosia.tuning.rewriting import changed_entries, fill

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.data import Source
    from pragnosia.model.cortex import Cortex
    from pragnosia.store.episode import Episode
    from pragnosia.tuning.rewriting import Pieces

WINDOW = 128
"""Tokens of old text that count as one text."""
READ, HELD_OUT = 256, 32
"""Windows of old text that say which slots it lives by, and others that the loss is measured on."""
LEAST = 8
ROWS = "model.hippocampus.rows"
_DAY = 86400.0
_AT_ONCE = 64  # lessons that are read anew together


@dataclass(frozen=True, kw_only=True)
class SleepReport:
    """What a night came to."""

    source: str
    out: str
    lessons: int
    """In the store."""
    replayed: int
    """Of them, those of most worth: what the night was about."""
    known_before: int
    """Of those, by heart without the store."""
    known: int
    old_loss_before: float
    """On text that is none of the lessons, held out [nats per token]."""
    old_loss: float
    bound: float
    ended: str
    """recall, bound, or rounds: what ended it."""
    rounds: int
    undone: int
    slots_written: int
    slots: int
    seconds: float
    data: str
    keeps_store: bool


def sleep(
    source: str | Path,
    out: str | Path,
    *,
    store: str | Path | None = None,
    data: Sequence[str] = (),
    config: ReplayConfig | None = None,
    keep_store: bool = True,
    progress: Progress | None = None,
) -> SleepReport:
    """Consolidate the store of the model in `source`, into a model at `out`.

    Raises CheckpointError, ConfigError, DataError, StoreError, TrainingError where no lesson can be had within the
    bound, and InterruptedTrainingError; then nothing is at `out`.
    """
    source, out, config = Path(source), Path(out), config or ReplayConfig()
    began = time.perf_counter()
    shape = check_sleeper(source)
    text = Joined(Mixture.parse(list(data)).parts) if data else learned_from(source)
    place = beside(source) if store is None else store
    with EpisodicStore.open(place, header_of(source, shape), readonly=True) as held:
        episodes, limit = list(held.after()), held.header.limit
        if not episodes:
            raise StoreError(f"the store {held.folder} is empty: there is nothing to sleep on; teach something first")
    tokenizer: Any = load_tokenizer(source, shape.vocab_size, shape.tokenizer_digest)
    windows = old_text(tokenizer, text, shape)
    model = load_model(source, torch.float32)
    use = SlotUse.read(source, shape.hippocampus.num_rows)
    held_out = windows[: min(HELD_OUT, len(windows) // 2)]
    if use is None or data:
        taken = torch.zeros(shape.hippocampus.num_rows, dtype=torch.bool) if use is None else use.taken
        read = windows[len(held_out) :]
        use = SlotUse(len(read) * len(read[0]), used(model, read), taken)
    chosen = by_worth(episodes)[: config.most]
    script = Script.of([episode.tokens.tolist() for episode in chosen], [_worth(episode) for episode in chosen])
    replay = Replay(model, script, held_out, config)
    with Interruption() as interruption:
        replay.choose(use.ease)
        night = replay.run(progress, lambda: interruption.asked)
    _check(night, source, config)
    use.taken[night.written] = True
    with new_directory(out) as folder:
        rows = model.model.hippocampus.rows.detach()
        _write_model(source, folder, rows)
        use.write(folder)
        if keep_store:
            _write_store(folder, model, tokenizer, episodes, limit)
    return SleepReport(
        source=str(source),
        out=str(out),
        lessons=len(episodes),
        replayed=len(chosen),
        known_before=night.known_before,
        known=night.known,
        old_loss_before=night.old_loss_before,
        old_loss=night.old_loss,
        bound=config.bound,
        ended=night.ended,
        rounds=night.rounds,
        undone=night.undone,
        slots_written=len(night.written),
        slots=len(rows),
        seconds=time.perf_counter() - began,
        data=text.name,
        keeps_store=keep_store,
    )


def check_sleeper(source: Path) -> Any:
    """The configuration of a model that can sleep. Raises ConfigError for one without long-term memory."""
    shape = load_config(source)
    if shape.hippocampus is None:
        raise ConfigError(
            f"{source} has no long-term memory to sleep into; train a model some of whose feed_forwards are `memory` "
            "(docs/memory.md shows how), or keep the store: it works with any model"
        )
    return shape


def learned_from(source: Path) -> Joined:
    """The texts that a model's own run names. Raises DataError where they are not known, or not there any more."""
    try:
        named = yaml.safe_load((source / "train.yaml").read_text("utf-8"))["data"]["sources"]
        return Joined(Mixture.parse(named).parts)
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):  # DataError is a ValueError
        raise DataError(
            f"what {source} learned from is not known here; name a text that it shall not forget: --data TEXT"
        ) from None


def by_worth(episodes: Sequence[Episode]) -> list[Episode]:
    """Those first that surprised most and were taught most often."""
    return sorted(episodes, key=_worth, reverse=True)


def _worth(episode: Episode) -> float:
    return worth(episode.surprise, episode.repetitions, (time.time() - episode.taught) / _DAY)


def old_text(tokenizer: Any, text: Source, shape: Any) -> list[Tensor]:
    """Its first windows, all of one length. Raises DataError for too little of it."""
    length = min(WINDOW, int(shape.max_position_embeddings))
    wanted = (READ + HELD_OUT) * length
    flat = torch.cat(list(cut(tokenizer, text, int(shape.vocab_size), wanted, length)))
    windows = [window for window in flat.split(length) if len(window) == length]
    if len(windows) < LEAST:
        raise DataError(
            f"{text.name} holds {len(flat)} tokens, too few to know by it what would be forgotten; give a text of at "
            f"least {LEAST * length} (--data)"
        )
    return windows


def _check(night: Replayed, source: Path, config: ReplayConfig) -> None:
    if night.ended == "stopped":
        raise InterruptedTrainingError(
            f"stopped as asked, and nothing was written: {source} and its store are as they were; sleep again, "
            "or shorter: --rounds, --most"
        )
    if night.known <= night.known_before and night.ended != "recall":
        raise TrainingError(
            f"no lesson could be learned within a rise of {config.bound:g} nats per token on old text, and nothing was "
            "written; raise --bound, or change --rate"
        )


def _write_model(source: Path, folder: Path, rows: Tensor) -> None:
    """The source with other rows, in its own precision."""
    plan = blueprint(source)
    stored = rows.to(plan.dtype(ROWS))

    def pieces() -> Iterator[Tensor]:
        yield stored

    def change(*_: object) -> Pieces:
        return pieces

    fill(folder, source, changed_entries(plan, [ROWS], change))


def _write_store(folder: Path, model: Cortex, tokenizer: Any, episodes: Sequence[Episode], limit: int) -> None:
    """The same lessons as this model thinks of them, marked where it needs no store."""
    tokens = [episode.tokens.tolist() for episode in episodes]
    known = by_heart(model, Script.of(tokens, [1.0] * len(tokens)))
    teacher = Teacher(model, tokenizer)
    header = header_of(folder, model.config, limit)
    with EpisodicStore.open(beside(folder), header) as fresh:
        for first in range(0, len(episodes), _AT_ONCE):
            some = episodes[first : first + _AT_ONCE]
            read = teacher.read([Piece(one.text, one.tokens.tolist(), one.starts.tolist()) for one in some])
            marks = known[first : first + _AT_ONCE].tolist()
            # a lesson finds its words by what they surprised when they were taught: only its keys are new
            fresh.write(
                [replace(one, keys=anew.keys, id=0, consolidated=mark)
                 for one, anew, mark in zip(some, read, marks, strict=True)]
            )  # fmt: skip
