"""An accelerator's memory: which device is meant, what CUDA takes of it, and what a model at work needs there.

No figure here was measured on a GPU: what CUDA takes for itself is an allowance, and scratch is an upper bound for
torch's plainest attention, which holds all scores of a piece of the prompt.
"""

from __future__ import annotations

from typing import Any

import torch

from pragnosia.errors import BudgetError
from pragnosia.inference.scratch import PROMPT_PIECE, tuning_parts, widest
from pragnosia.inference.sizes import Sizes
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.cross_entropy import CHUNK_BYTES
from pragnosia.kernels.formats import MANY_AT_ONCE
from pragnosia.units import MIB

CONTEXT = 512 * MIB  # allowance for CUDA and its libraries, once on the device and once in host memory
SCORES = 256 * MIB  # most that the attention scores of one piece of a prompt may take
MARGIN = 64 * MIB  # what torch's allocator keeps in its bins, and the workspace of its products
LOGITS = 4  # of one chunk: as they come, in single precision, their slopes, and one to spare
_UNPACKING = 24  # bytes that a weight takes while it is unpacked: its codes, whole numbers, and two floats


def accelerator() -> torch.device:
    """The GPU that torch sees. Raises BudgetError where it sees none."""
    if not torch.cuda.is_available():
        raise BudgetError("--vram needs a GPU; torch sees none: leave it out, or install a build of torch for your GPU")
    return torch.device("cuda", torch.cuda.current_device())


def check_vram(memory: int | str | None, adapter: object) -> None:
    """Raise BudgetError for what a budget of an accelerator does not go with."""
    if memory is None:
        raise BudgetError("--vram is the GPU's share beside --memory, the host's; give both")
    if adapter is not None:
        raise BudgetError("adapters do not run within --vram yet; leave it out, or merge the adapter into the model")


def prompt_piece(config: Any, room: int) -> int:
    """Tokens of a prompt to read at once on a device, so that their scores against `room` keys stay within bounds."""
    each = 2 * 4 * int(config.attention.num_heads) * max(room, 1)
    return max(1, min(PROMPT_PIECE, SCORES // each))


def cuda_bytes(device: torch.device | None) -> int:
    """What CUDA takes, on the device and once more of host memory; `device` is None for a GPU that is not here."""
    return 0 if device is not None and device.type == "cpu" else CONTEXT


def vram_scratch(sizes: Sizes, room: int, awake: int) -> int:
    """A prompt's activations in single precision, a unit's hidden values, scores, logits, and units being unpacked."""
    config, piece = sizes.config, min(room, prompt_piece(sizes.config, room))
    width, organ = int(config.hidden_size), config.units
    units = ACTIVATIONS[organ.activation].num_parts * organ.unit_width * max(1, organ.num_shared) if organ else 0
    hidden = max(units, widest(sizes))
    heads = config.attention.num_heads * (config.attention.head_dim or 0)
    rows = piece * 4 * ((awake + 12) * width + 3 * hidden + 4 * heads)
    scores = 2 * 4 * int(config.attention.num_heads) * piece * room
    unpacking = 0
    if sizes.format.plain_dtype is None:
        unit = hidden * 2 * width  # of a unit's weights, at most
        unpacking = MANY_AT_ONCE * (_UNPACKING + 4) + 2 * 4 * min(unit, MANY_AT_ONCE)
    return int(rows + scores + unpacking + 4 * 4 * config.vocab_size) + MARGIN


def vram_tuning_scratch(sizes: Sizes, tokens: int, rows: int, parameters: int) -> int:
    """Of `tokens` in `rows` that learn: what each layer keeps, and the most that one at work needs on the device.

    Beside what the host would need: scores and their slopes, logits, slopes on their way to `parameters` adapters of
    one layer, and packed matrices made plain, which a slope needs whole.
    """
    config, width, item = sizes.config, int(sizes.config.hidden_size), sizes.dtype.itemsize
    kept, unit, head = tuning_parts(sizes, tokens)
    seen = tokens * (tokens // max(rows, 1))
    scores = seen * (5 * int(config.attention.num_heads) * item + 16)  # the rest is masks
    slopes = 2 * 4 * parameters // int(config.num_hidden_layers)
    plain = 0
    if sizes.format.plain_dtype is None:
        heads = int(config.attention.num_heads * (config.attention.head_dim or 0))
        plain = max(4 * heads, 2 * widest(sizes)) * width * item + MANY_AT_ONCE * (_UNPACKING + 4)
    return int(kept + 2 * unit + head + scores + slopes + plain + LOGITS * CHUNK_BYTES) + MARGIN
