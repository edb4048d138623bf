"""Ways through a NIR graph: from what fires, by matrices, delays, factors and filters, to what fires next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pragnosia.errors import CheckpointError
from pragnosia.spiking.nir_graph import MATRICES, Array, Graph, Node, Sparse

FIRING = ("LIF", "CubaLIF")
PASSED = (*MATRICES, "Delay", "Identity", "LI", "Scale")
KNOWN = sorted({*FIRING, *PASSED, "Input", "Output", "NIRGraph"} - {"Identity"})


@dataclass(frozen=True, eq=False)
class Way:
    """One way, read from its end: what comes from `source` is delayed, multiplied, filtered."""

    source: str
    matrix: Sparse | None = None
    gain: Any = 1.0
    """Of each target."""
    gain_before: Any = 1.0
    """Of each source, before the matrix."""
    bias: Any = 0.0
    """What matrices add for each target, whatever comes."""
    delay: Any = 0.0
    """[s], of each source."""
    delayed: bool = False
    tau: float | None = None
    """[s], of a filter on the way."""
    r: float = 1.0
    """Of the filter."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of the matrix."""

    def synapses(self, matrix: Sparse, gain: float) -> tuple[Array, Array, Array]:
        """Target, source and weight of each synapse, those that a dense matrix hides among them."""
        row, column, value = matrix.row, matrix.column, matrix.value
        if "apart_weight" in self.metadata:
            row, column, value = _with_apart(matrix, self.metadata)
        scales = [scale for scale, at in ((self.gain, row), (self.gain_before, column)) for scale in [_at(scale, at)]]
        if gain != 1 or any(np.any(scale != 1) for scale in scales):
            value = gain * scales[0] * scales[1] * value.astype(np.float64)
        return row, column, value.astype(np.float32)


def ways_into(file: Path, graph: Graph, name: str) -> list[Way]:
    """Every way into a node, each from what fires or from outside. Raises CheckpointError for nodes we do not know."""
    return [one for before in graph.before(name) for one in _back(file, graph, before, Way(before), frozenset({name}))]


def _back(file: Path, graph: Graph, name: str, so_far: Way, seen: frozenset[str]) -> Iterator[Way]:
    node = graph.nodes[name]
    if node.kind in FIRING or node.kind == "Input":
        yield replace(so_far, source=name)
        return
    if node.kind not in PASSED:
        raise CheckpointError(
            f"{file}: node {name!r} is a {node.kind}, for which a brain has no counterpart; it takes {', '.join(KNOWN)}"
        )
    if name in seen:
        raise CheckpointError(f"{file}: node {name!r} feeds back to itself without a neuron that fires between")
    further = _through(file, name, node, so_far)
    for before in graph.before(name):
        yield from _back(file, graph, before, further, seen | {name})


def _through(file: Path, name: str, node: Node, so_far: Way) -> Way:
    """The way with one more node in front."""
    if node.kind == "Delay":
        return _delayed(file, name, node, so_far)
    if node.kind == "Scale":
        where = "gain" if so_far.matrix is None else "gain_before"
        return replace(so_far, **{where: getattr(so_far, where) * _row(file, name, node.values["scale"])})
    if node.kind == "LI":
        return _filtered(file, name, node, so_far)
    if node.kind in MATRICES:
        return _multiplied(file, name, node, so_far)
    return so_far


def _delayed(file: Path, name: str, node: Node, so_far: Way) -> Way:
    delay = _row(file, name, node.values["delay"])
    if so_far.matrix is None and np.any(delay != delay[0]):
        raise CheckpointError(f"{file}: the delays of {name!r} differ between targets; a brain's may between sources")
    delay = delay[:1] if so_far.matrix is None else delay
    # of single precision, its own digits
    exact = delay if delay.dtype == np.float64 else np.array([float(str(one)) for one in delay])
    return replace(so_far, delay=so_far.delay + exact, delayed=True)


def _filtered(file: Path, name: str, node: Node, so_far: Way) -> Way:
    values = {key: _row(file, name, node.values[key]) for key in ("tau", "r", "v_leak")}
    if any(np.any(one != one[0]) for one in values.values()) or values["v_leak"][0] != 0:
        raise CheckpointError(
            f"{file}: {name!r} is an LI whose neurons differ or leak to other than 0; a receptor has one tau"
        )
    if so_far.tau is not None:
        raise CheckpointError(f"{file}: {name!r} filters what is filtered again behind it; a receptor has one filter")
    return replace(so_far, tau=float(str(values["tau"][0])), r=float(str(values["r"][0])))


def _multiplied(file: Path, name: str, node: Node, so_far: Way) -> Way:
    if node.weight is None:
        raise CheckpointError(f"{file}: {name!r} has no weights of two dimensions")
    if so_far.matrix is not None:
        raise CheckpointError(
            f"{file}: {name!r} and another matrix follow each other with nothing between them that fires"
        )
    bias = node.values.get("bias")
    added: Any = 0.0
    if bias is not None and np.any(bias):
        if so_far.tau is not None:
            raise CheckpointError(
                f"{file}: {name!r} has a bias that a filter follows; a brain's own currents are not filtered"
            )
        added = so_far.gain * _row(file, name, bias)
    return replace(so_far, matrix=node.weight, bias=so_far.bias + added, metadata=node.metadata)


def _row(file: Path, name: str, values: Array) -> Array:
    if values.ndim != 1 or values.size == 0:
        raise CheckpointError(f"{file}: {name!r} has values of shape {values.shape}; neurons here lie in a row")
    return values


def _at(scale: Any, index: Array) -> Any:
    """A factor for each synapse."""
    return scale[index] if np.ndim(scale) == 1 and np.size(scale) > 1 else np.ravel(scale)[0]


def _with_apart(matrix: Sparse, metadata: dict[str, Any]) -> tuple[Array, Array, Array]:
    """With those of a pair wired several times, and those of weight 0, in place of their sum; if it still is that."""
    row, column, weight = (np.asarray(metadata[f"apart_{part}"]) for part in ("target", "source", "weight"))
    width = matrix.shape[1]
    place, own = row.astype(np.int64) * width + column, matrix.row * width + matrix.column
    pairs, inverse = np.unique(place, return_inverse=True)
    summed = np.zeros(len(pairs), np.float32)
    np.add.at(summed, inverse, weight.astype(np.float32))
    there = np.zeros(len(pairs), np.float32)
    hit = np.isin(own, pairs)
    there[np.searchsorted(pairs, own[hit])] = matrix.value[hit]
    holds = there == summed
    told, rest = holds[inverse], ~np.isin(own, pairs[holds])
    return (
        np.concatenate([matrix.row[rest], row[told].astype(np.int64)]),
        np.concatenate([matrix.column[rest], column[told].astype(np.int64)]),
        np.concatenate([matrix.value[rest], weight[told]]),
    )
