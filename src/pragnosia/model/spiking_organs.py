"""Sub-configuration of the feed-forward whose hidden neurons spike."""

from __future__ import annotations

from dataclasses import dataclass

from pragnosia.model.organs import Organ, require_positive, require_whole


@dataclass(frozen=True, kw_only=True)
class LIFConfig(Organ):
    """Leaky integrate-and-fire neurons between two matrices, for the layers whose feed-forward is `spiking`."""

    width: int = 1024
    """Hidden neurons."""
    num_steps: int = 4
    """For which each token is shown to them; a neuron is heard by how many of these it spiked in."""
    tau_steps: float = 2.0
    """After so many steps without input a membrane has lost all but 1/e."""
    threshold: float = 0.5
    """At which a neuron spikes, in units of its current."""
    slope: float = 2.0
    """How fast the stand-in for a spike's slope falls off around the threshold; in training alone."""
    bias: bool = False

    def __post_init__(self) -> None:
        require_whole("lif", width=self.width, num_steps=self.num_steps)
        require_positive("lif", tau_steps=self.tau_steps, threshold=self.threshold, slope=self.slope)
