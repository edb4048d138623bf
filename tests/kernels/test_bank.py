"""Every backend of the bank against its definition: the same cases, the same tolerances, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import native, triton

NATIVE = native.supports(torch.zeros(1), torch.zeros(1))
NO_COMPILER = pytest.mark.skipif(not NATIVE, reason=f"compiled kernels are {kernels.native_status()}")
INTERPRETED = triton.interpreted() and triton.supports(torch.zeros(1))
BACKENDS = [
    "cpu",
    pytest.param("native", marks=NO_COMPILER),
    "gathered",
    pytest.param("triton", marks=() if INTERPRETED else pytest.mark.gpu),
]
GRADS = ("x", "strengths", "up", "down", "up_bias", "down_bias")


@dataclass
class Case:
    """The arguments of a bank, by name."""

    x: Tensor
    units: Tensor
    strengths: Tensor
    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None

    def to(self, place: torch.device | torch.dtype) -> Case:
        def moved(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or (isinstance(place, torch.dtype) and not tensor.is_floating_point()):
                return tensor
            return tensor.detach().to(place).requires_grad_(tensor.is_floating_point())

        return replace(self, **{name: moved(tensor) for name, tensor in vars(self).items()})


def make_case(T: int, D: int, U: int, A: int, F: int, *, activation: str, biased: bool = True) -> Case:
    hidden = kernels.activation_named(activation).num_parts * F
    units = torch.rand(T, U).argsort(1)[:, :A]
    units[torch.rand(T, A) < 0.2] = -1
    return Case(
        x=torch.randn(T, D, requires_grad=True),
        units=units,
        strengths=torch.rand(T, A, requires_grad=True),
        up=(torch.randn(U, hidden, D) / D**0.5).requires_grad_(),
        down=(torch.randn(U, D, F) / F**0.5).requires_grad_(),
        up_bias=torch.randn(U, hidden, requires_grad=True) if biased else None,
        down_bias=torch.randn(U, D, requires_grad=True) if biased else None,
    )


def run(case: Case, backend: str | None, activation: str, *, autocast: bool = False) -> list[Tensor]:
    """The result, then the gradients in the order of GRADS, for one fixed gradient of the result."""
    with torch.autocast(case.x.device.type, torch.bfloat16, enabled=autocast):
        y = kernels.bank(**vars(case), activation=activation, backend=backend)
    inputs = [getattr(case, name) for name in GRADS if getattr(case, name) is not None]
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
    return [y, *torch.autograd.grad(y, inputs, weights)]


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and not INTERPRETED else "cpu")


def error(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach().cpu().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-9))


def assert_like_reference(case: Case, backend: str, activation: str, tolerance: float, **how: bool) -> None:
    wanted = run(case.to(torch.float64), "reference", activation)
    got = run(case.to(device_of(backend)), backend, activation, **how)
    names = ("y", *(name for name in GRADS if getattr(case, name) is not None))
    errors = {name: error(g, w) for name, g, w in zip(names, got, wanted, strict=True)}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    @pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
    def test_all_activations_with_biases(self, backend: str, activation: str) -> None:
        assert_like_reference(make_case(37, 24, 6, 2, 20, activation=activation), backend, activation, 2e-6)

    @pytest.mark.parametrize("neurons", [4, 8, 16, 32, 40])
    def test_units_of_few_neurons(self, backend: str, neurons: int) -> None:
        case = make_case(70, 72, 30, 6, neurons, activation="relu2")
        assert_like_reference(case, backend, "relu2", 2e-6)

    @pytest.mark.parametrize("awake", [1, 2, 5])
    def test_awake_from_one_to_all(self, backend: str, awake: int) -> None:
        case = make_case(19, 16, 5, awake, 8, activation="swiglu", biased=False)
        assert_like_reference(case, backend, "swiglu", 2e-6)

    def test_odd_widths_and_one_crowded_unit(self, backend: str) -> None:
        case = make_case(150, 33, 4, 2, 17, activation="geglu")
        case.units = torch.where(case.units == 3, 1, case.units)  # unit 3 sleeps, unit 1 may serve a token twice
        assert_like_reference(case, backend, "geglu", 2e-6)

    def test_whole_blocks(self, backend: str) -> None:
        case = make_case(96, 64, 3, 2, 32, activation="swiglu", biased=False)
        assert_like_reference(case, backend, "swiglu", 2e-6)

    def test_a_sleeping_unit_has_zero_gradient(self, backend: str) -> None:
        case = make_case(10, 8, 6, 2, 4, activation="swiglu").to(device_of(backend))
        case.units = torch.full_like(case.units, 2)
        _, _, _, up, down, up_bias, down_bias = run(case, backend, "swiglu")
        for grad in (up, down, up_bias, down_bias):
            assert not grad[[0, 1, 3, 4, 5]].any()
            assert grad[2].any()

    def test_nobody_woken(self, backend: str) -> None:
        case = make_case(5, 8, 3, 2, 4, activation="relu2").to(device_of(backend))
        case.units = torch.full_like(case.units, -1)
        for tensor in run(case, backend, "relu2"):
            assert not tensor.any()

    def test_no_tokens(self, backend: str) -> None:
        case = make_case(0, 8, 3, 2, 4, activation="swiglu").to(device_of(backend))
        y, x, strengths, up, *_ = run(case, backend, "swiglu")
        assert y.shape == x.shape == (0, 8)
        assert strengths.shape == (0, 2)
        assert not up.any()

    def test_strided_inputs(self, backend: str) -> None:
        case = make_case(12, 8, 4, 2, 8, activation="swiglu").to(device_of(backend))
        gaps = replace(
            case,
            x=case.x.detach().t().contiguous().t().requires_grad_(),
            units=case.units.t().contiguous().t(),
            strengths=case.strengths.detach().t().contiguous().t().requires_grad_(),
            up=case.up.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
            down=case.down.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_(),
        )
        for got, wanted in zip(run(gaps, backend, "swiglu"), run(case, backend, "swiglu"), strict=True):
            torch.testing.assert_close(got, wanted)

    def test_same_bits_twice(self, backend: str) -> None:
        case = make_case(64, 32, 5, 2, 16, activation="swiglu").to(device_of(backend))
        for first, second in zip(run(case, backend, "swiglu"), run(case, backend, "swiglu"), strict=True):
            assert torch.equal(first, second)

    def test_no_gradient_asked(self, backend: str) -> None:
        for tokens in (1, 3, 40):
            case = make_case(tokens, 40, 4, 2, 12, activation="swiglu")
            wanted = run(case.to(torch.float64), "reference", "swiglu")[0]
            with torch.no_grad():
                moved = vars(case.to(device_of(backend)))
                assert error(kernels.bank(**moved, activation="swiglu", backend=backend), wanted) < 2e-6

    def test_only_some_gradients(self, backend: str) -> None:
        case = make_case(20, 16, 4, 2, 8, activation="swiglu").to(device_of(backend))
        full = run(case, backend, "swiglu")
        for frozen in (("up", "down", "up_bias", "down_bias"), ("x",), ("strengths", "down")):
            part = replace(case, **{name: getattr(case, name).detach() for name in frozen})
            y = kernels.bank(**vars(part), activation="swiglu", backend=backend)
            kept = [name for name in GRADS if name not in frozen]
            weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
            grads = torch.autograd.grad(y, [getattr(part, name) for name in kept], weights)
            for name, grad in zip(kept, grads, strict=True):
                torch.testing.assert_close(grad, full[1 + GRADS.index(name)])


@pytest.mark.parametrize("backend", BACKENDS[:3])
@pytest.mark.parametrize("activation", ["swiglu", "clamped_swiglu", "gelu"])
class TestBfloat16:
    """Products of bfloat16 values, within the error that rounding the inputs brings."""

    def test_autocast_over_masters(self, backend: str, activation: str) -> None:
        case = make_case(70, 48, 5, 2, 40, activation=activation)
        got = run(case, backend, activation, autocast=True)
        assert got[0].dtype == torch.bfloat16
        assert all(grad.dtype == torch.float32 for grad in got[1:])
        assert_like_reference(case, backend, activation, 2e-2, autocast=True)

    def test_weights_in_bfloat16(self, backend: str, activation: str) -> None:
        case = make_case(70, 64, 5, 2, 32, activation=activation).to(torch.bfloat16)
        wanted = run(case.to(torch.float64), "reference", activation)
        got = run(case, backend, activation)
        assert all(tensor.dtype == torch.bfloat16 for tensor in got)
        assert max(error(g, w) for g, w in zip(got, wanted, strict=True)) < 2e-2

    def test_few_tokens(self, backend: str, activation: str) -> None:
        case = make_case(2, 72, 5, 2, 24, activation=activation).to(torch.bfloat16)
        wanted = run(case.to(torch.float64), "reference", activation)[0]
        with torch.no_grad():
            got = kernels.bank(**vars(case), activation=activation, backend=backend)
        assert got.dtype == torch.bfloat16
        assert error(got, wanted) < 2e-2


@pytest.mark.parametrize("backend", ["reference", "cpu", "gathered"])
@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_gradients_by_differences(backend: str, activation: str) -> None:
    case = make_case(4, 3, 3, 2, 2, activation=activation).to(torch.float64)
    inputs = [getattr(case, name) for name in GRADS]

    def bank(*tensors: Tensor) -> Tensor:
        named = {**vars(case), **dict(zip(GRADS, tensors, strict=True))}
        return kernels.bank(**named, activation=activation, backend=backend)

    assert torch.autograd.gradcheck(bank, inputs)


@NO_COMPILER
def test_threads_do_not_change_the_bits() -> None:
    case = make_case(300, 32, 7, 2, 16, activation="swiglu")
    alone = run(case, "native", "swiglu")
    try:
        torch.set_num_threads(3)
        together = run(case, "native", "swiglu")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@NO_COMPILER
@settings(max_examples=40)
@given(
    T=st.integers(1, 90),
    D=st.integers(1, 70),
    U=st.integers(1, 9),
    F=st.integers(1, 40),
    activation=st.sampled_from(sorted(kernels.ACTIVATIONS)),
    biased=st.booleans(),
    bfloat16=st.booleans(),
    data=st.data(),
)
def test_compiled_on_any_shape(
    T: int, D: int, U: int, F: int, activation: str, biased: bool, bfloat16: bool, data: st.DataObject
) -> None:
    case = make_case(T, D, U, data.draw(st.integers(1, U)), F, activation=activation, biased=biased)
    if not bfloat16:
        assert_like_reference(case, "native", activation, 5e-6)
        return
    # rounding is unkind to sums that cancel: as near the truth as torch's own products of the same values
    wanted = run(case.to(torch.float64), "reference", activation)
    torchs, ours = (run(case, backend, activation, autocast=True) for backend in ("cpu", "native"))
    for truth, theirs, got in zip(wanted, torchs, ours, strict=True):
        assert error(got, truth) < 2 * error(theirs, truth) + 0.02


def test_default_is_the_best_there_is() -> None:
    case = make_case(30, 16, 4, 2, 8, activation="swiglu")
    best = "native" if NATIVE else "cpu"
    for got, wanted in zip(run(case, None, "swiglu"), run(case, best, "swiglu"), strict=True):
        assert torch.equal(got, wanted)
    run(case.to(torch.float64), None, "swiglu")  # what the compiled kernels do not take goes the torch way


class TestBadInput:
    def test_shapes(self) -> None:
        case = make_case(3, 8, 4, 2, 4, activation="swiglu")
        bad = {
            "x": torch.zeros(3, 9),
            "units": torch.zeros(2, 2, dtype=torch.long),
            "strengths": torch.zeros(3, 1),
            "up": torch.zeros(4, 4, 8),
            "up_bias": torch.zeros(4, 4),
            "down_bias": torch.zeros(3, 8),
        }
        for name, tensor in bad.items():
            with pytest.raises(ValueError, match=rf"^{name} has shape .*expected"):
                kernels.bank(**{**vars(case), name: tensor}, activation="swiglu")

    def test_names(self) -> None:
        case = make_case(3, 8, 4, 2, 4, activation="swiglu")
        with pytest.raises(ValueError, match=r"unknown activation 'swish'.*swiglu"):
            kernels.bank(**vars(case), activation="swish")
        with pytest.raises(ValueError, match=r"unknown backend 'gpu'.*native"):
            kernels.bank(**vars(case), activation="swiglu", backend="gpu")

    @pytest.mark.parametrize("backend", ["cpu", pytest.param("native", marks=NO_COMPILER)])
    @pytest.mark.parametrize("unit", [-2, 4])
    @pytest.mark.parametrize("learning", [True, False])
    def test_a_unit_that_is_not_there(self, backend: str, unit: int, learning: bool) -> None:
        case = make_case(3, 8, 4, 2, 4, activation="swiglu")
        case.units[1, 1] = unit
        with torch.set_grad_enabled(learning), pytest.raises(ValueError, match=r"expected -1 .nobody. to 3"):
            kernels.bank(**vars(case), activation="swiglu", backend=backend)

    @NO_COMPILER
    def test_a_dtype_the_compiled_kernels_lack(self) -> None:
        case = make_case(3, 8, 4, 2, 4, activation="swiglu").to(torch.float64)
        with pytest.raises(ValueError, match="float32 or bfloat16"):
            kernels.bank(**vars(case), activation="swiglu", backend="native")
