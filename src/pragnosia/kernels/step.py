"""One token through a whole model in one compiled call: the structures of source/step.hpp, to be filled with addresses.

Python spends a few microseconds on every product of a small model, the compiled code little more on all of them. Who
fills these in (inference/program.py) keeps the tensors alive; nothing here owns memory.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from pragnosia.kernels.compiled import loaded_library
from pragnosia.kernels.formats import Format, plain_format

if TYPE_CHECKING:
    from torch import Tensor

WHOLE, REAL, ADDRESS = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
ROUTERS = {"softmax": 1, "sigmoid": 2, "threshold": 3}  # 0: a dense layer
STORED = (torch.float32, torch.bfloat16)
SMALL = 1 << 19  # bytes of weights per token that keep a thread busy enough to be worth waking


class UnitUnreadableError(Exception):
    """A unit on disk could not be read; its pool says which and why."""


class Stored(ctypes.Structure):
    """A tensor's numbers; no base where a part is absent."""

    _fields_ = (("base", ADDRESS), ("format", WHOLE))

    @classmethod
    def of(cls, tensor: Tensor | None) -> Stored:
        """Where a tensor of plain numbers lies."""
        return cls() if tensor is None else cls(tensor.data_ptr(), plain_format(tensor.dtype).code)


class StepLinear(ctypes.Structure):
    """y = W x + b; no rows where a layer is absent."""

    _fields_ = (
        *((name, Stored) for name in ("weight", "bias")),
        *((name, WHOLE) for name in ("outs", "depth", "row_bytes", "by_input")),
        ("threshold", REAL),
    )

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> StepLinear:
        """A layer of plain weights, (outs, depth)."""
        return cls(Stored.of(weight), Stored.of(bias), *weight.shape, weight.stride(0) * weight.itemsize)

    @classmethod
    def inputwise(cls, weight: Tensor, bias: Tensor | None = None, threshold: float = 0.0) -> StepLinear:
        """A layer of plain weights (outs, depth) that lie input by input; inputs up to `threshold` sleep."""
        return cls(
            Stored.of(weight), Stored.of(bias), *weight.shape, weight.stride(1) * weight.itemsize, True, threshold
        )

    @classmethod
    def packed(cls, rows: Tensor, entry: Format, depth: int, bias: Tensor | None = None) -> StepLinear:
        """A layer of packed weights, (outs, row_bytes)."""
        return cls(Stored(rows.data_ptr(), entry.code), Stored.of(bias), rows.shape[0], depth, rows.shape[1])


class StepDendrites(ctypes.Structure):
    """Values or outputs by the most driven dendrites of each head; no heads where there are none."""

    _fields_ = (
        ("gate", StepLinear),
        ("weight", Stored),
        *((name, WHOLE) for name in ("heads", "each", "awake", "rows", "depth")),
    )


class StepMixer(ctypes.Structure):
    """Attention: x += out(softmax(q k' / sqrt(K)) v)."""

    _fields_ = (
        ("norm", Stored),
        *((name, StepLinear) for name in ("query", "key", "value", "out")),
        *((name, Stored) for name in ("query_norm", "key_norm", "sinks")),
        *((name, WHOLE) for name in ("heads", "key_heads", "head_dim", "norm_heads", "window")),
        ("clip", REAL),
        *((name, ADDRESS) for name in ("keys", "values")),
        *((name, WHOLE) for name in ("memory_is_bf16", "room")),
        ("gate", Stored),
        ("cutoff", REAL),
        ("out_gate", ADDRESS),
        *((name, StepDendrites) for name in ("hearing", "speaking")),
        ("fading", ADDRESS),
    )


class StepRecall(ctypes.Structure):
    """x += the recalled rows; no `asks` where a layer recalls nothing."""

    _fields_ = (
        ("asks", StepLinear),
        *((name, ADDRESS) for name in ("center", "spread")),
        *((name, Stored) for name in ("keys", "table")),
        *((name, WHOLE) for name in ("heads", "side", "awake", "row_bytes")),
        ("far", ADDRESS),
    )


class StepFeedForward(ctypes.Structure):
    """x += who woke + who never sleeps; either may be absent."""

    _fields_ = (
        ("norm", Stored),
        *((name, WHOLE) for name in ("router", "activation")),
        ("scores", StepLinear),
        ("steering", Stored),
        *((name, ADDRESS) for name in ("balance", "cutoffs")),
        *((name, WHOLE) for name in ("slots", "renormalise")),
        ("scale", REAL),
        *((name, Stored) for name in ("up", "down", "up_bias", "down_bias")),
        *((name, WHOLE) for name in ("unit_width", "up_row_bytes", "down_row_bytes")),
        *((name, StepLinear) for name in ("always_up", "always_down")),
        ("always_activation", WHOLE),
        *((name, ADDRESS) for name in ("out_units", "out_strengths", "out_scores")),
        ("pool_layer", WHOLE),
        ("gist", StepLinear),
        ("most", WHOLE),
        ("recall", StepRecall),
    )


class Step(ctypes.Structure):
    """The whole model."""

    _fields_ = (
        *((name, WHOLE) for name in ("width", "layers", "threads", "has_bf16", "has_packed")),
        ("embedding", StepLinear),
        ("norm", Stored),
        ("head", StepLinear),
        *((name, REAL) for name in ("eps", "rotation_scale")),
        ("frequencies", ADDRESS),
        ("mixers", ctypes.POINTER(StepMixer)),
        ("feed_forwards", ctypes.POINTER(StepFeedForward)),
        ("logits", ADDRESS),
        ("pool", ADDRESS),
        ("passing", WHOLE),
        ("hidden", ADDRESS),
    )


def run(step: Step, token: int, position: int) -> int:
    """The token goes through; its logits lie where `step` says. Returns the likeliest next token."""
    winner: int = loaded_library().pragnosia_step(ctypes.byref(step), token, position)
    if winner == -2:
        raise UnitUnreadableError
    if winner < 0:
        raise MemoryError("the compiled step found no memory for its scratch; close something")
    return winner


def threads_for(weight_bytes: int) -> int:
    """As many threads as the weights read per token are worth waking, at most torch's."""
    return max(1, min(torch.get_num_threads(), weight_bytes // SMALL))
