"""Adam for rows: against Adam itself where a row is one number, compiled against plain, and lazy."""

from __future__ import annotations

import pytest
import torch

from pragnosia import kernels
from pragnosia.training.optimisers import OptimiserConfig, Optimisers
from pragnosia.training.row_wise import RowAdam


def sparse(named: list[int], slopes: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([named]), slopes, (rows, slopes.shape[1]), check_invariants=True)


def test_rows_of_one_number_move_as_under_adam() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 1)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    rows = RowAdam([ours], lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(20):
        slope = torch.randn(5, 1)
        ours.grad, theirs.grad = sparse([0, 1, 2, 3, 4], slope, 5), slope
        rows.step(), adam.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # a moment in bfloat16, 20 steps of 0.01


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_compiled_and_plain_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr("pragnosia.kernels.recalling.native_library", lambda: None)
        torch.manual_seed(1)
        table = torch.nn.Parameter(torch.randn(9, 6))
        optimiser = RowAdam([table], lr=0.1, betas=(0.9, 0.95), eps=1e-8)
        for _ in range(5):
            named = torch.randint(0, 9, (7,)).tolist()  # some twice, as two layers name them
            table.grad = sparse(named, torch.randn(7, 6), 9)
            optimiser.step()
        moved.append((table.detach(), *optimiser.state[table].values()))
    for ours, theirs in zip(*moved, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_who_was_not_recalled_stays() -> None:
    table = torch.nn.Parameter(torch.ones(4, 3))
    optimiser = RowAdam([table], lr=0.1, betas=(0.9, 0.95), eps=1e-8)
    table.grad = sparse([2], torch.ones(1, 3), 4)
    for _ in range(3):
        optimiser.step()
    assert torch.equal(table[[0, 1, 3]], torch.ones(3, 3))
    assert optimiser.state[table]["recalled"].tolist() == [0, 0, 3, 0]
    torch.testing.assert_close(table[2], torch.full((3,), 0.7), rtol=0, atol=1e-3)  # a moment in bfloat16


def test_a_table_has_a_group_of_its_own() -> None:
    table, other = torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4, 3))
    named = [("model.hippocampus.rows", table), ("model.layers.0.up.weight", other)]
    optimisers = Optimisers(named, set(), OptimiserConfig(learning_rate=0.1, memory_multiplier=3.0, weight_decay=0.0))
    table.grad, other.grad = sparse([1], torch.full((1, 3), 100.0), 4), torch.full((4, 3), 0.1)
    norm = optimisers.step(1.0)
    torch.testing.assert_close(norm, other.grad.norm())  # no part of what is clipped
    torch.testing.assert_close(table[1], torch.full((3,), 0.7))
    torch.testing.assert_close(other, torch.full((4, 3), 0.9))
    again = Optimisers(named, set(), OptimiserConfig())
    again.load_state(optimisers.state())
    assert again.state().keys() == optimisers.state().keys()
