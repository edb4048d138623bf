"""What a speaker is asked for: how tokens are chosen, how many, at what energy. Checked without loading torch."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from pragnosia.errors import PromptError, unknown_name
from pragnosia.inference.dial import check_energy

# transformers' and other libraries' names -> ours.
_ELSEWHERE = {
    "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "random_seed": "seed",
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy. Raises PromptError for a value that cannot be."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _texts(self.stop))
        _number("temperature", self.temperature, "0 (greedy) or more, and finite", _real(self.temperature) >= 0)
        _require(_whole(self.top_k, 1, math.inf), "top_k", self.top_k, "1 or more, and whole")
        if self.top_p is not None:
            _number("top_p", self.top_p, "in (0, 1]", 0 < _real(self.top_p) <= 1)
        if self.min_p is not None:
            _number("min_p", self.min_p, "in [0, 1]", 0 <= _real(self.min_p) <= 1)
        penalty = self.repetition_penalty
        _number("repetition_penalty", penalty, "greater than 0, and finite", _real(penalty) > 0)
        _require(_whole(self.seed, -(2**63), 2**64 - 1), "seed", self.seed, "a whole number of at most 64 bits")

    @classmethod
    def of(cls, options: dict[str, Any], *, besides: Collection[str] = ()) -> Sampling:
        """From options by name; `besides` are those the caller takes itself. Raises PromptError for an unknown one."""
        known = [entry.name for entry in fields(cls)]
        for name in options:
            if name not in known:
                raise PromptError(unknown_name("option", name, [*known, *besides], _ELSEWHERE))
        return cls(**options)


def check_room(max_new_tokens: Any, energy: Any = 1.0) -> None:
    """Raise PromptError unless some tokens are asked for, ConfigError unless at an energy there is."""
    asked = max_new_tokens is not None and _whole(max_new_tokens, 1, math.inf)
    _require(asked, "max_new_tokens", max_new_tokens, "1 or more, and whole")
    check_energy(energy)


def check_text(text: Any) -> None:
    """Raise PromptError for what is no text, or holds what no tokenizer takes."""
    if not isinstance(text, str):
        raise PromptError(f"the prompt is {text!r}; give one text, or ids to generate_tokens")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # on a command line: a byte that is not UTF-8
        raise PromptError(f"the prompt is not UTF-8 text at character {error.start}; mend or convert it") from None


def _texts(given: Any) -> tuple[str, ...]:
    stop: tuple[Any, ...] = (given,) if isinstance(given, str) else (None,)
    if isinstance(given, list | tuple | set):
        stop = tuple(given)
    if "" in stop:
        raise PromptError("stop is an empty text; give text that is to end the answer, or leave it out")
    fine = all(isinstance(text, str) and text for text in stop)
    _require(fine, "stop", repr(given), "a text, or a list of texts, none of them empty")
    return stop


def _real(value: Any) -> float:
    """The number `value` is; what is none lies in no range."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _number(name: str, got: object, expected: str, within: bool) -> None:
    _require(within and math.isfinite(_real(got)), name, repr(got) if isinstance(got, str) else got, expected)


def _whole(value: Any, least: float, most: float) -> bool:
    if value is None:
        return True
    return not isinstance(value, bool) and isinstance(value, Integral) and least <= int(value) <= most


def _require(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise PromptError(f"{name} is {got}; it must be {expected}")
