"""NIR's files: a graph of neurons, weights and delays as HDF5, read and written with weights as sparse triples.

    version                      of the format
    node/type, node/edges        "NIRGraph", (E, 2) names
    node/nodes/NAME/type, …      "LIF", "Linear", … and the arrays of the primitive
    node/nodes/NAME/metadata/…   strings, numbers, arrays

A weight matrix is dense in the file, (targets, sources), as NIR has it, and compressed; it is never whole in memory.

NIR: Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9; https://neuroir.org. The file is that of its library, 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pragnosia.errors import CheckpointError

VERSION = "1.0"
BLOCK_BYTES = 2**20
"""Of a matrix that is in memory at once, and of what is compressed in one piece."""
LEAST_COMPRESSED = 2**16
MATRICES = ("Linear", "Affine")
Array = NDArray[Any]


@dataclass(frozen=True)
class Sparse:
    """A matrix without its zeros; entries of one place follow each other and add up."""

    shape: tuple[int, int]
    """(targets, sources)."""
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    value: NDArray[Any]

    @classmethod
    def diagonal(cls, values: Array) -> Sparse:
        """One to one."""
        each = np.arange(len(values))
        return cls((len(values), len(values)), each, each, values)


@dataclass(frozen=True)
class Node:
    """A primitive by its name, with its arrays; the weight of a Linear or an Affine stands apart."""

    kind: str
    values: dict[str, Array] = field(default_factory=dict)
    weight: Sparse | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes, and who hands its output to whom."""

    nodes: dict[str, Node]
    edges: list[tuple[str, str]]
    metadata: dict[str, Any] = field(default_factory=dict)

    def before(self, name: str) -> list[str]:
        """Who hands to a node."""
        return [source for source, target in self.edges if target == name]


def write_graph(path: Path, graph: Graph) -> None:
    """Write a file, whole or not at all. Raises CheckpointError."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with _h5py().File(temporary, "w") as file:
            file["version"] = VERSION
            group = file.create_group("node")
            group["type"] = "NIRGraph"
            edges = np.array(graph.edges, dtype=object).reshape(-1, 2)
            group.create_dataset("edges", data=edges, dtype=_h5py().string_dtype())
            _write_metadata(group, graph.metadata)
            nodes = group.create_group("nodes")
            for name, node in graph.nodes.items():
                _write_node(nodes.create_group(name), node)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or ' '.join(str(error).split())}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_graph(path: Path) -> Graph:
    """A file's graph; graphs within it are laid open. Raises CheckpointError."""
    try:
        with _h5py().File(path, "r") as file:
            if "node" not in file or "nodes" not in file["node"]:
                raise CheckpointError(f"{path} is HDF5 without node/nodes, so it is no NIR graph")
            return _flattened(*_read_group(file["node"], path))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path} as HDF5, which NIR graphs are: {str(error).split('(')[0]}"
        ) from error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError("NIR files need the nir library: pip install 'pragnosia[nir]'") from error
    return h5py


def _write_node(group: Any, node: Node) -> None:
    group["type"] = node.kind
    for name, value in node.values.items():
        group.create_dataset(name, data=value)
    if node.weight is not None:
        _write_matrix(group, node.weight)
    _write_metadata(group, node.metadata)


def _write_metadata(group: Any, metadata: dict[str, Any]) -> None:
    if metadata:
        kept = group.create_group("metadata")
        for name, value in metadata.items():
            kept.create_dataset(name, data=value)


def _write_matrix(group: Any, matrix: Sparse) -> None:
    rows = max(1, min(matrix.shape[0], BLOCK_BYTES // (4 * matrix.shape[1])))
    small = 4 * matrix.shape[0] * matrix.shape[1] < LEAST_COMPRESSED
    how = {} if small else {"chunks": (rows, matrix.shape[1]), "compression": "gzip", "compression_opts": 1}
    data = group.create_dataset("weight", shape=matrix.shape, dtype=np.float32, **how)
    order = np.argsort(matrix.row, kind="stable")
    row, column, value = matrix.row[order], matrix.column[order], matrix.value[order]
    for first in range(0, matrix.shape[0], rows):
        last = min(first + rows, matrix.shape[0])
        here = slice(*np.searchsorted(row, (first, last)))
        if here.start < here.stop:  # what is never written reads as zeros
            block = np.zeros((last - first, matrix.shape[1]), np.float32)
            np.add.at(block, (row[here] - first, column[here]), value[here])
            data[first:last] = block


def _read_group(group: Any, path: Path) -> tuple[Graph, dict[str, Graph]]:
    """A graph, and those that are nodes of it by name."""
    nodes, inner = {}, {}
    for name, one in group["nodes"].items():
        kind = _text(one["type"][()]) if "type" in one else "?"
        if kind == "NIRGraph":
            inner[name] = _flattened(*_read_group(one, path))
        else:
            nodes[name] = _read_node(one, kind)
    edges = [(_text(source), _text(target)) for source, target in group["edges"][()]]
    for name in {end for edge in edges for end in edge} - set(nodes) - set(inner):
        raise CheckpointError(f"{path}: an edge names the node {name!r}, which is not there")
    return Graph(nodes, edges, _read_metadata(group)), inner


def _read_node(group: Any, kind: str) -> Node:
    values = {name: np.asarray(item[()]) for name, item in group.items() if name not in ("type", "weight", "metadata")}
    weight = None
    if "weight" in group and kind in MATRICES and group["weight"].ndim == 2:
        weight = _read_matrix(group["weight"])
    elif "weight" in group:
        values["weight"] = np.asarray(group["weight"][()])
    return Node(kind, values, weight, _read_metadata(group))


def _read_metadata(group: Any) -> dict[str, Any]:
    if "metadata" not in group:
        return {}
    return {name: _text(item[()]) for name, item in group["metadata"].items() if hasattr(item, "dtype")}


def _read_matrix(data: Any) -> Sparse:
    rows = max(1, BLOCK_BYTES // (data.dtype.itemsize * max(data.shape[1], 1)))
    found = []
    for first in range(0, data.shape[0], rows):
        block = data[first : first + rows]
        place = np.flatnonzero(block.ravel() != 0)  # many times as fast as nonzero of two dimensions
        found.append((place // data.shape[1] + first, place % data.shape[1], block.ravel()[place]))
    row, column, value = (
        (np.concatenate(part) for part in zip(*found, strict=True)) if found else (np.zeros(0, int),) * 3
    )
    return Sparse((int(data.shape[0]), int(data.shape[1])), row, column, value)


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _flattened(graph: Graph, inner: dict[str, Graph]) -> Graph:
    """Graphs within a graph put in its place: their inputs and outputs only hand on."""
    for name, one in inner.items():
        within = {f"{name}.{key}": _handing_on(node) for key, node in one.nodes.items()}
        ends = {kind: [f"{name}.{key}" for key, node in one.nodes.items() if node.kind == kind] for kind in _ENDS}
        edges = [(f"{name}.{source}", f"{name}.{target}") for source, target in one.edges]
        edges += list(_opened(graph.edges, name, ends))
        graph = replace(graph, nodes=graph.nodes | within, edges=edges)
    return graph


_ENDS = ("Input", "Output")


def _handing_on(node: Node) -> Node:
    return replace(node, kind="Identity") if node.kind in _ENDS else node


def _opened(edges: list[tuple[str, str]], name: str, ends: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Edges in which a graph's name gives way to its own input and output."""
    for source, target in edges:
        for begin in ends["Output"] if source == name else [source]:
            for end in ends["Input"] if target == name else [target]:
                yield begin, end
