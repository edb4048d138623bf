"""Passages: documents as tokens to be scored, with exact counts of the text they stand for; and windows over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pragnosia.data.tokenizers import check_vocabulary, plain_encoder
from pragnosia.errors import DataError

BYTES_PER_TOKEN = 32  # of text, at most: a tokenizer that needs more reads fewer tokens


@dataclass(frozen=True)
class Passage:
    """One document: its tokens behind the one it is read from, and the text that they all but the first stand for."""

    tokens: Int[Tensor, " N+1"]
    num_bytes: int
    num_words: int
    """Between white space, and each line end: WikiText's convention, where a line end is the word <eos>."""


class Passages:
    """Makes passages with one tokenizer. Raises DataError for a tokenizer that a model of `vocab_size` cannot read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise DataError(f"the tokenizer is a {type(tokenizer).__name__}, expected one with a tokenizer.json")
        check_vocabulary(tokenizer, vocab_size)
        self.start = start_token(tokenizer)
        self._engine: Tokenizer = plain_encoder(tokenizer)

    def of(self, documents: Iterable[str], max_bytes: int | None = None) -> Iterator[Passage]:
        """The documents that are not empty, until `max_bytes` of text; a last one is cut between characters.

        Raises DataError for text that is not text, and for none at all.
        """
        if isinstance(documents, str):
            raise DataError("documents is one string; give a list of texts, or data.documents(path) to read a file")
        left, empty = max_bytes, True
        for text in documents:
            encoded = _encoded(text)
            if left is not None:
                encoded = encoded[:left]
                text = encoded.decode(errors="ignore")
                left -= len(encoded)
            if text:
                empty = False
                yield self._passage(text)
            if left == 0:
                break
        if empty:
            raise DataError("there is no text to evaluate on; give at least one document that is not empty")

    def tokens_of(self, text: str) -> tuple[list[int], list[int]]:
        """A text's ids and the character each begins with. Raises DataError for text that is not text."""
        _encoded(text)
        encoding = self._engine.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _passage(self, text: str) -> Passage:
        encoding = self._engine.encode(text, add_special_tokens=False)
        if self.start is None:
            # The first token is only read. Characters it shares with the second are left out: they are not all scored.
            ids, scored = encoding.ids, text[encoding.offsets[0][1] :] if encoding.ids else ""
        else:
            ids, scored = [self.start, *encoding.ids], text
        words = len(scored.split()) + scored.count("\n")
        return Passage(torch.tensor(ids, dtype=torch.long), len(scored.encode()), words)


def opening(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, documents: Iterable[str], tokens: int
) -> tuple[int, int]:
    """How many of the first `tokens` of all documents there are to score, and about how many bytes they stand for.

    Raises DataError as Passages.
    """
    found = num_bytes = 0
    for passage in Passages(tokenizer, vocab_size).of(documents, BYTES_PER_TOKEN * tokens):
        some = passage.tokens[1 : 1 + tokens - found]
        found += len(some)
        if found == tokens:
            return found, num_bytes + len(str(tokenizer.decode(some.tolist(), skip_special_tokens=True)).encode())
        num_bytes += passage.num_bytes
    return found, num_bytes


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What the first token of a document is predicted from: the begin token, else the end token, else nothing."""
    for candidate in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return None


def _encoded(text: str) -> bytes:
    if "\0" in text:
        raise DataError(f"a document is not text: NUL character at {text.index(chr(0))}; expected UTF-8 text")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"a document is not text: lone surrogate at character {error.start}; decode it anew") from None


class Window(NamedTuple):
    """Tokens [start, stop) are read, and the `num_scored` after the first stop - start - num_scored of them scored."""

    start: int
    stop: int
    num_scored: int


def windows(num_inputs: int, context: int, stride: int) -> Iterator[Window]:
    """Every token after the first is scored once: token i + 1 is scored by reading up to token i.

    `num_inputs` are the tokens that are followed by another.
    """
    scored = start = 0
    while scored < num_inputs:
        stop = min(start + context, num_inputs)
        yield Window(start, stop, stop - scored)
        scored = stop
        start += stride
