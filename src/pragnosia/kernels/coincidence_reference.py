"""One-pass learning in plain Python and numpy: always right, a thousand times slower than source/coincidence.hpp.

The same tables and the same steps, written a second time; what differs is rounding, where sums run in another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from pragnosia.kernels.coincidence import Memory, Rates, Tree

_WORD = (1 << 64) - 1
_GOLD, _SPREAD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_CONTEXTS, _MATCHES, _SETS, _INPUTS, _MOST, _RECENT = 24, 2, 4, 64, 64, 32
_LEAST = (9, 5)
_HIGHEST = 12.0
_LETTER, _NEWLINE, _SPACE = 1, 2, 3
_HALF = 1 << 31
# Places in the state (Past of source/coincidence.hpp).
_NAMES = (
    *("read", "word", "word1", "word2", "word3", "suffix", "shape", "line", "paragraph", "opening", "topic"),
    *("letters", "column", "blank", "mark"),
)
_POINTER, _LENGTH, _PAST = 15, 17, 32
_CENTRES = np.log((np.arange(4096) + 0.5) / (4096 - np.arange(4096) - 0.5)).astype(np.float32)


def mixed(a: int, b: int) -> int:
    """Two words hashed into one."""
    x = (a ^ (b * _GOLD & _WORD) ^ 0x1234567) * _SPREAD & _WORD
    x = (x ^ x >> 32) * _SPREAD & _WORD
    return x ^ x >> 29


def _sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-_bounded(odds)))


def _bounded(odds: float) -> float:
    return min(max(odds, -_HIGHEST), _HIGHEST)


def _odds(p: float) -> float:
    return float(_CENTRES[min(max(int(p * 4096), 0), 4095)])


def _count_row(count: int) -> int:
    return count if count < 12 else 12 + sum(count >= step for step in (16, 24, 32, 64, 128, 250))


class _Decision:
    """What came in, what was said, and where what is to be learned lies."""

    def __init__(self) -> None:
        self.inputs = np.zeros(_INPUTS, np.float32)
        self.maps: list[tuple[int, int, int] | None] = []
        self.slots: list[tuple[int, int]] = []
        self.matches: list[tuple[int, int] | None] = []
        self.rows: list[int] = []
        self.votes: list[float] = []
        self.said: list[float] = []
        self.final = self.first = self.second = self.low = 0
        self.mixed_p = self.share = self.p = 0.0


class _Mind:
    def __init__(self, memory: Memory, tree: Tree, kinds: Any, rates: Rates, state: Tensor) -> None:
        self.m: dict[str, Any] = {entry.name: getattr(memory, entry.name).numpy() for entry in fields(memory)}
        self.m["slots"] = self.m["slots"].view(np.uint32)
        self.path, self.start, self.entries = tree.path.tolist(), tree.start.tolist(), tree.entries.tolist()
        self.kind, self.fold, self.rates = kinds[0].tolist(), kinds[1].tolist(), rates
        self.words = state.numpy().view(np.uint64)
        self.past: dict[str, int] = {name: int(self.words[n]) for n, name in enumerate(_NAMES)}
        self.pointer = [int(x) for x in self.words[_POINTER : _POINTER + _MATCHES]]
        self.length = [int(x) for x in self.words[_LENGTH : _LENGTH + _MATCHES]]
        self.recent = [int(x) for x in self.words[_PAST:]]
        self.view()

    def keep(self) -> None:
        """Write the state back."""
        for n, name in enumerate(_NAMES):
            self.words[n] = self.past[name]
        self.words[_POINTER : _POINTER + _MATCHES], self.words[_LENGTH : _LENGTH + _MATCHES] = self.pointer, self.length
        self.words[_PAST:] = self.recent

    def back(self, steps: int) -> int:
        read = self.past["read"]
        return self.recent[(read - steps) % _RECENT] if read >= steps else 0

    def view(self) -> None:
        """Which coincidence neuron fires in each view of the past."""
        p, b = self.past, [0, *(self.back(n) for n in range(1, 9))]
        o2 = b[1] | b[2] << 16
        o3 = o2 | b[3] << 32
        o4 = o3 | b[4] << 48
        o5 = mixed(o4, b[5])
        o6 = mixed(o5, b[6])
        word = (p["word"] + (0 if p["letters"] else b[1] + 1)) & _WORD
        pair = mixed(word, p["word1"])
        views = (
            *(0, b[1], o2, o3, o4, o5, o6, mixed(o6, b[7])),
            *(word, pair, mixed(pair, p["word2"]), mixed(word, (p["word2"] + 77) & _WORD)),
            *(b[2] | b[3] << 16, b[2] | b[3] << 16 | b[4] << 32, b[1] | b[3] << 16 | b[4] << 32),
            *(mixed(p["word"], p["mark"]), mixed(word, p["paragraph"]), min(p["column"], 63) | b[1] << 16),
            *(mixed(word, p["suffix"]), mixed(p["shape"], b[1]), mixed(p["opening"], word)),
            *(mixed(word, (p["word3"] + 99) & _WORD), mixed(o3, p["word1"]), mixed(p["topic"], word)),
        )
        self.neurons = [mixed(view, n + 1) for n, view in enumerate(views)]

    def open(self, segment: int, learn: bool) -> list[int]:
        """The bucket of each neuron, -1 for one that never was and must not be."""
        slots, found = self.m["slots"], []
        for neuron in self.neurons:
            h = (neuron + segment) * _GOLD & _WORD
            check, one = (h & 0xFFFFFFFF) | 1, (h >> 34) & (len(slots) - 1)
            other = one ^ 1
            if check in (slots[one, 0], slots[other, 0]):
                found.append(one if slots[one, 0] == check else other)
            elif learn:
                taken = one if slots[one, 1] & 1023 <= slots[other, 1] & 1023 else other
                slots[taken, 0], slots[taken, 1:] = check, _HALF
                found.append(taken)
            else:
                found.append(-1)
        return found

    def begin(self) -> list[int]:
        history = self.m["history"]
        return [
            int(history[at % len(history)]) if length > 0 else -1
            for at, length in zip(self.pointer, self.length, strict=True)
        ]

    def decide(self, buckets: list[int], guesses: list[int], node: int, slot: int, level: int) -> _Decision:
        """The probability that a decision goes to 1."""
        d, m, known = _Decision(), self.m, 0
        for n, bucket in enumerate(buckets):
            value = int(m["slots"][bucket, slot]) if bucket >= 0 else _HALF
            d.slots.append((bucket, slot))
            if value & 1023 == 0:
                d.maps.append(None)
                continue
            centre = float(_CENTRES[value >> 20])
            row = (n, _count_row(value & 1023), int(min(max(centre * 4 + 32, 0), 63)))
            d.maps.append(row)
            d.inputs[n] = _odds(float(m["maps"][row]))
            d.inputs[_CONTEXTS + n] = ((value >> 10) / (1 << 22) - 0.5) * 2
            known += 2 <= n <= 6
        situation = self._matches(d, guesses, node, level)
        d.inputs[2 * _CONTEXTS + 2 * _MATCHES] = 0.3
        nodes, last = len(self.entries), self.back(1)
        d.rows = [
            node,
            nodes * (1 + situation) + node,
            nodes * (7 + known) + node,
            nodes * 13 + last * 4 + min(level, 3),
        ]
        d.votes = [_bounded(float(m["mixers"][row] @ d.inputs)) for row in d.rows]
        d.said = [_sigmoid(vote) for vote in d.votes]
        d.final = last * nodes + node
        odds = _bounded(float(sum(w * vote for w, vote in zip(m["finals"][d.final], d.votes, strict=True))))
        d.mixed_p = _sigmoid(odds)
        at = (min(max(odds, -7.99), 7.99) + 8) * 2
        d.low, d.share = int(at), at - int(at)
        rows = len(m["first_correction"]) - 1
        d.first, d.second = mixed(last, node) & rows, mixed(last | self.back(2) << 16, node) & rows
        steps = m["first_correction"][d.first] + m["second_correction"][d.second]
        corrected = steps[d.low] * (1 - d.share) + steps[d.low + 1] * d.share
        d.p = min(max(0.5 * d.mixed_p + 0.25 * float(corrected), 1e-5), 1 - 1e-5)
        return d

    def _matches(self, d: Any, guesses: list[int], node: int, level: int) -> int:
        """Inputs of what followed the last time; how far it may be trusted, 0 to 5."""
        situation = 0
        for n, guess in enumerate(guesses):
            steps = self.path[self.start[guess] : self.start[guess + 1]] if guess >= 0 else []
            if level >= len(steps) or steps[level][0] != node:
                d.matches.append(None)
                continue
            length, bit = min(self.length[n], _MOST - 1), steps[level][3]
            d.matches.append((length, bit))
            p, sign = float(self.m["match_odds"][n, length]), 1 if bit else -1
            d.inputs[2 * _CONTEXTS + n] = sign * _odds(p)
            d.inputs[2 * _CONTEXTS + _MATCHES + n] = sign * (p - 0.5) * 2
            if situation == 0:
                situation = 1 if n == 1 else 2 + sum(length >= step for step in (12, 20, 28))
        return situation

    def learn(self, d: Any, bit: int) -> None:
        """The delta rule, stage by stage."""
        m, r = self.m, self.rates
        rate = max(r.slowest, r.fastest / (1 + r.decay * int(m["learned"][1])))
        for row, said in zip(d.rows, d.said, strict=True):
            m["mixers"][row] += np.float32((bit - said) * rate) * d.inputs
        for n, vote in enumerate(d.votes):
            m["finals"][d.final, n] += (bit - d.mixed_p) * r.final * vote
        for table, row in (("first_correction", d.first), ("second_correction", d.second)):
            for step, share in ((d.low, 1 - d.share), (d.low + 1, d.share)):
                m[table][row, step] += (bit - m[table][row, step]) * r.correction * share
        for row, at in zip(d.maps, d.slots, strict=True):
            if row is not None:
                m["maps"][row] += (bit - m["maps"][row]) / (m["map_counts"][row] + 1.5)
                m["map_counts"][row] = min(m["map_counts"][row] + 1, r.map_limit)
            value = int(m["slots"][at])
            p, count, target = value >> 10, value & 1023, (1 << 22) - 1 if bit else 0
            moved = int(np.float32(p) + np.float32(target - p) * np.float32(1 / (count + 1.5)))
            m["slots"][at] = moved << 10 | min(count + 1, max(count, r.slot_limit))
        for n, match in enumerate(d.matches):
            if match is not None:
                length, guess = match
                p, count = m["match_odds"][n, length], m["match_counts"][n, length]
                m["match_odds"][n, length] += (float(guess == bit) - p) / (count + 1.5)
                m["match_counts"][n, length] = min(count + 1, 1000)

    def read(self, token: int, learn: bool) -> float:
        """Log p(token); learns it where asked, and moves on."""
        log_p, guesses, segment, buckets = 0.0, self.begin(), -1, list[int]()
        steps = self.path[self.start[token] : self.start[token + 1]]
        for level, (node, part, slot, bit) in enumerate(steps):
            if part != segment:
                segment, buckets = part, self.open(part, learn)
            d: Any = self.decide(buckets, guesses, node, slot, level)
            log_p += math.log(d.p if bit else 1 - d.p)
            if learn:
                self.learn(d, bit)
            guesses = _agreeing(d, guesses, bit)
        if learn:
            self.m["learned"][1] += len(steps)
        self.move_on(token, learn)
        return log_p

    def every(self) -> Iterator[tuple[int, float]]:
        """Tokens and their log p; nothing moves."""
        todo: list[tuple[int, int, int, int, float, list[int]]] = [(0, 0, -1, 1, 0.0, self.begin())]
        while todo:
            node, level, segment, slot, log_p, guesses = todo.pop()
            part, *children = self.entries[node]
            slot = slot if part == segment else 1
            d: Any = self.decide(self.open(part, False), guesses, node, slot, level)
            for bit, child in enumerate(children):
                below = log_p + math.log(d.p if bit else 1 - d.p)
                if child < 0:
                    yield -1 - child, below
                else:
                    todo.append((child, level + 1, part, slot * 2 + bit, below, _agreeing(d, guesses, bit)))

    def move_on(self, token: int, learn: bool) -> None:
        """The delay lines take a spike; words, lines and matches follow."""
        m, p = self.m, self.past
        history, learned = m["history"], m["learned"]
        guesses = self.begin()
        if learn:
            history[int(learned[0]) % len(history)] = token
            learned[0] += 1
        self.recent[p["read"] % _RECENT] = token
        p["read"] += 1
        for n, guess in enumerate(guesses):
            agrees = guess == token
            self.length[n], self.pointer[n] = (self.length[n] + 1 if agrees else 0), self.pointer[n] + agrees
            if p["read"] >= _LEAST[n]:
                self._find(n, learn)
        kind = self.kind[token]
        if kind == _LETTER:
            p["word"], p["letters"] = mixed(p["word"], self.fold[token]), p["letters"] + 1
        else:
            if p["letters"]:
                self._end_word()
            p["mark"] = p["mark"] if kind == _SPACE else token
        if kind == _NEWLINE:
            p["paragraph"] = p["line"] if p["column"] and p["blank"] else p["paragraph"]
            p["blank"], p["column"], p["line"], p["opening"] = int(p["column"] == 0), 0, 0, 0
        else:
            p["column"], p["line"] = p["column"] + 1, mixed(p["line"], token)
            if p["opening"] == 0 and kind != _LETTER and p["column"] > 1:
                p["opening"] = p["word1"]
        self.view()

    def _end_word(self) -> None:
        p = self.past
        p["word3"], p["word2"], p["word1"] = p["word2"], p["word1"], p["word"]
        p["shape"] = (p["shape"] * 16 + min(p["letters"], 15)) & 0xFFF
        p["suffix"] = self.fold[self.back(3)] << 16 | self.fold[self.back(2)]
        p["topic"] = p["word"] if p["letters"] > 4 else p["topic"]
        p["word"], p["letters"] = 0, 0

    def _find(self, n: int, learn: bool) -> None:
        """Where what was just read stood before."""
        m, h = self.m, n
        for step in range(1, _LEAST[n] + 1):
            h = mixed(h, self.back(step))
        found, history, learned = m["found"], m["history"], int(m["learned"][0])
        at = h >> (64 - (found.shape[1].bit_length() - 1))
        candidate = int(found[n, at])
        if self.length[n] == 0 and candidate > 0:
            most, length = min(_RECENT, candidate, self.past["read"]), 0
            while length < most and history[(candidate - 1 - length) % len(history)] == self.back(length + 1):
                length += 1
            if length >= _LEAST[n]:
                self.length[n], self.pointer[n] = length, candidate
        if learn:
            found[n, at] = learned & 0x3FFFFFFF
        if self.length[n] > 0 and self.pointer[n] & 0x3FFFFFFF == learned & 0x3FFFFFFF:
            self.length[n] = 0


def _agreeing(d: Any, guesses: list[int], bit: int) -> list[int]:
    """The guesses that this decision does not refute."""
    return [
        -1 if match is not None and match[1] != bit else guess for match, guess in zip(d.matches, guesses, strict=True)
    ]


def read_reference(
    memory: Memory,
    tree: Tree,
    kinds: tuple[Tensor, Tensor],
    rates: Rates,
    tokens: Int[Tensor, " T"],
    state: Int[Tensor, 64],
    *,
    learn: bool = False,
    rows: int = 0,
) -> tuple[Float[Tensor, " T"], Float[Tensor, "rows V"]]:
    """As `coincidence.read`."""
    mind = _Mind(memory, tree, kinds, rates, state)
    said, behind = torch.empty(len(tokens)), torch.empty(rows, len(tree.start) - 1)
    for n, token in enumerate(tokens.tolist()):
        said[n] = mind.read(token, learn)
        if n >= len(tokens) - rows:
            for other, log_p in mind.every():
                behind[n - (len(tokens) - rows), other] = log_p
    mind.keep()
    return said, behind
