"""Several vectors at once get the bits that each gets alone: what all exactness of drafts rests on."""

from __future__ import annotations

import pytest

from pragnosia.kernels import native_library, span


@pytest.mark.skipif(native_library() is None, reason="no compiled kernels here")
def test_products_agree_on_this_machine() -> None:
    assert span.agrees()


def test_without_compiled_code_nothing_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span, "native_library", lambda: None)
    assert not span.agrees()
