"""A spiking language model as a NIR graph: run from the file alone, it says what the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pragnosia.errors import CheckpointError
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig

nir = pytest.importorskip("nir", reason="NIR files need the extra nir")

from pragnosia.spiking.nir_import import import_brain  # noqa: E402
from pragnosia.spiking.nir_model import export_model  # noqa: E402

BRAIN = {
    "seed": 5,
    "drive": {"constant": {"mean_mv": 9, "spread_mv": 3}},
    "populations": {
        "ear": {
            "size": 11,
            "neuron": {"kind": "lifa", "tau_adaptation_ms": 40, "adaptation_mv": 1.5, "refractory_ms": 0},
        },
        "mouth": {"size": 9, "neuron": {"kind": "lif", "tau_ms": 8, "refractory_ms": 0}},
        "hand": {"size": 7, "neuron": {"kind": "lifa", "tau_ms": 12, "refractory_ms": 0}},
    },
    "projections": [
        {"source": "ear", "target": "mouth", "fan_in": 6, "weight": 4.0, "spread": 0.4, "delay_ms": [1, 3]},
        {"source": "mouth", "target": "hand", "fan_in": "all", "weight": 2.0, "spread": 0.3},
        {"source": "ear", "target": "ear", "fan_in": 4, "weight": -2.0, "spread": 0.3, "role": "recurrent"},
    ],
}
WORDS = 13


def small(**others: Any) -> NeuroGenForCausalLM:
    torch.manual_seed(2)
    config = NeuroGenConfig(vocab_size=WORDS, brain=BRAIN, **others)
    model = NeuroGenForCausalLM(config).eval()
    with torch.no_grad():
        model.read.bias.normal_()
    return model


class Simulator:
    """NIR's primitives, a step of dt at a time, as the metadata of our files has them; of the nir library's graph."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.dt = graph, float(graph.metadata["dt"])
        begun = {name: getattr(node, "metadata", {}).get("begin") for name, node in graph.nodes.items()}
        self.held: dict[str, Any] = {name: begin for name, begin in begun.items() if begin is not None}
        self.kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
        self.past: list[dict[str, Any]] = []
        self.now: dict[str, Any] = {}
        self.given: Any = None

    def step(self, given: Any) -> Any:
        self.given, self.now = given, {}
        outputs = {name: self.value(name) for name, kind in self.kinds.items() if kind == "Output"}
        for name in self.kinds:
            self.value(name)
        self.past.append(self.now)
        return outputs

    def value(self, name: str) -> Any:
        if name not in self.now:
            made = {"LIF": self.fires, "LI": self.membrane, "Scale": self.looped, "Delay": self.late}
            made |= {"Linear": self.product, "Affine": self.product, "Output": self.into, "Input": lambda _: self.given}
            self.now[name] = made[self.kinds[name]](name)
        return self.now[name]

    def sources(self, name: str) -> list[str]:
        return [source for source, target in self.graph.edges if target == name]

    def into(self, name: str) -> Any:
        return sum(self.value(source) for source in self.sources(name))

    def before(self, name: str, steps: int) -> Any:
        return sum(self.past[-steps][source] for source in self.sources(name)) if len(self.past) >= steps else 0.0

    def looped(self, name: str) -> Any:
        """The loops of adaptation: one step each."""
        return self.graph.nodes[name].scale * self.before(name, 1)

    def late(self, name: str) -> Any:
        delay = self.graph.nodes[name].delay
        return self.before(name, round(float(delay[0]) / self.dt)) * np.ones(len(delay))

    def product(self, name: str) -> Any:
        node = self.graph.nodes[name]
        return node.weight @ self.into(name) + getattr(node, "bias", 0.0)

    def membrane(self, name: str) -> Any:
        node = self.graph.nodes[name]
        share = -np.expm1(-self.dt / node.tau)
        self.held[name] = self.held.get(name, 0.0) * (1 - share) + share * (node.v_leak + node.r * self.into(name))
        return self.held[name]

    def fires(self, name: str) -> Any:
        threshold = self.graph.nodes[name].v_threshold
        spikes = (self.membrane(name) >= threshold).astype(float)
        self.held[name] = self.held[name] - spikes * threshold
        return spikes


TOKENS = torch.randint(WORDS, (60,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"lines": 3, "current": 1.5},
        {"rank": 5, "lines": 2, "out": ["mouth", "hand"], "into": ["ear", "hand"], "trace_tokens": [1.5, 6.0]},
    ],
)
def test_another_simulator_says_the_same(tmp_path: Path, others: dict[str, Any]) -> None:
    model = small(**others)
    export_model(model, tmp_path / "m.nir")
    graph = nir.read(tmp_path / "m.nir")
    assert set(graph.inputs) == {"input"}
    assert set(graph.outputs) == {"output"}
    simulator = Simulator(graph)
    found = np.stack([simulator.step(np.eye(WORDS)[int(token)])["output"] for token in TOKENS])
    with torch.no_grad():
        told = model(TOKENS[None], output_counts=True)
    assert 60 < float(told.counts.sum()) < 0.7 * told.counts.numel()
    assert np.allclose(found, told.logits[0].numpy(), atol=2e-4)


def test_several_steps_a_token_end_in_spikes(tmp_path: Path) -> None:
    model = small(steps_per_token=3, out=["mouth", "hand"], rank=4, lines=2)
    export_model(model, tmp_path / "m.nir")
    graph = nir.read(tmp_path / "m.nir")
    simulator = Simulator(graph)
    spikes = [simulator.step(np.eye(WORDS)[int(token)]) for token in TOKENS[:20] for _ in range(3)]
    found = np.stack([np.concatenate([one["output_mouth"], one["output_hand"]]) for one in spikes])
    with torch.no_grad():
        told = model(TOKENS[None, :20], output_counts=True)
    counts = model.read_of(told.counts)[0].numpy()
    assert np.array_equal(found.reshape(20, 3, -1).sum(1), counts)
    assert int(graph.metadata["steps_per_token"]) == 3
    with pytest.raises(CheckpointError, match="is a spiking language model"):
        import_brain(tmp_path / "m.nir")
    assert np.allclose(graph.metadata["readout_up"], model.read.up.detach().numpy())
    assert np.allclose(graph.metadata["trace_tokens"], [1.5])
