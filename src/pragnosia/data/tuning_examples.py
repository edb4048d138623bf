"""Tuning examples: conversations as token ids, and for each position the token that is learned there.

A span of characters becomes every token that holds some of it: the text is tokenised whole, so that ids are those the
model will read, and a token on the border of prompt and answer is part of the answer. What a template writes behind
the end of a turn (a line end, mostly) is not learned: generation has stopped there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from pragnosia.data.conversations import Teaching
from pragnosia.data.rendering import Part, Renderer, Rendering
from pragnosia.data.splitting import check_fraction
from pragnosia.data.tokenizers import plain_encoder, separator
from pragnosia.errors import DataError

IGNORED = -100  # what torch's cross-entropy passes over
_BATCH_CHARS = 1024**2


@dataclass(frozen=True, eq=False)
class TuningExamples:
    """Examples end to end: number i is `offsets[i]` to `offsets[i + 1]` of ids and labels."""

    ids: NDArray[np.int32] = field(repr=False)
    labels: NDArray[np.int32] = field(repr=False)  # aligned with ids: what is to be said at this place, or IGNORED
    offsets: NDArray[np.int64] = field(repr=False)
    origins: NDArray[np.int64] = field(repr=False)  # of each example, the number of its conversation; ascending
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """Of all that is read and learned, in its order."""
        whole = hashlib.sha256()
        for array in (self.ids, self.labels, self.offsets):
            whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()

    def split(self, fraction: float, seed: int = 0) -> tuple[TuningExamples, TuningExamples]:
        """(train, validation): about `fraction` of the conversations, at least one, are held out.

        Which ones their content decides, with the seed: equal conversations stay together, whatever their order.

        Raises:
            DataError: a fraction outside 0 to 0.5, or nothing left to train on.
        """
        check_fraction(fraction)
        keys = self._keys(seed)
        wanted = max(1, round(fraction * len(keys))) if fraction else 0
        held = np.isin(keys, np.sort(keys)[:wanted])
        if held.all():
            raise DataError(
                f"{len(keys)} conversations, all held out for validation; give more that differ, or fraction 0"
            )
        validation = held[np.unique(self.origins, return_inverse=True)[1]]
        return self._only(~validation), self._only(validation)

    def _keys(self, seed: int) -> NDArray[np.uint64]:
        """A hash of each conversation."""
        first = np.flatnonzero(np.diff(self.origins, prepend=-1))
        bounds = self.offsets[np.append(first, len(self))]
        salt = seed.to_bytes(16, "little", signed=True)
        digests = (
            hashlib.blake2b(self.ids[begin:end].tobytes(), digest_size=8, salt=salt).digest()
            for begin, end in pairwise(bounds)
        )
        return np.frombuffer(b"".join(digests), np.uint64)

    def _only(self, kept: NDArray[np.bool_]) -> TuningExamples:
        tokens = np.repeat(kept, self.lengths)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[kept])])
        return replace(
            self, ids=self.ids[tokens], labels=self.labels[tokens], offsets=offsets, origins=self.origins[kept]
        )


def tokenize_conversations(
    teachings: Iterable[Teaching], tokenizer: PreTrainedTokenizerFast, *, learn_prompts: bool = False
) -> TuningExamples:
    """Render and tokenise all of `teachings`, once.

    Raises:
        DataError: none at all, one that cannot be rendered, or a tokenizer with no end token where one is needed.
    """
    encoder, renderer = _Encoder(tokenizer), Renderer(tokenizer, learn_prompts=learn_prompts)
    ids: list[NDArray[np.int32]] = []
    labels: list[NDArray[np.int32]] = []
    origins: list[int] = []
    for batch in _batches(renderer, teachings):
        for example_ids, example_labels in encoder([rendering for _, rendering in batch]):
            ids.append(example_ids)
            labels.append(example_labels)
        origins.extend(origin for origin, _ in batch)
    if not ids:
        raise DataError("no conversations to learn from; give at least one")
    return TuningExamples(
        ids=np.concatenate(ids),
        labels=np.concatenate(labels),
        offsets=np.concatenate([[0], np.cumsum([len(example) for example in ids])]).astype(np.int64),
        origins=np.array(origins, np.int64),
        pad_id=_pad_id(tokenizer),
    )


def _batches(renderer: Renderer, teachings: Iterable[Teaching]) -> Iterator[list[tuple[int, Rendering]]]:
    """Renderings with the number of their conversation, in lists big enough to keep every core at work."""
    batch: list[tuple[int, Rendering]] = []
    chars = 0
    for origin, teaching in enumerate(teachings):
        for rendering in renderer(teaching):
            batch.append((origin, rendering))
            chars += sum(len(part.text) for part in rendering.parts)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class _Encoder:
    """Renderings to (ids, labels)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        whole = plain_encoder(tokenizer)
        self.opening = _opening(whole)
        # A post-processor adds tokens, which is said apart, and trims offsets, which would lose spaces.
        self.engine = Tokenizer.from_str(json.dumps({**json.loads(whole.to_str()), "post_processor": None}))
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = np.array(sorted({*tokenizer.all_special_ids, *added}), np.int32)

    def __call__(self, renderings: list[Rendering]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        texts = [part.text for rendering in renderings for part in rendering.parts]
        encodings = iter(self.engine.encode_batch(texts, add_special_tokens=False))
        for rendering in renderings:
            yield self._example(rendering, [next(encodings) for _ in rendering.parts])

    def _example(self, rendering: Rendering, encodings: list[Encoding]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        opening = np.array(self.opening if rendering.opens else [], np.int32)
        pieces, masks, ends = [opening], [np.zeros(len(opening), np.bool_)], list[int]()
        length = len(opening)
        for part, encoding in zip(rendering.parts, encodings, strict=True):
            ids = np.array(encoding.ids, np.int32)
            mask = np.zeros(len(ids), np.bool_)
            for first, last in self._runs(part, encoding, ids, whole=not rendering.ends):
                mask[first : last + 1] = True
                if rendering.ends and ids[last] not in self.special:
                    ends.append(length + last + 1)
            pieces.append(ids)
            masks.append(mask)
            length += len(ids)
        if length in ends:
            pieces.append(np.array([separator(self.tokenizer)], np.int32))
            masks.append(np.ones(1, np.bool_))
        ids = np.concatenate(pieces)
        labels = np.where(np.concatenate(masks), ids, np.int32(IGNORED))
        if ends:  # the model stops there, though the text goes on
            labels[ends] = separator(self.tokenizer)
        learned = np.flatnonzero(labels != IGNORED)
        if not len(learned):
            raise DataError(f"{rendering.where}: the tokenizer leaves nothing of the answer; use another tokenizer")
        return ids[: learned[-1] + 1], labels[: learned[-1] + 1]  # what follows teaches nothing

    def _runs(
        self, part: Part, encoding: Encoding, ids: NDArray[np.int32], *, whole: bool
    ) -> Iterator[tuple[int, int]]:
        """First and last token of each span; up to the end of the turn, unless the `whole` span is meant."""
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        for begin, end in part.spans:
            inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end))
            if not len(inside):
                continue
            first, last = int(inside[0]), int(inside[-1])
            marks = np.flatnonzero(np.isin(ids[first : last + 1], self.special))
            if not whole and len(marks):
                turn_end = first + int(marks[-1])
                if not part.text[offsets[turn_end, 1] : end].strip():
                    last = turn_end
            yield first, last


def _opening(engine: Tokenizer) -> list[int]:
    """The ids that the tokenizer puts before every text of its own accord."""
    bare = engine.encode("a", add_special_tokens=False).ids
    full = engine.encode("a", add_special_tokens=True).ids
    begin = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return list(full[:begin])


def _pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((candidate for candidate in candidates if isinstance(candidate, int)), 0)
