"""What recalling costs: operations and bytes of comparing states with keys, and of mixing what comes to mind.

    neighbours    2 D operations for every key a state is compared with, and the key's bytes
    lessons       4 D for every key of those called to mind (a product and a norm), and its bytes
    a prompt      the head for the states by which neighbours are judged
    the mixture   8 bytes for every word of the vocabulary

As in measure/accounting.py a multiply-accumulate is two operations, and what is no product counts as bytes alone.
Looking words up in the store (SQLite) is not counted: it computes with no keys, and what it reads is not known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Of some recalling."""

    operations: float = 0.0
    num_bytes: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.operations + other.operations, self.num_bytes + other.num_bytes)

    @classmethod
    def of_keys(cls, width: int, *, plain: int, halves: int = 0, products: int = 1) -> Effort:
        """So many products with keys of four bytes a number, and of two."""
        return cls(2.0 * products * width * (plain + halves), width * (4.0 * plain + 2.0 * halves))
