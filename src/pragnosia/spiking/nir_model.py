"""A spiking language model as a NIR graph: its brain, with the way in for tokens and the way out to logits.

    ours                              NIR
    a token's current into region r   Input (V,), 1 at the token, held for its steps; a Linear to each region it enters,
                                      by way of the codes where the model has a rank, and of a Delay for each
                                      delay line but the first
    y = kappa y + spikes              LI with r = 1 / (1 - kappa) for each region and time constant
    logits = up (gain down y) + bias  a Linear of each, whose sum is, with the bias, what Output (V,) is

Nothing between an end and its neurons delays, so the logits of a token stand at the output in the token's own step.
A text begins with the membranes of the brain's seed, which each population's metadata hold as `begin` [mV].
With several steps a token traces fade once in all of them, which NIR's integrators cannot: the spikes are then the
output, and the metadata have the readout (`readout_up`, `readout_down` (features, rank), `readout_gain`,
`readout_bias`, `trace_tokens`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pragnosia.spiking.nir_export import as_graph, leaky
from pragnosia.spiking.nir_graph import Graph, Node, Sparse, write_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pragnosia.spiking.neurogen import NeuroGenForCausalLM


def export_model(model: NeuroGenForCausalLM, path: Path) -> Graph:
    """Write a model to a NIR file. Raises ConfigError for what NIR cannot say."""
    graph = model_graph(model)
    write_graph(path, graph)
    return graph


def model_graph(model: NeuroGenForCausalLM) -> Graph:
    """The graph. Raises ConfigError for what NIR cannot say."""
    config: Any = model.config
    bare = as_graph(model.brain, drive="constant", ends=False)
    named = {node.metadata["population"]: name for name, node in bare.nodes.items() if "population" in node.metadata}
    nodes, edges = dict(bare.nodes), list(bare.edges)
    begun = model.begin().brain.populations
    for region, name in named.items():
        begin = {"begin": _array(begun[region].membranes.v[0])}
        nodes[name] = replace(nodes[name], metadata=nodes[name].metadata | begin)
    metadata = bare.metadata | {
        "language_model": True,
        "steps_per_token": config.steps_per_token,
        "trace_tokens": np.array(config.trace_tokens, np.float64),
    }
    _enter(model, named, nodes, edges)
    if config.steps_per_token == 1:
        _leave(model, named, nodes, edges)
        return Graph(nodes, edges, metadata)
    for region in config.out:
        name = "output" if len(config.out) == 1 else f"output_{region}"
        nodes[name] = Node("Output", {"shape": np.array([model.sizes[region]])})
        edges.append((named[region], name))
    readout = {"up": model.read.up, "bias": model.read.bias}
    readout |= {} if model.read.down is None else {"down": model.read.down}
    metadata |= {f"readout_{name}": _array(one) for name, one in readout.items()}
    return Graph(nodes, edges, metadata | {"readout_gain": model.read.gain})


def _enter(
    model: NeuroGenForCausalLM, named: dict[str, str], nodes: dict[str, Node], edges: list[tuple[str, str]]
) -> None:
    config: Any = model.config
    nodes["input"] = Node("Input", {"shape": np.array([config.vocab_size])})
    codes, before = _array(model.enter.codes), "input"
    if model.enter.spread is not None:
        nodes["token_codes"] = Node("Linear", {}, _matrix(codes.T))
        edges.append(("input", "token_codes"))
        lines, before = np.split(_array(model.enter.spread), config.lines), "token_codes"
    else:
        lines = np.split(codes, config.lines, 1)
    thresholds, sizes = _array(model.circuit.thresholds(config.into)), [model.sizes[name] for name in config.into]
    token = config.steps_per_token * config.wired.dt_ms / 1000
    for late, line in enumerate(lines):
        source, mark = before, f"_line_{late}" if late else ""
        if late:
            source = f"line_{late}"
            nodes[source] = Node("Delay", {"delay": np.full(len(line), late * token)})
            edges.append((before, source))
        for region, part in zip(config.into, np.split(line * thresholds, np.cumsum(sizes)[:-1], 1), strict=True):
            name = f"currents_{named[region]}{mark}"
            nodes[name] = Node("Linear", {}, _matrix(part.T))
            edges += [(source, name), (name, named[region])]


def _leave(
    model: NeuroGenForCausalLM, named: dict[str, str], nodes: dict[str, Node], edges: list[tuple[str, str]]
) -> None:
    config: Any = model.config
    up, bias = _array(model.read.up), _array(model.read.bias)
    ranked = model.read.down is not None
    reads = model.read.gain * (up if model.read.down is None else _array(model.read.down).T)
    nodes["output"] = Node("Output", {"shape": np.array([config.vocab_size])})
    if ranked:
        nodes["logits"] = Node("Affine", {"bias": bias}, _matrix(up))
        edges.append(("logits", "output"))
    end, first = "logits" if ranked else "output", 0
    for number, tau in enumerate(config.trace_tokens):
        for region in config.out:
            last = first + model.sizes[region]
            trace, read = f"trace_{number}_{named[region]}", f"readout_{number}_{named[region]}"
            nodes[trace] = leaky(config.wired.dt_ms, tau * config.wired.dt_ms, model.sizes[region])
            with_bias = not ranked and not first  # one of those that add up to the logits has it
            values = {"bias": bias} if with_bias else {}
            nodes[read] = Node("Affine" if with_bias else "Linear", values, _matrix(reads[:, first:last]))
            edges += [(named[region], trace), (trace, read), (read, end)]
            first = last


def _array(tensor: Any) -> NDArray[Any]:
    return np.asarray(tensor.detach().float().cpu().numpy())


def _matrix(values: NDArray[Any]) -> Sparse:
    row, column = values.nonzero()
    return Sparse((values.shape[0], values.shape[1]), row, column, values[row, column])
