"""What a spiking network costs: neuron updates and synaptic operations per step, and joules by the stated model.

    operations   neurons * (operations of an update) + synapses that carried a spike
    bytes        neurons * (state read and written) + those synapses' places and weights, and the sums they go to

Beside it the same wiring without spikes: every synapse multiplies and adds in every step. That is no network of equal
quality, only one of equal synapses. Every byte is counted as if it came from memory, as elsewhere (energy.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from pragnosia.measure.energy import EnergyModel, energy_model
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import Activity

UPDATE_OPERATIONS = {"lif": 7, "lifa": 10, "izhikevich": 30}
"""Of one neuron and step with pulses, as source/membranes.hpp writes them down."""
RECEPTOR_OPERATIONS = {"pulses": 0, "currents": 2, "conductances": 22}
NOISE_OPERATIONS = 60
"""To draw a Gaussian number (source/chance.hpp): a quarter of ten rounds, half a logarithm, root, sine and cosine."""
UPDATE_BYTES = 30
"""v and w read and written, the clock, a place of the ring read and emptied, the neuron's own current."""
SUM_BYTES = 8
"""A neuron's place in the ring, read and written."""
PRECISION = "float32"


@dataclass(frozen=True, kw_only=True)
class SpikingCost:
    """Of one step, on average."""

    neuron_updates: int
    synaptic_operations: float
    operations: float
    num_bytes: float
    joules: float
    dense_operations: float
    dense_bytes: float
    dense_joules: float


def spiking_cost(brain: Brain, activity: Activity, model: EnergyModel | None = None) -> SpikingCost:
    """The cost of a step of one row, from what was counted over all of them."""
    model = model or energy_model()
    moments = activity.num_steps * len(activity.counts)
    operations = num_bytes = dense_bytes = 0.0
    for region in brain.regions:
        each = UPDATE_OPERATIONS[region.config.neuron.kind] + RECEPTOR_OPERATIONS[region.config.receptor.kind]
        operations += region.config.size * (each + (NOISE_OPERATIONS if region.noise_mv else 0))
        open_bytes = 8 * region.config.receptor.channels if region.config.receptor.kind != "pulses" else 0
        num_bytes += region.config.size * (UPDATE_BYTES + open_bytes)
    updates = (operations, num_bytes)
    delivered = activity.delivered.sum(0).double() / moments
    for one, count in zip(brain.projections, delivered.tolist(), strict=True):
        weight_bytes = one.synapses.weights.element_size() if len(one.synapses.weights) > 1 else 0
        num_bytes += count * (one.synapses.slots.element_size() + weight_bytes + SUM_BYTES)
        dense_bytes += one.synapses.count * (one.synapses.slots.element_size() + weight_bytes + SUM_BYTES)
    woken = float(delivered.sum())
    operations += woken
    dense_operations = updates[0] + 2 * brain.num_synapses
    dense_bytes += updates[1]
    return SpikingCost(
        neuron_updates=brain.num_neurons,
        synaptic_operations=woken,
        operations=operations,
        num_bytes=num_bytes,
        joules=model.estimate(operations, num_bytes, PRECISION).joules,
        dense_operations=dense_operations,
        dense_bytes=dense_bytes,
        dense_joules=model.estimate(dense_operations, dense_bytes, PRECISION).joules,
    )
