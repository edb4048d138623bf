"""Quantities for people."""

from __future__ import annotations

import pytest

from pragnosia.units import (
    format_bytes,
    format_count,
    format_duration,
    format_joules,
    parse_bytes,
    perhaps_gib,
    plural,
    told_apart,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_count(999), "999"),
        (format_count(1_234_567), "1.23 M"),
        (format_count(450_900_000_000), "451 B"),
        (format_bytes(1_040_384), "1016 KiB"),
        (format_bytes(5 * 1024**3), "5 GiB"),
        (format_bytes(12), "12 B"),
        (format_joules(0.0021), "2.1 mJ"),
        (format_joules(3e-14), "0.03 pJ"),
        (format_duration(0.0451), "45.1 ms"),
        (format_duration(12.34), "12.3 s"),
        (format_duration(3725), "1:02:05"),
        (format_duration(61), "1:01"),
        (format_count(14_183, 4), "14.18 k"),
        (plural(1, "turn"), "1 turn"),
        (plural(0, "turn"), "0 turns"),
    ],
)
def test_three_digits_and_no_exponent(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * 1024**3), ("512 MiB", 512 * 1024**2), ("1.5GB", 1_500_000_000), ("7", 7)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "four", "4 gallons", "-1GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="as a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (400 << 20, (400 << 20) + 4096, ("400 MiB", "400.004 MiB")),
        (1023 << 20, (1023 << 20) - 1, ("1023 MiB", "1022.999999 MiB")),
        (5 << 30, 6 << 30, ("5 GiB", "6 GiB")),
        (7, 7, ("7 B", "7 B")),
        ((9 << 40) + 1024, 9 << 40, ("9.000000001 TiB", "9 TiB")),
    ],
)
def test_sizes_that_differ_are_told_apart(one: int, other: int, expected: tuple[str, str]) -> None:
    assert told_apart(one, other) == expected


def test_a_bare_number_of_gib_is_not_read_as_bytes() -> None:
    assert perhaps_gib("4") == ", which is 4 bytes; did you mean 4GiB?"
    assert not any(map(perhaps_gib, ("4B", "4GiB", "2147483648", "0", "four")))
