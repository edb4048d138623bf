"""Remembering: one model's episodic store, from lessons in to what comes to mind; opened when first needed.

The store lies beside the model (MODEL/episodes) unless named, and is opened only to be read until something is taught.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.data import vocabulary_digest
from pragnosia.errors import ConfigError, StoreError
from pragnosia.inference.companion import Companion
from pragnosia.inference.dial import model_print
from pragnosia.inference.lessons import FEATURES, HELD
from pragnosia.inference.mixing import Memories, Mixes, Mixing
from pragnosia.inference.recollection import weighed
from pragnosia.inference.teaching import Piece, Teacher
from pragnosia.model.cortex import Cortex
from pragnosia.store.episodes import LIMIT, EpisodicStore, holds_store
from pragnosia.store.neighbours import FLAT
from pragnosia.store.opening import Header, beside
from pragnosia.store.said import lessons_of
from pragnosia.store.words import words_of
from pragnosia.units import MIB

_FAISS = 48 * MIB  # its code
_AT_ONCE = 64  # lessons that one transaction keeps
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Taught:
    """What became of a text."""

    ids: tuple[int, ...]
    """Of its lessons."""
    tokens: int
    cut: int
    """Texts that were longer than the context, and became several lessons."""
    repeated: int
    """Lessons that were known before."""
    evicted: tuple[int, ...]
    """Lessons that were forgotten for room."""
    passed_over: int = 0
    """Texts of a single token, where there were others: nothing in them could recall anything."""


@dataclass(frozen=True)
class Recalled:
    """A lesson that comes to mind, and why."""

    id: int
    text: str
    source: str
    taught: float
    repetitions: int
    words: tuple[str, ...]
    """That it shares with what was said."""
    similarity: float
    """Of the states, at the place where it would go on."""
    weight: float
    """The share of the next token's probability that it would have."""
    brings: str
    """What it would go on with."""


@dataclass(eq=False)
class Remembering:
    """What one model was taught. Without a folder or a tokenizer there is nowhere to keep anything."""

    model: Cortex
    tokenizer: Any
    folder: Path | None
    header: Header | None = None
    companion: Companion | None = None
    """A one-pass learner in the place of memory."""
    _memories: Memories | None = field(default=None, init=False)
    _directory: Path | None = field(default=None, init=False)
    _exact: bool = field(default=False, init=False)
    _left_out: bool = field(default=False, init=False)

    @classmethod
    def beside(
        cls, model: Cortex, tokenizer: Any, directory: str | Path, store: str | Path | bool, *, exact: bool
    ) -> Remembering:
        """Of a model that was loaded from `directory`. Raises StoreError for a store that is named in exact mode."""
        named = not isinstance(store, bool)
        if exact and named:
            raise StoreError("exact mode gives another library's logits bit for bit: leave the store out, or exact")
        if tokenizer is None or store is False or exact:
            nowhere = cls(model, tokenizer, None)
            nowhere._exact, nowhere._left_out = exact, store is False
            return nowhere
        folder = beside(directory) if isinstance(store, bool) else Path(store)
        made = cls(model, tokenizer, folder)
        made._directory = Path(directory)
        return made

    def memories(self, *, write: bool = False, limit: int | None = None) -> Memories:
        """The open store. Raises StoreError."""
        if self._left_out:
            raise StoreError(
                "the store was left out (--no-memory, store=False): nothing is kept, nothing comes to mind"
            )
        if self.folder is None:
            raise StoreError("there is nowhere to keep lessons: load the model from its directory, with a tokenizer")
        if write or self._memories is None:
            if self.header is None:
                assert self._directory is not None
                self.header = header_of(self._directory, self.model.config)
            if self._memories is not None and self._memories.store is not None:
                self._memories.store.close()
            store = EpisodicStore.open(self.folder, self.header, readonly=not write, limit=limit)
            self._memories = Memories(store, self.tokenizer, self.header.width)
        return self._memories

    def mixing(self, *, cache: bool = False, leaving: bool = False) -> Mixes | None:
        """For a new text; None where nothing was taught. Raises ConfigError for tokens that are to leave early."""
        if self.companion is not None:
            return self._accompanied(cache=cache, leaving=leaving)
        if cache and self._exact:
            raise ConfigError("exact mode gives another library's logits bit for bit: leave the cache out, or exact")
        there = self.folder is not None and holds_store(self.folder)
        if not there and not cache:
            return None
        memories = self.memories() if there else Memories(None, self.tokenizer, int(self.model.config.hidden_size))
        mixing = memories.mixing(cache=cache)
        if mixing is not None and leaving:
            raise ConfigError(
                "a token that leaves early has no state to recall by; leave the exit confidence out, or the store "
                "(--no-memory, store=False)"
            )
        return mixing

    def accompany(self, learner: str | Path, *, learn: bool = False) -> None:
        """From now on a one-pass learner shares in the next token. Raises ConfigError, CheckpointError."""
        if self._exact:
            raise ConfigError("exact mode gives another library's logits bit for bit: leave the learner out, or exact")
        if self.tokenizer is None:
            raise ConfigError("a one-pass learner reads text, and this model came without a tokenizer")
        self.companion = Companion.open(learner, self.tokenizer, learn=learn)

    def _accompanied(self, *, cache: bool, leaving: bool) -> Companion:
        if cache or (self.folder is not None and holds_store(self.folder)):
            raise ConfigError(
                "a learner beside the model and its memory exclude each other: leave the cache out, and "
                "the store (--no-memory, store=False)"
            )
        if leaving:
            raise ConfigError(
                "a token that leaves early is nobody's to share; leave the exit confidence out, or the "
                "learner beside the model"
            )
        assert self.companion is not None
        self.companion.cut(0)
        return self.companion

    def teach(
        self, texts: Iterable[str], source: str = "", *, limit: int | None = None, told: Tell | None = None
    ) -> Taught:
        """Keep what texts say, each at least one lesson. Raises StoreError; what was kept before stays."""
        teacher = Teacher(self.model, self.tokenizer)
        given = list(texts)
        pieces: list[Piece] = []
        cut = passed_over = 0
        for text in given:
            try:
                parts = teacher.pieces(text)
            except StoreError:  # a rule or a bullet of a file; a lesson that stands alone is told of
                if len(given) == 1:
                    raise
                passed_over += 1
                continue
            cut += len(parts) > 1
            pieces += parts
        if not pieces:
            raise StoreError("there is no lesson in it; give texts of at least two words")
        store = self._writable(limit)
        ids: list[int] = []
        repeated: list[int] = []
        evicted: list[int] = []
        for first in range(0, len(pieces), _AT_ONCE):
            written = store.write(teacher.read(pieces[first : first + _AT_ONCE], source))
            ids += written.ids
            repeated += written.repeated
            evicted += written.evicted
            if told is not None:
                told(min(first + _AT_ONCE, len(pieces)), len(pieces))
        tokens = sum(len(piece.tokens) for piece in pieces)
        return Taught(tuple(ids), tokens, cut, len(repeated), tuple(evicted), passed_over)

    @torch.inference_mode()
    def recall(self, text: str, top: int = 5) -> list[Recalled]:
        """What would come to mind behind `text`, where it ends a prompt. Raises StoreError."""
        if not text.strip():
            raise StoreError("nothing can be recalled by an empty text; give the beginning of something")
        memories = self.memories()
        ids = list(self.tokenizer(text)["input_ids"])[-self.context :]
        hidden = self.model.model(torch.tensor([ids], device=self.model.device), use_cache=False).last_hidden_state
        mixing = memories.mixing()
        if mixing is None:
            return []
        mixing.asked = True
        mixing.mix(ids, hidden[0, -1], self.model.lm_head(hidden[:, -1]))
        return _explained(mixing, text, top, memories.spoken)

    def forget(self, what: str | int) -> list[int]:
        """By text or id; the ids that are gone. Raises StoreError where there is none."""
        store = self._writable()
        gone = store.forget([what] if isinstance(what, int) else lessons_of(store, what))
        if not gone:
            raise StoreError(
                f"the store {self.folder} holds no lesson {what!r}; `recall` shows what it holds, forget takes the "
                "whole text of one, or its id"
            )
        return gone

    @property
    def context(self) -> int:
        """Tokens that the model holds."""
        return int(self.model.config.max_position_embeddings)

    def _writable(self, limit: int | None = None) -> EpisodicStore:
        store = self.memories(write=True, limit=limit).store
        assert store is not None
        return store


def room_of(directory: str | Path, store: str | Path | bool) -> int:
    """Bytes of memory that a store takes once it is asked: keys that are compared one by one, lessons made ready."""
    folder = beside(directory) if isinstance(store, bool) else Path(store)
    if store is False or not holds_store(folder):
        return 0
    with EpisodicStore.peek(folder) as held:
        entries, width = held.num_entries, held.header.width
        lessons = min(held.version[0], HELD) * entries // max(held.version[0], 1)
    index = 2 * (width + 16) * entries + _FAISS if entries > FLAT else 0
    return 4 * width * (2 * min(entries, FLAT) + lessons) + 24 * entries + index


def header_of(directory: str | Path, config: Any, limit: int = LIMIT) -> Header:
    """What a store of this model says of it."""
    file = gguf_in(directory)
    model = model_print(directory) if file is None else _file_print(file)
    vocabulary = vocabulary_digest(directory) or ""
    return Header(model=model, tokenizer=vocabulary[:20], width=int(config.hidden_size), limit=limit)


def _file_print(file: Path) -> str:
    """A short name of one file's content: its size and samples of it."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(16):
            opened.seek(size * number // 16)
            digest.update(opened.read(4096))
    return digest.hexdigest()[:20]


def _explained(mixing: Mixing, text: str, top: int, spoken: Callable[[Sequence[int]], str]) -> list[Recalled]:
    """Each lesson once, by all that it would have of the next token."""
    places = mixing.shares.weighed
    if places is None:
        return []
    near = FEATURES.index("similarity")
    shares = weighed(places.features)
    heard = {word.text for word in words_of(text)}
    found = []
    for number, lesson in enumerate(places.lessons):
        own = [at for at in range(len(shares)) if places.lesson[at] == number]
        if not own:
            continue
        best = max(own, key=lambda at: shares[at])
        episode, position = lesson.episode, int(places.position[best])
        found.append(
            Recalled(
                id=episode.id,
                text=episode.text,
                source=episode.source,
                taught=episode.taught,
                repetitions=episode.repetitions,
                words=tuple(dict.fromkeys(word.text for word in lesson.words if word.text in heard)),
                similarity=float(places.features[best, near]),
                weight=float(sum(shares[at] for at in own)),
                brings=spoken([int(token) for token in episode.tokens[position + 1 :]]).strip(),
            )
        )
    return sorted(found, key=lambda one: -one.weight)[:top]
