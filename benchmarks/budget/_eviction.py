"""Ways to choose which unit goes when another needs its slot, replayed on recorded routes: the share of hits."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

Routes = np.ndarray
"""(tokens, layers, awake): who wakes. The first third of the tokens fills the slots and does not count."""


def requests(routes: Routes, units: int) -> tuple[np.ndarray, int]:
    """One number per unit asked for, in order; and how many of them only fill the slots."""
    layers = np.arange(routes.shape[1])[None, :, None]
    return (layers * units + routes).reshape(-1), len(routes) // 3 * routes[0].size


def lru(routes: Routes, units: int, slots: int) -> float:
    """The longest unused goes."""
    asked, filling = requests(routes, units)
    here: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number, unit in enumerate(asked.tolist()):
        hits += unit in here and number >= filling
        here[unit] = None
        here.move_to_end(unit)
        if len(here) > slots:
            here.popitem(last=False)
    return hits / (len(asked) - filling)


def faded(routes: Routes, units: int, slots: int, half_life: float) -> float:
    """The one whose uses, each fading by half in `half_life` tokens, are fewest goes; no fading is LFU."""
    asked, filling = requests(routes, units)
    holder, worth, last = np.full(slots, -1), np.zeros(routes.shape[1] * units), np.zeros(routes.shape[1] * units)
    here: dict[int, int] = {}
    hits = 0
    for number, unit in enumerate(asked.tolist()):
        place, token = number % routes.shape[2], number // routes[0].size
        if unit in here:
            hits += number >= filling
        else:
            if len(here) < slots:
                slot = len(here)
            else:
                value = worth[holder] * np.exp2((last[holder] - token) / half_life)
                value[[here[other] for other in asked[number - place : number].tolist()]] = math.inf  # at work
                slot = int(value.argmin())
                del here[int(holder[slot])]
            here[unit], holder[slot] = slot, unit
        worth[unit] = worth[unit] * np.exp2((last[unit] - token) / half_life) + 1
        last[unit] = token
    return hits / (len(asked) - filling)


def best(routes: Routes, units: int, slots: int) -> float:
    """The one that is needed last of all goes: no choice of what to drop can find more."""
    asked, filling = requests(routes, units)
    following, seen = np.full(len(asked), len(asked)), {}
    for number in range(len(asked) - 1, -1, -1):
        following[number] = seen.get(asked[number], len(asked))
        seen[asked[number]] = number
    here: dict[int, int] = {}
    hits = 0
    for number, unit in enumerate(asked.tolist()):
        hits += unit in here and number >= filling
        if unit not in here and len(here) == slots:
            del here[max(here, key=here.__getitem__)]
        here[unit] = int(following[number])
    return hits / (len(asked) - filling)
