"""Quantities for people: counts, bytes, seconds, joules; and bytes back from what people write."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1024, 1024**2, 1024**3

_BINARY = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1024**4}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_JOULES = {"": 1.0, "j": 1.0, "mj": 1e-3, "uj": 1e-6, "kj": 1e3}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*")


def _digits(value: float, digits: int = 3) -> str:
    """So many significant digits, three or more; never an exponent."""
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _scaled(value: float, steps: list[tuple[float, str]], digits: int = 3) -> str:
    """`value` in the largest step it reaches, or the smallest there is."""
    scale, name = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{_digits(value / scale, digits)} {name}"


def format_count(value: float, digits: int = 3) -> str:
    """`1234567` -> `1.23 M`."""
    if abs(value) < 1000:
        return f"{value:.{max(4, digits)}g}"
    return _scaled(value, [(1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")], digits)


def format_bytes(value: float, digits: int = 3) -> str:
    """`5368709120` -> `5 GiB`."""
    return _scaled(value, [(1024.0**4, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B")], digits)


def plural(count: int, one: str) -> str:
    """`1, "turn"` -> `1 turn`; `3, "turn"` -> `3 turns`."""
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def told_apart(one: int, other: int) -> tuple[str, str]:
    """Two sizes beside each other, with as many digits as it takes to see that they differ.

    `419430400, 419471360` -> `400 MiB`, `400.04 MiB`.
    """
    for digits in range(3, 20):
        pair = format_bytes(one, digits), format_bytes(other, digits)
        if pair[0] != pair[1] or one == other:
            break
    return pair


def format_duration(seconds: float) -> str:
    """`3725` -> `1:02:05`; below a minute `12.3 s`, below a second `45 ms`."""
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def format_joules(value: float, digits: int = 3) -> str:
    """`0.0021` -> `2.1 mJ`."""
    steps = [(1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"), (1e-12, "pJ")]
    return "0 J" if not value else _scaled(value, steps, digits)


def parse_joules(text: str) -> float:
    """`50J`, `200 mJ`, `1.5kJ`, or a bare number of joules. Raises ValueError that names the units there are."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _JOULES:
        raise ValueError(f"cannot read {text!r} as an energy; write a number and one of J, mJ, uJ, kJ")
    return float(match[1]) * _JOULES[match[2].lower()]


def perhaps_gib(text: str) -> str:
    """The hint for a budget that is a bare number too small to be meant in bytes; nothing for any other.

    `4` -> `, which is 4 bytes; did you mean 4GiB?`
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] or not 0 < float(match[1]) < MIB:
        return ""
    return f", which is {match[1]} bytes; did you mean {match[1]}GiB?"


def parse_bytes(text: str) -> int:
    """`4GiB`, `512 MiB`, `1.5GB` -> bytes. Raises ValueError that names the units there are."""
    match = _SIZE.fullmatch(text)
    factors = _BINARY | _DECIMAL
    if match is None or match[2].lower() not in factors:
        raise ValueError(
            f"cannot read {text!r} as a size; write a number and one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"
        )
    return int(float(match[1]) * factors[match[2].lower()])
