"""What a model at work needs beside its weights: activations, buffers, the logits. Bytes, meant to err upwards."""

from __future__ import annotations

import torch

from pragnosia.inference.sizes import Sizes
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.cross_entropy import CHUNK_BYTES
from pragnosia.kernels.native import FINE_BESIDE_TILES
from pragnosia.model.organs import UnitsConfig
from pragnosia.model.slot_organs import slot_scratch
from pragnosia.units import MIB

PROMPT_PIECE = 1024
"""Tokens of a prompt that a layer reads at once: more would take more scratch and gain nothing."""
MARGIN = 24 * MIB
"""What malloc keeps and nobody counts."""
PRODUCTS = 96 * MIB  # the code that torch's library of products writes for each shape, and keeps


def most_awake(organ: UnitsConfig) -> int:
    """Units of one layer that a token may wake."""
    thalamus = organ.thalamus
    if thalamus.kind == "threshold":
        return min(organ.num_units, thalamus.max_awake or 2 * thalamus.num_awake)
    return thalamus.num_awake


def speaking_scratch(sizes: Sizes, tokens: int) -> int:
    """A prompt's activations, each thread's packed units and buffers, logits; see source/bank.hpp."""
    width, vocabulary, organ = int(sizes.config.hidden_size), int(sizes.config.vocab_size), sizes.config.units
    if organ is None:
        return tokens * 4 * (12 * width + 3 * widest(sizes)) + 4 * vocabulary * 4 + MARGIN
    threads, hidden = torch.get_num_threads(), ACTIVATIONS[organ.activation].num_parts * organ.unit_width
    rows = tokens * (most_awake(organ) + 12) * width * 4
    if organ.unit_width <= FINE_BESIDE_TILES:  # summed as they come; what a slot keeps is its hidden values
        rows = tokens * (14 * width + most_awake(organ) * 3 * (hidden + organ.unit_width + 16)) * 4
    desk = 2 * 2 * (hidden + organ.unit_width) * width + 64 * 4 * (2 * hidden + 3 * width)
    return int(rows + threads * desk) + 4 * vocabulary * 4 + MARGIN


def prompt_scratch(sizes: Sizes, room: int) -> int:
    """Of a prompt that fills the room: one piece at work, and the stream of all where there are several."""
    stream = room * int(sizes.config.hidden_size) * sizes.dtype.itemsize if room > PROMPT_PIECE else 0
    piece = min(room, PROMPT_PIECE)
    return speaking_scratch(sizes, piece) + slot_scratch(sizes.config, piece) + stream


def widest(sizes: Sizes) -> int:
    """Hidden values of a dense or spiking feed-forward, its gates included; 0 where there is none."""
    dense, spiking = sizes.config.feed_forward, sizes.config.lif
    hidden = int(ACTIVATIONS[dense.activation].num_parts * dense.width) if dense else 0
    return max(hidden, 2 * int(spiking.width) if spiking else 0)  # currents, membranes and counts beside each other


def tuning_scratch(sizes: Sizes, tokens: int) -> int:
    """What is kept of each layer, what the layer at work needs, the logits' chunk and an output head made plain."""
    kept, unit, head = tuning_parts(sizes, tokens)
    return kept + unit * torch.get_num_threads() + head + 2 * CHUNK_BYTES + PRODUCTS + MARGIN


def tuning_parts(sizes: Sizes, tokens: int) -> tuple[int, int, int]:
    """Of that what the layers take, what a unit at work does, and an output head that is packed made plain."""
    config, item = sizes.config, sizes.dtype.itemsize
    width, heads = int(config.hidden_size), int(config.attention.num_heads * (config.attention.head_dim or 0))
    kept = 3 * int(config.num_hidden_layers) * tokens * width * item
    slots = 3 * slot_scratch(config, tokens)  # and what is kept of it for the way back
    at_work = slots + tokens * (16 * width + 12 * heads + 4 * widest(sizes)) * item + tokens * 4 * width * 4
    unit = 0
    if config.units is not None and not sizes.is_dense:
        organ = config.units
        parts = ACTIVATIONS[organ.activation].num_parts + 1
        unit = 2 * 2 * parts * organ.unit_width * width + tokens * 4 * (6 * width + 6 * parts * organ.unit_width)
    head = int(config.vocab_size) * width * 2 if sizes.format.plain_dtype is None else 0
    return kept + at_work, unit, head
