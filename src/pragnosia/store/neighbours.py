"""Neighbours: the entries whose keys lie nearest to a state, over all lessons. Derived; the store is the truth.

    similarity = <k, q> / (|k| |q|)

Up to FLAT entries are compared one by one, exactly. Beyond, an index of faiss (inverted lists over the square root of
their number of centres, keys in 16 bits) looks through the PROBES nearest lists; it lies beside the store, is made anew
when lessons it holds were forgotten or many came since, and what came since is compared one by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore

FLAT = 1 << 16
"""Entries that are compared one by one."""
PROBES = 16
INDEX, STAMP = "neighbours.faiss", "neighbours.json"
_PIECE = 1 << 16
_PER_CENTRE = 48  # keys a centre is drawn from; faiss wants 39 or more


@dataclass(frozen=True, eq=False)
class Found:
    """Of N queries the nearest entries, nearest first; where there are too few, similarity is -1 and the token -1."""

    similarities: Float[np.ndarray, "N E"]
    episodes: Int[np.ndarray, "N E"]
    positions: Int[np.ndarray, "N E"]
    tokens: Int[np.ndarray, "N E"]
    """What followed there."""


class Neighbours:
    """The entries of a store, as they were when this was made; `refreshed` says whether more came."""

    def __init__(self, store: EpisodicStore, *, flat: int = FLAT, probes: int = PROBES) -> None:
        self._store, self._flat, self._probes = store, flat, probes
        self._read()

    def refresh(self) -> None:
        """Read what was written or forgotten since."""
        if self._store.version != self._version:
            self._read()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def compared(self) -> tuple[int, int]:
        """Keys that one query is compared with: of four bytes a number, centres among them, and of two (on average)."""
        if self._index is None:
            return len(self._keys), 0
        centres = int(self._index.nlist)
        return len(self._keys) + centres, self._probes * int(self._index.ntotal) // centres

    def search(self, queries: Float[np.ndarray, "N D"], most: int) -> Found:
        """The `most` nearest entries of each query."""
        wanted = _unit(np.asarray(queries, np.float32))
        parts = [_exact(wanted, self._keys, most, len(self) - len(self._keys))]
        if self._index is not None:
            parts.append(self._index.search(wanted, most))
        similarities, numbers = (np.concatenate(each, 1) for each in zip(*parts, strict=True))
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :most]
        similarities, numbers = np.take_along_axis(similarities, order, 1), np.take_along_axis(numbers, order, 1)
        missing = numbers < 0
        told = [np.where(missing, -1, each[numbers] if len(each) else -1) for each in self._told]
        return Found(np.where(missing, -1.0, similarities), *told)

    @property
    def _told(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        return self.episodes, self.positions, self.tokens

    def _read(self) -> None:
        self._version = self._store.version
        count, covered = self._store.num_entries, 0
        self._index: Any = None
        if count > self._flat:
            self._index, covered = self._opened(count)
        ids, positions, tokens, keys = [], [], [], []
        for episode in self._store.after():
            size = len(episode.surprises)
            ids.append(np.full(size, episode.id, np.int64))
            positions.append(np.arange(size, dtype=np.int32))
            tokens.append(episode.tokens[1:])
            if episode.id > covered:
                keys.append(_unit(episode.keys.astype(np.float32)))
        self.episodes: NDArray[np.int64] = _joined(ids, np.int64)
        self.positions: NDArray[np.int32] = _joined(positions, np.int32)
        self.tokens: NDArray[np.int32] = _joined(tokens, np.int32)
        width = self._store.header.width
        self._keys: NDArray[np.float32] = np.concatenate(keys) if keys else np.zeros((0, width), np.float32)

    def _opened(self, count: int) -> tuple[Any, int]:
        """The index, and the id of the last lesson it covers."""
        import faiss

        index: Any
        stamp, folder = _stamp(self._store.folder), self._store.folder
        if stamp is not None and self._fits(stamp, count):
            try:
                index = faiss.read_index(str(folder / INDEX))
            except RuntimeError:  # it is derived: a damaged one is made anew
                index = None
            if index is not None and index.ntotal == stamp["entries"] and index.d == self._store.header.width:
                index.nprobe = self._probes
                return index, int(stamp["last"])
        return self._built(count)

    def _fits(self, stamp: dict[str, Any], count: int) -> bool:
        """Whether all that an index covers is still there, and most of what there is is covered."""
        there = self._store.entries_up_to(int(stamp["last"]))
        return there == (stamp["episodes"], stamp["entries"]) and count - stamp["entries"] <= max(
            self._flat, count // 5
        )

    def _built(self, count: int) -> tuple[Any, int]:
        """A new index, kept beside the store where that can be written to."""
        import faiss

        width = self._store.header.width
        centres = 1 << max(1, int(np.log2(count) / 2))
        quantiser = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            quantiser, width, centres, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        index.train(self._sample(centres * _PER_CENTRE, count))
        last = 0
        for piece, end in _pieces(self._store.after()):
            last = end
            index.add(_unit(piece))
        index.nprobe = self._probes
        episodes, entries = self._store.entries_up_to(last)
        _keep(index, {"last": last, "episodes": episodes, "entries": entries}, self._store.folder)
        return index, last

    def _sample(self, wanted: int, count: int) -> NDArray[np.float32]:
        """Keys evenly from all lessons."""
        step = max(1, count // wanted)
        return _unit(np.concatenate([piece[::step] for piece, _ in _pieces(self._store.after())]))


def _exact(
    queries: NDArray[np.float32], keys: NDArray[np.float32], most: int, offset: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compared one by one; numbers count from `offset`."""
    kept = min(most, len(keys))
    if not kept:
        shape = len(queries), 0
        return np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    similarities = queries @ keys.T
    numbers = np.argpartition(-similarities, kept - 1, axis=1)[:, :kept]
    return np.take_along_axis(similarities, numbers, 1), numbers + offset


def _pieces(episodes: Iterator[Episode]) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Keys, some tens of thousands at a time, and the id of the lesson they end with."""
    held: list[NDArray[np.float16]] = []
    size = last = 0
    for episode in episodes:
        held.append(episode.keys)
        size, last = size + len(episode.keys), episode.id
        if size >= _PIECE:
            yield np.concatenate(held).astype(np.float32), last
            held, size = [], 0
    if held:
        yield np.concatenate(held).astype(np.float32), last


def _unit(keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of length 1."""
    lengths = np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.ascontiguousarray(keys / np.maximum(lengths, 1e-12), dtype=np.float32)


def _joined(parts: list[Any], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def _stamp(folder: Path) -> dict[str, Any] | None:
    """What an index says of itself; None where there is none that can be read."""
    try:
        stamp = json.loads((folder / STAMP).read_text("utf-8"))
        return {name: int(stamp[name]) for name in ("last", "episodes", "entries")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(index: Any, stamp: dict[str, int], folder: Path) -> None:
    """Beside the store, whole or not at all; where nothing can be written it is made again next time."""
    import faiss

    try:
        (folder / STAMP).unlink(missing_ok=True)  # an index without its stamp is not believed
        parts = [(INDEX, None), (STAMP, json.dumps(stamp))]
        for name, text in parts:
            part = folder / f"{name}.{os.getpid()}"
            if text is None:
                faiss.write_index(index, str(part))
            else:
                part.write_text(text, "utf-8")
            part.replace(folder / name)
    except (OSError, RuntimeError):
        return
