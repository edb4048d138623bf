from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pragnosia.measure import scoring
from pragnosia.measure.scoring import score


def _problem(num_rows: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    hidden, head = torch.randn(num_rows, width), torch.randn(vocabulary, width)
    return hidden, head, torch.randint(vocabulary, (num_rows,))


@given(num_rows=st.integers(1, 20), vocabulary=st.integers(1, 40), rows=st.integers(1, 8), columns=st.integers(1, 16))
def test_blocks_change_nothing(num_rows: int, vocabulary: int, rows: int, columns: int) -> None:
    hidden, head, targets = _problem(num_rows, 5, vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ROWS", rows)
        patch.setattr(scoring, "COLUMNS", columns)
        scores = score(hidden, head, targets)
    logits = (hidden @ head.T).double()
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores.log_probabilities.double(), expected, rtol=1e-5, atol=1e-5)
    assert scores.greedy.tolist() == (logits.argmax(-1) == targets).tolist()


def test_bfloat16_weights_are_multiplied_in_float32() -> None:
    hidden, head, targets = _problem(64, 32, 100)
    hidden, head = hidden.bfloat16(), head.bfloat16()
    exact = (hidden.double() @ head.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(score(hidden, head, targets).log_probabilities.double(), exact, rtol=1e-5, atol=1e-5)


def test_of_equals_only_the_first_is_greedy() -> None:
    scores = score(torch.ones(3, 2), torch.zeros(7, 2), torch.tensor([0, 3, 6]))
    assert scores.greedy.tolist() == [True, False, False]
    torch.testing.assert_close(scores.log_probabilities, -torch.full((3,), 7.0).log())


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out._is_view():
            self.numel = max(self.numel, out.numel())
        return out


def test_all_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ROWS", 16)
    monkeypatch.setattr(scoring, "COLUMNS", 32)
    problem = _problem(100, 4, 1000)
    with _Largest() as largest:
        score(*problem)
    assert largest.numel <= 16 * 32
