"""Teaching: a text becomes lessons, each read once by the model, which writes down what it thought at every token.

Nothing in the model changes. A lesson longer than the model's context is cut at ends of sentences, or where that
cannot be between tokens; lessons of one length are read together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pragnosia.errors import CheckpointError, StoreError
from pragnosia.model.cortex import Cortex
from pragnosia.store.episode import LONGEST, Episode

_TOGETHER = 4096  # tokens read at once
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")


@dataclass(frozen=True)
class Piece:
    """A text that fits in the context."""

    text: str
    tokens: list[int]
    starts: list[int]


class Teacher:
    """Reads lessons with one model and its tokenizer."""

    def __init__(self, model: Cortex, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.room = min(int(model.config.max_position_embeddings), LONGEST)

    def lessons(self, text: str, source: str = "") -> list[Episode]:
        """A text as episodes, several where it is longer than the context. Raises StoreError for none."""
        return self.read(self.pieces(text), source)

    def pieces(self, text: str) -> list[Piece]:
        """What the model can read at once. Raises StoreError for a text without two tokens."""
        stripped = text.strip()
        if not stripped:
            raise StoreError("the lesson is empty; give some text")
        pieces = [piece for part in self._cut(stripped) if len((piece := self._piece(part)).tokens) > 1]
        if not pieces:
            raise StoreError(
                f"the lesson {stripped!r} is one token; give at least two words, so that one can recall the other"
            )
        return pieces

    def read(self, pieces: Iterable[Piece], source: str = "") -> list[Episode]:
        """Each with the states and surprises of one pass, in the order given. Raises CheckpointError for no numbers."""
        given = list(pieces)
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, piece in enumerate(given):
            by_length[len(piece.tokens)].append(number)
        read: dict[int, Episode] = {}
        for length, numbers in by_length.items():
            some = max(1, _TOGETHER // length)
            for first in range(0, len(numbers), some):
                batch = numbers[first : first + some]
                states, surprises = self._states([given[number].tokens for number in batch])
                for row, number in enumerate(batch):
                    piece = given[number]
                    read[number] = Episode(
                        text=piece.text,
                        source=source,
                        tokens=np.array(piece.tokens, np.int32),
                        starts=np.array(piece.starts, np.int32),
                        keys=states[row],
                        surprises=surprises[row],
                    )
        return [read[number] for number in range(len(given))]

    @torch.inference_mode()
    def _states(self, rows: list[list[int]]) -> tuple[Any, Any]:
        """Keys (B, T - 1, D) and surprises (B, T - 1)."""
        tokens = torch.tensor(rows, dtype=torch.long, device=self.model.device)
        hidden: Tensor = self.model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
        surprises = torch.stack(
            [_surprise(self.model.lm_head(row), after) for row, after in zip(hidden, tokens[:, 1:], strict=True)]
        )
        if not bool(torch.isfinite(surprises).all()):
            raise CheckpointError("the model's thoughts are no numbers (NaN): its weights are damaged; copy it again")
        return hidden.to(torch.float16).cpu().numpy(), surprises.to(torch.float16).cpu().numpy()

    def _piece(self, text: str) -> Piece:
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        offsets = [start for start, _ in encoded["offset_mapping"]]
        return Piece(text, list(encoded["input_ids"]), offsets)

    def _cut(self, text: str) -> Iterator[str]:
        """Parts of at most the context's tokens, as few as sentences allow."""
        if len(self._piece(text).tokens) <= self.room:
            yield text
            return
        held = ""
        for sentence in _sentences(text):
            if held and len(self._piece(held + sentence).tokens) > self.room:
                yield held.strip()
                held = ""
            held += sentence
            while len((piece := self._piece(held)).tokens) > self.room:  # one sentence is too long
                cut = max(piece.starts[self.room], 1)
                yield held[:cut].strip()
                held = held[cut:]
        if held.strip():
            yield held.strip()


def _sentences(text: str) -> Iterator[str]:
    """With the white space behind them."""
    start = 0
    for gap in _SENTENCE.finditer(text):
        yield text[start : gap.end()]
        start = gap.end()
    yield text[start:]


def _surprise(logits: Tensor, after: Tensor) -> Tensor:
    """-ln p of what came (T,), of logits (T, V)."""
    return -logits.float().log_softmax(-1).gather(1, after[:, None])[:, 0]
