"""Health: whether a population never fires, or in every step it can, and why."""

from __future__ import annotations

import math

from pragnosia.errors import SimulationError
from pragnosia.spiking.neurons import Leaky, refractory_steps
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import Activity
from pragnosia.spiking.synapses import Currents, Pulses

JUDGED_FROM_MS = 100.0
"""In a shorter time nothing is said of a population."""
ALWAYS = 0.9
"""Of the spikes that refractoriness allows."""


def mean_rates_hz(brain: Brain, activity: Activity) -> dict[str, float]:
    """Of each region, over all its neurons, steps and rows."""
    seconds = activity.num_steps * brain.config.dt_ms / 1000
    mean = activity.counts.float().mean(0).sum(0) / max(seconds, 1e-9)
    return {region.name: float(mean[at]) / region.config.size for at, region in enumerate(brain.regions)}


def check_alive(brain: Brain, activity: Activity) -> None:
    """Raise SimulationError for the first population that never fired, or in every step it could."""
    if activity.num_steps * brain.config.dt_ms < JUDGED_FROM_MS:
        return
    for number, (name, rate) in enumerate(mean_rates_hz(brain, activity).items()):
        neuron = brain.regions[number].config.neuron
        most = 1000 / brain.config.dt_ms / (1 + refractory_steps(neuron, brain.config.dt_ms))
        if rate == 0:
            said, remedy = f"never fired in {activity.num_steps} steps", "raise its drive, or the weights into it"
        elif rate >= ALWAYS * most:
            said = f"fires in nearly every step it can ({rate:.0f} of {most:.0f} Hz)"
            remedy = "lower its drive or the weights into it, or add inhibition"
        else:
            continue
        raise SimulationError(f"population {name!r} {said}: {_why(brain, activity, number)}; {remedy}")


def _why(brain: Brain, activity: Activity, number: int) -> str:
    """What its neurons are given on average, and what they need."""
    region = brain.regions[number]
    drive = f"it is driven by {region.gain * float(region.bias.mean()):.1f} mV"
    if region.noise_mv:
        drive += " and noise"
    neuron, dt = region.config.neuron, brain.config.dt_ms
    if not isinstance(neuron, Leaky) or not isinstance(region.config.receptor, Pulses | Currents):
        return drive
    sent = sum(
        float(one.synapses.strengths.mean()) * float(activity.delivered[:, at].sum())
        for at, one in enumerate(brain.projections)
        if one.config.target == region.name
    )
    # what arrives in a step, over all the steps that a membrane (and a current) remembers
    mean = region.gain * sent / (region.config.size * activity.num_steps * len(activity.counts))
    if isinstance(region.config.receptor, Currents):
        mean /= -math.expm1(-dt / region.config.receptor.tau_ms)
    else:
        mean /= -math.expm1(-dt / neuron.tau_ms)
    return f"{drive} and {mean:+.1f} mV from others, its threshold is {neuron.threshold_mv:g} mV"
