"""Who is recalled, what the rows sum to, and the slopes of both: compiled against plain torch, and against all rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pragnosia import kernels
from pragnosia.kernels.recalling import grouped, read, recall, recall_reference

needs_native = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


def product_keys(tokens: int = 7, heads: int = 3, side: int = 12, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(tokens, heads, 2, width), torch.randn(heads, 2, side, width)


@pytest.mark.parametrize(("side", "awake"), [(12, 1), (12, 4), (12, 12), (64, 9), (600, 32)])
def test_the_best_of_all_rows_are_recalled(side: int, awake: int) -> None:
    query, keys = product_keys(side=side)
    rows, strengths = recall(query, keys, awake=awake)
    halves = torch.einsum("thpk,hpik->thpi", query, keys)
    scores = (halves[:, :, 0, :, None] + halves[:, :, 1, None, :]).flatten(2)
    best, places = scores.topk(awake, -1)
    assert torch.equal(rows, places)
    torch.testing.assert_close(strengths, best.softmax(-1))


def test_a_half_with_too_few_keys_is_refused() -> None:
    query, keys = product_keys(side=3)
    with pytest.raises(ValueError, match="cannot recall 4 rows by halves of 3 keys"):
        recall(query, keys, awake=4)


@needs_native
@pytest.mark.parametrize("awake", [1, 5])
def test_slopes_of_queries_and_keys(awake: int) -> None:
    pairs = []
    for way in (recall, recall_reference):
        query, keys = (tensor.requires_grad_() for tensor in product_keys())
        _, strengths = way(query, keys, awake=awake)
        (strengths * torch.linspace(-1, 2, strengths.numel()).view_as(strengths)).sum().backward()
        pairs.append((query.grad, keys.grad))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_native
def test_many_tokens_are_recalled_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys = product_keys(tokens=11)
    whole = recall(query, keys, awake=4)
    monkeypatch.setattr("pragnosia.kernels.recalling.CHUNK", 3)
    for ours, theirs in zip(recall(query, keys, awake=4), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_and_its_slopes(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    rows = torch.randint(0, 9, (6, 8))  # rows named twice, and rows not named
    target = torch.randn(6, 17)
    learned = []
    for compiled in (True, False):
        torch.manual_seed(2)
        table = torch.randn(20, 17).to(dtype).requires_grad_()
        strengths = torch.rand(6, 8, requires_grad=True)
        if compiled:
            y = read(table, rows, strengths)
        else:
            y = F.embedding_bag(rows, table.float(), per_sample_weights=strengths, mode="sum")
        ((y - target) ** 2).sum().backward()
        assert table.grad is not None
        learned.append((y.detach(), table.grad.to_dense().float(), strengths.grad))
        if compiled:
            assert table.grad.is_sparse
            assert table.grad.coalesce().indices().flatten().tolist() == sorted(set(rows.flatten().tolist()))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(*learned, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@needs_native
def test_a_table_that_does_not_learn_costs_no_slope() -> None:
    table, rows = torch.randn(5, 4), torch.tensor([[0, 4]])
    strengths = torch.rand(1, 2, requires_grad=True)
    read(table, rows, strengths).sum().backward()
    torch.testing.assert_close(strengths.grad, table[rows[0]].sum(1)[None])


@needs_native
def test_slots_are_grouped_by_row() -> None:
    rows = torch.tensor([[3, 1], [3, 0]])
    named, order, bounds = grouped(rows, 5)
    assert named.tolist() == [0, 1, 3]
    assert order.tolist() == [3, 1, 0, 2]
    assert bounds.tolist() == [0, 1, 2, 4]


@needs_native
@pytest.mark.parametrize("broken", ["equal", "no numbers", "few numbers"])
def test_scores_that_cannot_be_told_apart(broken: str) -> None:
    query, keys = product_keys(side=300)
    if broken == "equal":
        keys[:] = keys[:, :, :1]
    else:
        keys[:, :, 2 if broken == "few numbers" else 0 :] = float("nan")
    rows, _ = recall(query, keys, awake=9)
    assert ((rows >= 0) & (rows < 300 * 300)).all()
    if broken == "equal":
        assert rows[0, 0, 0] == 0  # of equals, the first
    assert all(len(set(row)) == 9 for row in rows.flatten(0, 1).tolist())
