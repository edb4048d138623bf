"""Rules are exactly invertible, piece by piece, whatever the sizes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pragnosia.checkpoints import source
from pragnosia.checkpoints.rules import Joined, PerUnit, Rule, same
from pragnosia.checkpoints.source import Index, pieces

sizes = st.integers(1, 5)


@dataclass
class Held:
    """A source whose tensors are all in memory."""

    tensors: dict[str, Tensor]

    @property
    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def file(self, name: str) -> str:
        return "memory"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str, index: Index = ()) -> Tensor:
        return self.tensors[name][index]


def assembled(parts, shape: tuple[int, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts]).view(shape)


def there_and_back(rule: Rule, ours: Tensor) -> dict[str, Tensor]:
    """Their tensors; asserts that ours comes back from them."""
    here = Held({rule.ours: ours})
    shapes = rule.their_shapes(tuple(ours.shape))
    theirs = {
        name: assembled(rule.to_theirs(number, here), shape) for number, (name, shape) in enumerate(shapes.items())
    }
    assert sum(tensor.numel() for tensor in theirs.values()) == ours.numel()
    assert torch.equal(assembled(rule.to_ours(Held(theirs)), tuple(ours.shape)), ours)
    return theirs


@given(num_units=sizes, rows=sizes, width=sizes)
def test_units_are_taken_apart_one_by_one(num_units: int, rows: int, width: int) -> None:
    ours = torch.randn(num_units, 2 * rows, width)
    theirs = there_and_back(Joined("bank", ("{unit}.gate", "{unit}.up"), num_units), ours)
    for unit in range(num_units):
        assert torch.equal(theirs[f"{unit}.gate"], ours[unit, :rows])
        assert torch.equal(theirs[f"{unit}.up"], ours[unit, rows:])


@given(rows=sizes, width=st.none() | sizes)
def test_gate_and_up_rows_are_split(rows: int, width: int | None) -> None:
    ours = torch.randn(2 * rows, *(() if width is None else (width,)))
    theirs = there_and_back(Joined("up", ("gate", "up")), ours)
    assert torch.equal(theirs["gate"], ours[:rows])
    assert torch.equal(there_and_back(same("a", "b"), ours)["b"], ours)


@given(num_units=sizes, rows=sizes, width=sizes)
def test_turned_units(num_units: int, rows: int, width: int) -> None:
    ours = torch.randn(num_units, 2 * rows, width)
    turned = there_and_back(PerUnit("up", "theirs", transposed=True, interleaved=True), ours)["theirs"]
    assert torch.equal(turned[..., 0::2], ours[:, :rows].transpose(1, 2))
    assert torch.equal(turned[..., 1::2], ours[:, rows:].transpose(1, 2))
    bias = there_and_back(PerUnit("up", "theirs", interleaved=True), ours[..., 0])["theirs"]
    assert torch.equal(bias[:, 0::2], ours[:, :rows, 0])
    assert torch.equal(there_and_back(PerUnit("down", "theirs", transposed=True), ours)["theirs"], ours.mT)


@pytest.mark.parametrize("index", [(), (1,), (slice(1, 3),), (2, slice(1, 4)), (0, 3), (1, 2, 0)])
def test_pieces_cover_what_is_asked_for_in_bounded_steps(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE_BYTES", 2 * 4 * 6)
    tensor = torch.arange(4 * 5 * 6.0).view(4, 5, 6)
    parts = list(pieces(Held({"x": tensor}), "x", index))
    assert torch.equal(assembled(parts, tensor[index].shape), tensor[index])
    assert all(part.numel() <= 5 * 6 for part in parts)
