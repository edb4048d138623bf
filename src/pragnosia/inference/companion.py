"""A one-pass learner beside a model, as a fast hippocampus: what both say of the next token, as one distribution.

    log p(t) = w_1 log p_1(t) + w_2 log p_2(t) - log Z            p_1 the model's, p_2 the learner's
    dw_i     = rate (log p_i(token) - E_p[log p_i]) / sqrt(n)     while given text is heard, n tokens at a time

The learner (model/coincidence.py) reads bytes, the model tokens of any tokenizer: p_2 of a token is that of its bytes.
Only the model's 64 likeliest tokens are weighed, all where a token is a byte; they share what the model gave them
together, and the rest keeps what it has. There is a pair of weights for each of eight degrees of how sure the learner
is of its likeliest token, as it is to be believed where it has seen a text before. Mixing in logarithms with weights
that learn online: Mattern 2012, arXiv 1203.4853.

N or T tokens, V vocabulary, K candidates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.inference.effort import Effort
from pragnosia.inference.one_pass import check_learner, load
from pragnosia.learning.coincidence import Bytes, byte_pieces
from pragnosia.model.coincidence import CoincidenceForCausalLM

DEGREES, CANDIDATES = 8, 64
TOGETHER = 32
"""Tokens by whose slopes weights move at once."""
RATE = 0.2
FLOOR = -12.0
"""Of log p: beyond it a token that came after all would throw the weights about."""
BOUNDS = 0.0, 2.0
"""Of weights."""


@dataclass(eq=False)
class Companion:
    """Of one text at a time; mixes as inference/mixing.py does, in its place.

    The weights and, with `learn`, what the learner took in stay from text to text, in memory only. What a model itself
    says teaches nobody.
    """

    learner: CoincidenceForCausalLM
    alphabet: Bytes
    """The learner's ids of bytes."""
    tokenizer: Any
    """The model's."""
    learn: bool = False
    rate: float = RATE
    asked: bool = field(default=False, init=False)

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Any, *, learn: bool = False) -> Companion:
        """The learner that lies in a folder. Raises ConfigError, CheckpointError."""
        check_learner(folder)
        learner, own = load(Path(folder))
        return cls(learner, Bytes(own), tokenizer, learn)

    def __post_init__(self) -> None:
        self.weights = torch.full((DEGREES, 2), 0.5)
        """Of the model and of the learner."""
        self._spelled = [None if one is None else self._ids(one) for one in token_bytes(self.tokenizer)]
        self._first = torch.tensor([-1 if one is None or not len(one) else int(one[0]) for one in self._spelled])
        self._single = torch.tensor([one is not None and len(one) == 1 for one in self._spelled])
        self._known = self._first >= 0
        self._bytewise = bool(self._single[self._known].all())
        if not self._known.any():
            raise ConfigError("no token of the model stands for bytes: a one-pass learner cannot be beside it")
        self.cut(0)

    def _ids(self, spelled: bytes) -> Tensor:
        return torch.from_numpy(self.alphabet.ids[np.frombuffer(spelled, np.uint8)])

    def cut(self, length: int) -> None:
        """The text goes on differently from there: it is heard again."""
        del length
        self._seen: list[int] = []
        self._state = self.learner.opening()
        _, self._behind, _ = self.learner.read(torch.zeros(0, dtype=torch.int64), self._state, rows=1)

    def heard(
        self, ids: Sequence[int], states: Float[Tensor, "N D"], start: int, head: Callable[[Tensor], Tensor]
    ) -> None:
        """A given text's states, those of ids[start : start + N]: weights move by what followed."""
        after = list(ids[start + 1 : start + 1 + len(states)])
        self._catch_up(ids[: start + 1])
        if after:
            self._judged(after, head(states[: len(after)]))

    def mix(self, ids: Sequence[int], state: Float[Tensor, " D"], logits: Float[Tensor, "1 V"]) -> Float[Tensor, "1 V"]:
        """Log-probabilities of the token behind `ids`."""
        del state
        self._catch_up(ids)
        ours = logits.float().log_softmax(-1).cpu()
        candidates = self._candidates(ours[0])
        mass = ours[:, candidates].logsumexp(-1)
        mixed, _ = self._mixed(_likened(ours[:, candidates], self._theirs(candidates)[None]))
        ours[:, candidates] = mixed + mass
        return ours.to(logits.device)

    def follows(self, state: Float[Tensor, " D"], token: int) -> None:
        """The model's own word: nothing is learned of it."""

    def score(
        self, ids: Sequence[int], states: Float[Tensor, "N D"], logits: Float[Tensor, "N V"]
    ) -> NDArray[np.float64]:
        """ln p of the last N of `ids`, each by what was before it; those before them were heard."""
        first = len(ids) - len(states)
        if not self._seen:
            self._catch_up(ids[:first])
        return self._judged(list(ids[first:]), logits)

    def effort(self) -> Effort:
        """Not counted: the learner multiplies no matrices."""
        return Effort()

    def _catch_up(self, ids: Sequence[int]) -> None:
        """Hear what is new of a text, from its beginning where it is another."""
        known = len(self._seen)
        if known > len(ids) or list(ids[:known]) != self._seen:
            self.cut(0)
        self._listen(ids[len(self._seen) :], learn=False)

    def _listen(self, tokens: Sequence[int], *, learn: bool) -> None:
        spelled = [one for token in tokens if (one := self._spelled[token]) is not None]
        self._seen += tokens
        if spelled and len(read := torch.cat(spelled)):
            _, self._behind, self._state = self.learner.read(read, self._state, learn=learn, rows=1)

    def _candidates(self, ours: Float[Tensor, " V"]) -> Int[Tensor, " K"]:
        if self._bytewise:
            return self._known.nonzero()[:, 0]
        # an output may have rows for which there is no token
        there = ours[: len(self._known)].masked_fill(~self._known[: len(ours)], -torch.inf)
        return there.topk(min(CANDIDATES, int(self._known.sum()))).indices

    def _theirs(self, candidates: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Log p of each by the learner: of all its bytes."""
        said = self._behind[0, self._first[candidates]].float()
        longer = (~self._single[candidates]).nonzero()[:, 0]
        pieces = [one for token in candidates[longer].tolist() if (one := self._spelled[token]) is not None]
        said[longer] = self.learner.weigh(pieces, self._state)
        return said

    def _hear(
        self, tokens: Sequence[int], chances: Float[Tensor, "T V"]
    ) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]:
        """Candidates for each of some tokens that follow, the learner's log p of each; then the tokens are heard."""
        if self._bytewise and bool(self._known[list(tokens)].all()):  # all at once
            read = self._first[list(tokens)]
            _, behind, self._state = self.learner.read(read, self._state, learn=self.learn, rows=len(read))
            before, self._behind = torch.cat([self._behind, behind[:-1]]), behind[-1:]
            self._seen += tokens
            candidates = self._candidates(chances[0])
            return candidates.expand(len(tokens), -1), before[:, self._first[candidates]].float()
        among, said = [], []
        for token, ours in zip(tokens, chances, strict=True):
            among.append(self._candidates(ours))
            said.append(self._theirs(among[-1]))
            self._listen([token], learn=self.learn)
        return torch.stack(among), torch.stack(said)

    def _mixed(self, both: Float[Tensor, "T K 2"]) -> tuple[Float[Tensor, "T K"], Int[Tensor, " T"]]:
        """Log p among candidates, and degrees."""
        degrees = (both[..., 1].amax(-1).exp() * DEGREES).long().clamp(max=DEGREES - 1)
        return (both * self.weights[degrees][:, None]).sum(-1).log_softmax(-1), degrees

    @torch.inference_mode()
    def _judged(self, tokens: Sequence[int], logits: Float[Tensor, "N V"]) -> NDArray[np.float64]:
        """ln p of each token, which is then heard; weights move after every few."""
        scores = []
        for begin in range(0, len(tokens), TOGETHER):
            some = tokens[begin : begin + TOGETHER]
            chances = logits[begin : begin + TOGETHER].float().log_softmax(-1).cpu()
            came = torch.tensor(some)[:, None]
            candidates, theirs = self._hear(some, chances)
            ours = chances.gather(1, candidates)
            both = _likened(ours, theirs)
            mixed, degrees = self._mixed(both)
            there = candidates == came
            weighed, place = there.any(1), there.long().argmax(1, keepdim=True)
            said = mixed.gather(1, place)[:, 0] + ours.logsumexp(1)
            scores.append(torch.where(weighed, said, chances.gather(1, came)[:, 0]).double().numpy())
            wish = both.gather(1, place[..., None].expand(-1, -1, 2))[:, 0] - (mixed.exp()[..., None] * both).sum(1)
            slopes = torch.zeros(DEGREES, 2).index_add_(0, degrees[weighed], wish[weighed])
            counts = torch.bincount(degrees[weighed], minlength=DEGREES).clamp(min=1)
            self.weights = (self.weights + self.rate * slopes / (TOGETHER * counts.sqrt()[:, None])).clamp(*BOUNDS)
        return np.concatenate(scores)


def _likened(ours: Float[Tensor, "T K"], theirs: Float[Tensor, "T K"]) -> Float[Tensor, "T K 2"]:
    """Log p of both among candidates, of which nothing is too unlikely."""
    return torch.stack([ours, theirs], -1).log_softmax(1).clamp(min=FLOOR)


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """What each token stands for; None for special ones. Of byte-level and of SentencePiece-like vocabularies."""
    decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    table = {piece: value for value, piece in enumerate(byte_pieces())} if "ByteLevel" in decoder else None
    special = set(tokenizer.all_special_ids)
    return [
        None if number in special or piece is None else _spelled(piece, table)
        for number, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    ]


def _spelled(piece: str, table: dict[str, int] | None) -> bytes:
    if table is not None:  # an added token is written as it is
        return bytes(table[letter] for letter in piece) if all(map(table.__contains__, piece)) else piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()
