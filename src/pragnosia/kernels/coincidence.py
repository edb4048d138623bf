"""One-pass learning's compute: tokens are predicted one by one, and where asked each is learned as soon as it was read.

    p(token) = prod over its path of decisions        p(decision) = half a mixture, half what corrects it
    slot += (y - slot) / (count + 1.5)                the delta rule, at a rate of the slot's own
    mixer += rate (y - sigmoid(mixer . inputs)) inputs

A decision has one slot for each coincidence neuron that fires; inputs are log odds of what such slots turned out to be
worth. The parts are those of context mixing (Mahoney 2005, CS-2005-16; lpaq) and of gated linear networks (Veness et
al. 2019, arXiv 1910.01526): every stage learns by its own error, and none passes an error back.

V tokens, N = V - 1 decisions, T tokens read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.kernels.compiled import loaded_library, native_library

CONTEXTS, INPUTS, SETS, MATCHES = 24, 64, 4, 2
COUNTS, LEVELS, STEPS, MOST, SLOTS = 20, 64, 33, 64, 8
SITUATIONS, DEPTHS = 1 + 6 + 6, 4
"""Mixers: one per decision for each of these, and `DEPTHS` for each last token."""
STATE_WORDS = 64
OTHER, LETTER, NEWLINE, SPACE = range(4)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast each stage learns."""

    slowest: float = 0.002
    fastest: float = 0.02
    decay: float = 1e-5
    """Mixers learn at fastest / (1 + decay * decisions learned), never slower than `slowest`."""
    final: float = 0.005
    correction: float = 0.02
    map_limit: float = 255.0
    slot_limit: int = 255
    """A count stops here: what is counted on keeps 1 / (limit + 1.5) of each error."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The decisions that lead to each token, derived from the children of each node."""

    path: Int[Tensor, "P 4"]
    """int32: node, segment of three levels, slot in it (1 to 7), decision."""
    start: Int[Tensor, " V+1"]
    entries: Int[Tensor, "N 3"]
    """Segment, child of 0, child of 1; a leaf is -1 - token."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """All that was learned."""

    slots: Int[Tensor, "2^b 8"]
    maps: Float[Tensor, "24 20 64"]
    map_counts: Float[Tensor, "24 20 64"]
    mixers: Float[Tensor, "M 64"]
    finals: Float[Tensor, "V*N 4"]
    first_correction: Float[Tensor, "2^c 33"]
    second_correction: Float[Tensor, "2^c 33"]
    match_odds: Float[Tensor, "2 64"]
    match_counts: Float[Tensor, "2 64"]
    found: Int[Tensor, "2 2^m"]
    history: Int[Tensor, " 2^h"]
    learned: Int[Tensor, " 2"]
    """Tokens and decisions learned, int64."""


class _Call(ctypes.Structure):
    """`Call` of source/coincidence.hpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "nodes", "buckets", "matches", "history_bits", "corrections")),
        *((name, ctypes.c_void_p) for name in ("path", "start", "entries", "kind", "fold")),
        *((f"memory_{entry.name}", ctypes.c_void_p) for entry in fields(Memory)),
        ("state", ctypes.c_void_p),
        *((f"rate_{entry.name}", ctypes.c_float) for entry in fields(Rates)[:-1]),
        ("slot_limit", ctypes.c_int32),
    )


def tree_of(children: Int[Tensor, "N 2"]) -> Tree:
    """Paths from a table of children. Raises ValueError where it is no tree that has every token once."""
    table = children.tolist()
    paths: dict[int, list[tuple[int, int, int, int]]] = {}
    segments = [-1] * len(table)
    todo: list[tuple[int, list[tuple[int, int, int, int]]]] = [(0, [])]
    num_segments = 0
    while todo:
        node, path = todo.pop()
        if not 0 <= node < len(table) or segments[node] != -1:
            raise ValueError(f"node {node} of the tree of decisions is missing or stands in it twice")
        if len(path) % 3 == 0:
            segment, slot, num_segments = num_segments, 1, num_segments + 1
        else:
            segment, slot = path[-1][1], path[-1][2] * 2 + path[-1][3]
        segments[node] = segment
        for bit, child in enumerate(table[node]):
            step = [*path, (node, segment, slot, bit)]
            if child >= 0:
                todo.append((child, step))
            else:
                paths[-1 - child] = step
    if sorted(paths) != list(range(len(table) + 1)):
        raise ValueError(f"the tree of decisions leads to {len(paths)} tokens, expected {len(table) + 1}")
    ordered = [paths[token] for token in range(len(paths))]
    lengths = torch.tensor([0, *map(len, ordered)])
    return Tree(
        path=torch.tensor([step for path in ordered for step in path], dtype=torch.int32),
        start=lengths.cumsum(0).to(torch.int32),
        entries=torch.cat([torch.tensor(segments)[:, None], children.cpu()], 1).to(torch.int32).contiguous(),
    )


def read(
    memory: Memory,
    tree: Tree,
    kinds: tuple[Int[Tensor, " V"], Int[Tensor, " V"]],
    rates: Rates,
    tokens: Int[Tensor, " T"],
    state: Int[Tensor, 64],
    *,
    learn: bool = False,
    rows: int = 0,
) -> tuple[Float[Tensor, " T"], Float[Tensor, "rows V"]]:
    """Log-probability [nats] of each token before it is read, and of all tokens behind each of the last `rows`.

    `state` moves on in place; `memory` changes where `learn`. `kinds` are the kind of each token and the token it
    counts as in a word. Raises ValueError for a token that is none.
    """
    num_tokens = len(tree.start) - 1
    _check(tokens, num_tokens)
    if native_library() is None:
        from pragnosia.kernels.coincidence_reference import read_reference

        return read_reference(memory, tree, kinds, rates, tokens, state, learn=learn, rows=rows)
    said, all_said = torch.empty(len(tokens)), torch.empty(rows, num_tokens)
    tokens = tokens.to(torch.int64).contiguous()
    call = _call(memory, tree, kinds, rates, state)
    loaded_library().pragnosia_coincidence(
        ctypes.byref(call), tokens.data_ptr(), len(tokens), learn, said.data_ptr(), all_said.data_ptr(), rows
    )
    return said, all_said


def weigh(
    memory: Memory,
    tree: Tree,
    kinds: tuple[Int[Tensor, " V"], Int[Tensor, " V"]],
    rates: Rates,
    pieces: Sequence[Int[Tensor, " t"]],
    state: Int[Tensor, 64],
) -> Float[Tensor, " P"]:
    """Log-probability [nats] of each of some pieces of text, if it came next; nothing moves on."""
    if not pieces:
        return torch.zeros(0)
    tokens = torch.cat(list(pieces)).to(torch.int64)
    _check(tokens, len(tree.start) - 1)
    if native_library() is None:
        from pragnosia.kernels.coincidence_reference import read_reference

        each = [read_reference(memory, tree, kinds, rates, piece, state.clone())[0].sum() for piece in pieces]
        return torch.stack(each)
    said, trial = torch.empty(len(tokens)), state.clone()
    call, read_tokens = _call(memory, tree, kinds, rates, trial), loaded_library().pragnosia_coincidence
    given, told, silent, fresh = tokens.data_ptr(), said.data_ptr(), trial.data_ptr(), state.data_ptr()
    at = 0
    for piece in pieces:
        ctypes.memmove(silent, fresh, state.nbytes)
        read_tokens(ctypes.byref(call), given + 8 * at, len(piece), 0, told + 4 * at, None, 0)
        at += len(piece)
    return torch.stack([part.sum() for part in said.split([len(piece) for piece in pieces])])


def _check(tokens: Tensor, num_tokens: int) -> None:
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_tokens:
        raise ValueError(f"tokens reach {tokens.min()} to {tokens.max()}, expected 0 to {num_tokens - 1}")


def _call(memory: Memory, tree: Tree, kinds: tuple[Tensor, Tensor], rates: Rates, state: Tensor) -> _Call:
    """What it points to must outlive it."""
    tables = [getattr(memory, entry.name) for entry in fields(Memory)]
    assert all(table.is_contiguous() for table in (*tables, *kinds, state))
    num_tokens = len(tree.start) - 1
    return _Call(
        *(num_tokens, num_tokens - 1, *(_bits(table) for table in (memory.slots, memory.found[0], memory.history))),
        _bits(memory.first_correction),
        *(table.data_ptr() for table in (tree.path, tree.start, tree.entries, *kinds, *tables, state)),
        *(rates.slowest, rates.fastest, rates.decay, rates.final, rates.correction, rates.map_limit, rates.slot_limit),
    )


def _bits(table: Tensor) -> int:
    return len(table).bit_length() - 1
