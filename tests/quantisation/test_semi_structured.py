"""2:4 layers as torch has them: its tensors and its dispatch, with a plain product where a GPU would multiply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from pragnosia.kernels.formats import FORMATS, pack, unpack
from pragnosia.quantisation import semi_structured
from pragnosia.quantisation.layers import PackedLinear
from pragnosia.quantisation.semi_structured import SemiStructuredLinear, on_tensor_cores, sparse_form

CPU = torch.device("cpu")


class OnCPU(SparseSemiStructuredTensorCUTLASS):
    """Torch's own compressed tensor; only the kernel, which no CPU has, is another."""

    products = 0

    @classmethod
    def _validate_device_dim_dtype_shape(cls, original_tensor: Tensor) -> None:
        least = cls._DTYPE_SHAPE_CONSTRAINTS[original_tensor.dtype]
        assert original_tensor.is_contiguous()
        assert original_tensor.dim() == 2
        assert original_tensor.shape[0] % least.sparse_min_rows == 0
        assert original_tensor.shape[1] % least.sparse_min_cols == 0

    def _mm(
        self, B: Tensor, *, bias: Tensor | None = None, should_transpose_dense: bool = False, **kwargs: Any
    ) -> Tensor:
        assert B.dim() == 2
        assert B.dtype == self.dtype
        assert should_transpose_dense
        assert self.packed is not None
        assert self.meta is not None
        OnCPU.products += 1
        dense = sparse_semi_structured_to_dense_cutlass(self.packed, self.meta)
        return B @ dense.t() if bias is None else torch.addmm(bias, B, dense.t())


def layer(outs: int, depth: int, name: str, *, bias: bool) -> PackedLinear:
    rows = pack(torch.randn(outs, depth) / depth**0.5, name)
    return PackedLinear(rows, FORMATS[name], depth, torch.randn(outs) if bias else None)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["bf16-2:4", "int8-2:4"])
def test_torchs_dispatch_takes_what_it_is_given(name: str, bias: bool, mode: Any) -> None:
    packed = layer(64, 128, name, bias=bias)
    made = SemiStructuredLinear(packed, OnCPU)
    assert isinstance(made.weight, OnCPU)
    plain = unpack(packed.rows, 128, name, torch.bfloat16)
    before = OnCPU.products
    with mode():
        for x in (torch.randn(128), torch.randn(3, 128), torch.randn(2, 128, 5).transpose(1, 2), torch.randn(0, 128)):
            got = made(x.bfloat16())
            wanted = nn.functional.linear(x.bfloat16(), plain, made.bias)
            assert got.shape == wanted.shape
            torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)
        assert made(torch.randn(3, 128)).dtype == torch.float32
    assert OnCPU.products > before + 3


def test_a_model_is_moved_before_it_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Module.to` cannot move torch's compressed tensors between devices, nor swap them in place."""
    model = nn.Sequential(
        layer(64, 128, "bf16-2:4", bias=True), nn.ReLU(), layer(30, 64, "bf16-2:4", bias=False), nn.Linear(30, 5)
    )
    x = torch.randn(4, 128)
    expected = model(x)
    monkeypatch.setattr(semi_structured, "sparse_form", lambda device: OnCPU)
    on_tensor_cores(model, CPU)
    assert isinstance(model[0].weight, OnCPU)
    assert type(model[2].weight) is nn.Parameter, "30 rows are no multiple of 32: it stays dense"
    assert not any(weight.requires_grad for weight in (model[0].weight, model[2].weight))
    torch.testing.assert_close(model(x), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("capability", "cusparselt", "form"),
    [
        ((7, 5), True, None),
        ((8, 0), False, SparseSemiStructuredTensorCUTLASS),
        ((8, 9), True, SparseSemiStructuredTensorCUSPARSELT),
        ((9, 0), True, SparseSemiStructuredTensorCUSPARSELT),
        ((9, 0), False, None),
    ],
)
def test_which_form_a_gpu_takes(
    capability: tuple[int, int],
    cusparselt: bool,
    form: type[SparseSemiStructuredTensor] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    assert sparse_form(torch.device("cuda")) is form
    assert sparse_form(CPU) is None


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_on_the_gpu_that_is_there(rows: int) -> None:
    model = nn.Sequential(layer(128, 256, "bf16-2:4", bias=True), layer(64, 128, "int8-2:4", bias=False))
    x = torch.randn(2, rows, 256)
    expected = model(x)
    on_tensor_cores(model, torch.device("cuda"))
    with torch.inference_mode():
        torch.testing.assert_close(model(x.cuda()).cpu(), expected, rtol=0.05, atol=0.05)
