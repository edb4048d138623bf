"""Neighbouring tokens through some of a model's layers in one compiled call: the structure of source/span.hpp.

A weight is read once for up to four tokens, and each token's numbers are bit for bit those of `step.run`. Who fills
this in (inference/ladder.py) keeps the tensors alive.
"""

from __future__ import annotations

import ctypes

from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.step import ADDRESS, WHOLE, Step, UnitUnreadableError

MOST = 32
"""Tokens of a span, at most."""


class Span(ctypes.Structure):
    """Layers [start, end) of `count` tokens that stand at `position` and after it."""

    _fields_ = (
        ("step", ctypes.POINTER(Step)),
        *((name, WHOLE) for name in ("start", "end", "count", "position")),
        *((name, ADDRESS) for name in ("tokens", "streams")),
        ("heads", WHOLE),
        *((name, ADDRESS) for name in ("logits", "likeliest")),
        *((name, WHOLE) for name in ("only_remember", "told_slots", "told_units", "told_gates")),
    )


def run(span: Span) -> None:
    """The tokens go through. Raises UnitUnreadableError, MemoryError."""
    code: int = loaded_library().pragnosia_span(ctypes.byref(span))
    if code == -2:
        raise UnitUnreadableError
    if code:
        raise MemoryError("the compiled span found no memory for its scratch; close something")


def agrees() -> bool:
    """Whether here a token among others gets the very bits it gets alone, in every format of weights."""
    return native_library() is not None and bool(loaded_library().pragnosia_span_agrees())
