"""Lessons: which of them a text calls to mind, where in each it could go on, and the evidence for that.

Two stages, since states alone find a lesson only where it is said again word for word. First which lessons: BM25 over
the rarest words of what was said last. Then where in these few: every place at which a word of the lesson begins, or
the last token has just been said too, with what speaks for it (FEATURES).

    weight of a word = its surprise when it was taught [nats] x ln(1 + N / n) / ln(1 + N)       n of N lessons have it
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.words import Word, words_of

RECENT = 64
"""Tokens that count as just said."""
LEADING = 24
"""Words before a place that lead up to it."""
LESSONS = 6
"""Called to mind at a time."""
FEATURES = (
    *("evidence", "coverage", "covered", "novelty", "match", "similarity", "lead"),
    *("novelty asked", "information asked"),
)
"""For going on at a place: the weight of the words just said that lead up to it there, their share, and its square;
whether the word that would come is new here; how many last tokens agree; how near the state is to the one there; by how
much another lesson has more in common with what was said. Where something was asked, right behind a prompt: whether the
word is new, and its weight."""
LEAD = FEATURES.index("lead")
_LOOKED_UP = 12  # words that are looked up: the rarest
_SPREAD = 0.25  # a word in more of the lessons than that finds none of them
_AT_LEAST = 64  # in a store of fewer lessons every word does
TELLING = 6.0
"""A lesson comes to mind by a word of at least this weight [nats], or where LITERAL tokens of it were just said: unless
what stands before them in the lesson is such a word, and was not said. Then only the wording is the lesson's."""
LITERAL = 4
_MATCH = 6
HELD = 1024
"""Lessons that are kept ready."""
_FIRST = 3.0  # surprise of a lesson's first word, of which the model was not asked [nats]


@dataclass(frozen=True, eq=False)
class Lesson:
    """An episode made ready: its words by place."""

    episode: Episode
    keys: Float[np.ndarray, "E D"]
    """Of length 1."""
    words: tuple[Word, ...]
    surprises: Float[np.ndarray, " W"]
    """Of each word [nats]."""
    begins: Int[np.ndarray, " E"]
    """The word that an entry's token begins; -1 where it goes on with one."""
    before: Int[np.ndarray, " E"]
    """How many words stand before it."""

    @classmethod
    def of(cls, episode: Episode) -> Lesson:
        """Make ready."""
        words = tuple(words_of(episode.text))
        starts, stops = (np.array([word[at] for word in words], np.int64) for at in (1, 2))
        tokens = episode.starts[1:].astype(np.int64)
        # a token begins a word if nothing but white space lies between: it may carry that, or be that
        ends = np.append(tokens[1:], len(episode.text))
        first = np.searchsorted(starts, tokens) if words else np.zeros(len(tokens), np.int64)
        begins = np.full(len(tokens), -1, np.int64)
        for entry in np.flatnonzero(first < len(words)):
            if not episode.text[int(tokens[entry]) : int(starts[first[entry]])].strip():
                begins[entry] = first[entry]
        before = np.searchsorted(stops, tokens, side="right") if words else first
        surprises = np.zeros(len(words), np.float32)
        # the word a token ends in; white space behind it is the token's where offsets leave out what stands before
        solid = np.maximum.accumulate([-1 if letter.isspace() else at for at, letter in enumerate(episode.text)])
        last = solid[ends - 1]
        owner = np.searchsorted(stops, last, side="right") if words else first
        belongs = (last >= tokens) & (owner < len(words)) & (np.append(starts, 1 << 40)[owner] <= last)
        np.add.at(surprises, owner[belongs], episode.surprises.astype(np.float32)[belongs])
        if words and int(episode.starts[0]) <= starts[0]:
            surprises[0] += _FIRST
        keys = episode.keys.astype(np.float32)
        keys /= np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)
        return cls(episode, keys, words, surprises, begins, before)

    def word_before(self, entry: int, ids: Sequence[int]) -> slice:
        """The word at which the tokens up to an entry's own cease to be the last of `ids`; empty where they do not."""
        tokens, run = self.episode.tokens, 0
        while run <= entry and run < len(ids) and tokens[entry - run] == ids[-1 - run]:
            run += 1
        at = entry - run
        if at < 0 or run == len(ids):
            return slice(0, 0)
        start, stop = (int(place) for place in self.episode.starts[at : at + 2])
        of_token = [n for n, word in enumerate(self.words) if word.start < stop and word.stop > start]
        return slice(of_token[-1], of_token[-1] + 1) if of_token else slice(0, 0)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the lessons called to mind could go on."""

    lessons: tuple[Lesson, ...]
    lesson: Int[np.ndarray, " P"]
    position: Int[np.ndarray, " P"]
    """The entry: what it brings back is the token behind it."""
    tokens: Int[np.ndarray, " P"]
    features: Float[np.ndarray, "P F"]
    said: tuple[str, ...] = ()
    """The words that called them."""


class Lessons:
    """The lessons of a store, called to mind by text."""

    def __init__(self, store: EpisodicStore) -> None:
        self.store = store
        self._held: OrderedDict[int, Lesson] = OrderedDict()
        self._weighed: dict[int, NDArray[np.float32]] = {}
        self._asked: tuple[tuple[str, ...], tuple[int, ...]] = ((), ())
        self.refresh()

    def refresh(self) -> None:
        """Notice what was written or forgotten since."""
        self._version = self.store.version
        self.count = self._version[0]
        self._spread: dict[str, int] = {}
        self._held.clear()
        self._weighed.clear()
        self._asked = ((), ())

    def called(self, said: str) -> tuple[Lesson, ...]:
        """The lessons that share rare words with what was said, the nearest first."""
        words = dict.fromkeys(word.text for word in words_of(said))
        most = max(_AT_LEAST, int(_SPREAD * self.count))
        known = [(spread, word) for word in words if 0 < (spread := self.spread(word)) <= most]
        asked = tuple(word for _, word in sorted(known)[:_LOOKED_UP])
        if asked != self._asked[0]:
            self._asked = asked, tuple(id_ for id_, _ in self.store.by_words(asked, LESSONS))
        ready = (self._ready(id_) for id_ in self._asked[1])
        return tuple(lesson for lesson in ready if lesson is not None)

    def places(
        self, said: str, ids: Sequence[int], state: NDArray[np.float32], *, asked: bool = False
    ) -> Places | None:
        """Where lessons could go on behind `ids`, whose end reads `said`; `state` (D,) is the model's there.

        `asked`: a prompt ends here. None where nothing comes to mind.
        """
        words = {word.text for word in words_of(said)}
        heard = [(lesson, self._heard(lesson, words)) for lesson in self.called(said)]
        heard = [(lesson, shared) for lesson, shared in heard if self._tells(lesson, shared, ids)]
        if not heard:
            return None
        lessons = tuple(lesson for lesson, _ in heard)
        direction = state / max(float(np.linalg.norm(state)), 1e-12)
        centre = np.concatenate([lesson.keys for lesson in lessons]).mean(0)
        found = [self._of(lesson, shared, ids, direction - centre, centre, asked) for lesson, shared in heard]
        owner = np.repeat(np.arange(len(lessons)), [len(positions) for positions, _ in found])
        position = np.concatenate([positions for positions, _ in found])
        if not len(position):
            return None
        tokens = np.array([lessons[at].episode.tokens[p + 1] for at, p in zip(owner, position, strict=True)], np.int64)
        features = np.concatenate([rows for _, rows in found])
        features[:, LEAD] -= features[:, LEAD].max()
        return Places(lessons, owner, position, tokens, features, self._asked[0])

    def spread(self, word: str) -> int:
        """In how many lessons it stands."""
        if word not in self._spread:
            self._spread[word] = self.store.lessons_with(word)
        return self._spread[word]

    def _of(
        self,
        lesson: Lesson,
        shared: NDArray[np.bool_],
        ids: Sequence[int],
        direction: NDArray[np.float32],
        centre: NDArray[np.float32],
        asked: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Its places and their features."""
        weights = self._weights(lesson)
        tokens = lesson.episode.tokens
        match = _agreement(tokens, ids)
        positions = np.flatnonzero((lesson.begins >= 0) | (match > 0))
        first, last = np.maximum(lesson.before[positions] - LEADING, 0), lesson.before[positions]
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        heard_sums = np.concatenate([[0.0], np.cumsum(weights * shared)])
        evidence = heard_sums[last] - heard_sums[first]
        leading = sums[last] - sums[first]
        begun = lesson.begins[positions]
        novel = (begun >= 0) & ~np.append(shared, True)[begun]
        new = np.append(np.where(shared, 0, weights), 0)
        near = lesson.keys[positions] - centre
        near = near @ direction / np.maximum(np.linalg.norm(near, axis=1) * np.linalg.norm(direction), 1e-6)
        coverage = evidence / np.maximum(leading, 1e-6)
        columns = (
            np.minimum(evidence, 40) / 10,
            coverage,
            coverage**2,
            novel,
            match[positions] / 3,
            near,
            np.full(len(positions), heard_sums[-1] / 10),  # `places` takes away the most of them
            novel & asked,
            np.minimum(new[begun], 30) / 10 * asked,
        )
        return positions, np.stack([np.asarray(column, np.float32) for column in columns], 1)

    def _heard(self, lesson: Lesson, words: set[str]) -> NDArray[np.bool_]:
        """Of a lesson's words, whether they were said."""
        return np.array([word.text in words for word in lesson.words], bool)

    def _tells(self, lesson: Lesson, shared: NDArray[np.bool_], ids: Sequence[int]) -> bool:
        """Whether what was said is about the lesson: what any two texts share is not."""
        telling = self._weights(lesson) >= TELLING
        if (telling & shared).any():
            return True
        literal = np.flatnonzero(_agreement(lesson.episode.tokens, ids) >= LITERAL)
        return any(not telling[lesson.word_before(int(entry), ids)].any() for entry in literal)

    def _weights(self, lesson: Lesson) -> NDArray[np.float32]:
        """Of its words: what was common knowledge, or stands in every lesson, tells nothing."""
        id_, count = lesson.episode.id, max(self.count, 1)
        if id_ not in self._weighed:
            rare = [math.log1p(count / max(self.spread(word.text), 1)) / math.log1p(count) for word in lesson.words]
            self._weighed[id_] = lesson.surprises * np.array(rare, np.float32)
        return self._weighed[id_]

    def _ready(self, id_: int) -> Lesson | None:
        """None where another process has just made it forgotten."""
        if id_ in self._held:
            self._held.move_to_end(id_)
            return self._held[id_]
        found = self.store.get([id_])
        if not found:
            return None
        lesson = self._held[id_] = Lesson.of(found[0])
        if len(self._held) > HELD:
            self._weighed.pop(self._held.popitem(last=False)[0], None)
        return lesson


def _agreement(tokens: NDArray[np.int32], ids: Sequence[int]) -> NDArray[np.int64]:
    """How many tokens up to each entry, its own included, are the last that were read; at most _MATCH."""
    count = np.zeros(len(tokens) - 1, np.int64)
    agrees = np.ones(len(tokens) - 1, bool)
    for back in range(min(_MATCH, len(ids), len(tokens) - 1)):
        shifted = np.zeros(len(tokens) - 1, bool)
        shifted[back:] = tokens[: len(tokens) - 1 - back] == ids[-1 - back]
        agrees &= shifted
        if not agrees.any():
            break
        count += agrees
    return count
