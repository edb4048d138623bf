"""Window: the steps since the last line of the log, and the line they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pragnosia.learning import Lesson
from pragnosia.model.thalamus import report, sparse


@dataclass
class Window:
    """Losses and times of a few steps."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def add(self, loss: float, norm: float, tokens: int, seconds: float) -> None:
        """One more step."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.tokens += tokens
        self.seconds += seconds

    def means(self) -> dict[str, float]:
        """What a line of the log says about these steps."""
        steps = len(self.losses)
        return {
            "loss": sum(self.losses) / steps,
            "gradient_norm": sum(self.norms) / steps,
            "tokens_per_second": self.tokens / self.seconds,
            "seconds_per_step": self.seconds / steps,
        }


def wakefulness(lesson: Lesson) -> dict[str, Any]:
    """Who woke in one batch: per token and layer, how evenly, and how many units of all layers nobody woke.

    Where layers have gates, also the share of the tokens that passed them; of a spiking model how often a neuron fired
    in a token.
    """
    gates = [report(routing.gate) for routing in lesson.routings if routing is not None and routing.gate is not None]
    passed = {"tokens_passed": sum(gate.awake_per_token for gate in gates) / len(gates)} if gates else {}
    if lesson.fired is not None:
        passed["spikes_per_neuron"] = float(lesson.fired)
    layers = [report(routing) for routing in sparse(lesson.routings)]
    if not layers:
        return passed
    return passed | {
        "units": layers[0].load.numel(),
        "units_awake": sum(layer.awake_per_token for layer in layers) / len(layers),
        "load_entropy": sum(layer.entropy for layer in layers) / len(layers),
        "dead_units": sum(layer.num_dead for layer in layers),
    }
