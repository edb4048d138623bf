"""Ending: why an answer ended where it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Literal, TypeAlias, final

from pragnosia.inference.decode import Decoder
from pragnosia.inference.sampling import Sampling

Ending: TypeAlias = Literal["length", "context", "stop", "energy"]


@final
class Spoken:
    """What a decoder says, token by token; `stopped` then says why it said no more.

    length     there are as many tokens as were asked for
    context    the model's context is full
    stop       a stop token came, or whoever listens had heard enough: a stop text
    energy     nothing is left of the joules it may cost
    """

    def __init__(
        self,
        decoder: Decoder,
        max_new_tokens: int,
        sampling: Sampling,
        stop_tokens: Collection[int] = (),
        spent: Callable[[], bool] | None = None,
    ) -> None:
        """`spent` is asked after each token whether it was the last that could be paid for, and when all is said."""
        self.decoder, self.max_new_tokens = decoder, max_new_tokens
        self.sampling, self.stop_tokens = sampling, stop_tokens
        self.spent = spent
        self.stopped: Ending = "stop"
        self.began: float | None = None
        """When the first token was there, by time.perf_counter."""

    def __iter__(self) -> Iterator[int]:
        begun = len(self.decoder.ids)
        try:
            for token in self.decoder.speak(self.max_new_tokens, self.sampling, self.stop_tokens):
                self.began = self.began or time.perf_counter()
                yield token
                if self.spent is not None and self.spent():
                    self.stopped = "energy"
                    return
        finally:
            if self.spent is not None:  # who leaves early, or stops, has made one token more
                self.spent()
        # Not reached by a listener who leaves early.
        if self.decoder.ids[-1] not in self.stop_tokens:
            enough = len(self.decoder.ids) - begun >= self.max_new_tokens
            self.stopped = "length" if enough else "context"
