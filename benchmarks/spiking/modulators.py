"""What does each neuromodulator do to a network that runs? Four levels, several wirings, noise everywhere.

    python benchmarks/spiking/modulators.py [--seeds 5] [--quick]

An ear of 400 LIF-A neurons and an area of 800 that it excites, which excites and inhibits itself (fan-in 40, 30, 30).

    noradrenaline   a fifth of the area's neurons is given 1.5 mV more for a second: how far their rates stand from the
                    others' (d' = difference of means / root of the mean variance over neurons), and Hz per mV
    serotonin       rate of the area, and how much of it is waves: variance of its spikes in 5 ms over their mean
    acetylcholine   share of the excitation that reaches the area and is its own; rate in the last 300 ms of a current
                    over that in its first 30; correlation, over the area's neurons, of spikes in half a second with
                    what a pattern in the ear gives them by their synapses alone
    dopamine        half of the ear fires in volleys, half of the area is made to fire 5 ms later, and dopamine stands
                    at the level for 50 ms; the other halves likewise, with dopamine at rest. Five rounds; synapses
                    learn by three factors. Change of the mean weight of what was paired and rewarded, and of what was
                    paired alone, and of the first half's spikes within 20 ms of a volley

Seeds are wirings, noise and beginnings; means and standard deviations over them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from _bench import publish
from torch import Tensor

from pragnosia.learning.plasticity import learn
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.modulation import Levels, modulated
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import Activity, run
from pragnosia.spiking.state import BrainState

LEVELS = (0.0, 1.0, 2.0, 3.0)
EAR, AREA = 400, 800
SETTLE = 200
Found = dict[str, float]


def network(seed: int, *, plasticity: str | None = None) -> Brain:
    """One wiring, driven by noise."""
    return Brain.build(
        read_brain(
            {
                "seed": seed,
                "drive": {"noise": {"mean_mv": 10.5, "spread_mv": 2, "sigma_mv": 5}},
                "populations": {"ear": {"size": EAR}, "area": {"size": AREA}},
                "projections": [
                    {
                        "source": "ear",
                        "target": "area",
                        "fan_in": 40,
                        "weight": 0.35,
                        "delay_ms": 2,
                        "plasticity": plasticity,
                    },
                    {
                        "source": "area",
                        "target": "area",
                        "fan_in": 30,
                        "weight": 0.3,
                        "delay_ms": [2, 5],
                        "role": "recurrent",
                    },
                    {"source": "area", "target": "area", "fan_in": 30, "weight": -0.5, "role": "recurrent"},
                ],
            }
        ),
        drive="noise",
    )


def settled(brain: Brain) -> BrainState:
    """What is there after the beginning was forgotten."""
    return run(brain, brain.begin(), SETTLE)[1]


def heard(brain: Brain, state: BrainState, steps: int, **currents: Tensor) -> tuple[Activity, BrainState]:
    """Steps under currents by population, each neuron of the area counted."""
    return run(brain, state, steps, {name: one[None] for name, one in currents.items()}, tally=("area",))


def noradrenaline(seed: int, level: float) -> Found:
    """Signal among noise."""
    brain = modulated(network(seed), Levels(noradrenaline=level))
    told = torch.zeros(AREA)
    told[torch.randperm(AREA, generator=torch.Generator().manual_seed(seed))[: AREA // 5]] = 1.5
    rates = heard(brain, settled(brain), 1000, area=told)[0].tally["area"][0].float()
    there, rest = rates[told > 0], rates[told == 0]
    apart = float(there.mean() - rest.mean())
    return {"d'": apart / float((there.var() + rest.var()) / 2) ** 0.5, "Hz per mV": apart / 1.5}


def serotonin(seed: int, level: float) -> Found:
    """How strongly the area holds itself back."""
    brain = modulated(network(seed), Levels(serotonin=level))
    activity, _ = heard(brain, settled(brain), 1000)
    counts = activity.counts[0, :, 1].float().view(-1, 5).sum(1)
    return {"rate, Hz": float(counts.sum()) / AREA, "waves": float(counts.var() / counts.mean())}


def acetylcholine(seed: int, level: float) -> Found:
    """What comes from outside against what is the area's own."""
    brain = modulated(network(seed), Levels(acetylcholine=level))
    state = settled(brain)
    activity, _ = heard(brain, state, 1000)
    sent = [float(activity.delivered[0, at]) * float(brain.projections[at].synapses.weights.mean()) for at in (0, 1)]
    told = activity_under(brain, state, torch.full((AREA,), 8.0), 600)
    pattern = 6.0 * torch.rand(EAR, generator=torch.Generator().manual_seed(seed)).round()
    wires = brain.projections[0].synapses
    given = torch.zeros(AREA).index_add_(0, wires.slots.long() % AREA, pattern[wires.sources])
    response = heard(brain, state, 500, ear=pattern)[0].tally["area"][0].float()
    return {
        "share of its own": sent[1] / sum(sent),
        "late over early": float(told[300:].mean() / told[:30].mean()),
        "follows the ear": float(torch.corrcoef(torch.stack([response, given]))[0, 1]),
    }


def activity_under(brain: Brain, state: BrainState, current: Tensor, steps: int) -> Tensor:
    """The area's spikes in each step."""
    return heard(brain, state, steps, area=current)[0].counts[0, :, 1].float()


def dopamine(seed: int, level: float, *, rounds: int = 5) -> Found:
    """What is rewarded is learned."""
    brain = network(seed, plasticity="three_factor")
    ears, areas = ([torch.arange(size) // (size // 2) == half for half in (0, 1)] for size in (EAR, AREA))
    state, learned, memory = settled(brain), brain, None
    for _ in range(rounds):
        for half, reward in ((0, level), (1, 1.0)):
            volley, answer = {"ear": 100.0 * ears[half][None]}, {"area": 100.0 * areas[half][None]}
            course = [(3, volley, 1.0), (2, {}, 1.0), (3, answer, 1.0), (42, {}, 1.0)] * 4
            for steps, currents, now in [*course, (50, {}, reward)]:
                _, learned, memory, state = learn(
                    learned, state, steps, currents, memory=memory, levels=Levels(dopamine=now)
                )
            assert memory is not None
            memory = replace(memory, eligible={at: torch.zeros_like(one) for at, one in memory.eligible.items()})
    before, after = (one.projections[0].synapses for one in (brain, learned))
    change = 100 * (after.weights / before.weights.expand(before.count) - 1)
    source, target = before.sources, before.slots.long() % AREA
    paired = [ears[half][source] & areas[half][target] for half in (0, 1)]
    answers = [float(_answer(one, ears[0])[areas[0]].sum()) for one in (brain, learned)]
    return {
        "rewarded, %": float(change[paired[0]].mean()),
        "paired alone, %": float(change[paired[1]].mean()),
        "answer, %": 100 * (answers[1] / answers[0] - 1),
    }


def _answer(brain: Brain, ear: Tensor) -> Tensor:
    """Spikes of the area's neurons within 20 ms of a volley, 20 volleys."""
    state, counted = settled(brain), torch.zeros(AREA)
    for _ in range(20):
        _, state = heard(brain, state, 3, ear=100.0 * ear)
        activity, state = heard(brain, state, 20)
        counted += activity.tally["area"][0]
        _, state = heard(brain, state, 40)
    return counted


ARMS: dict[str, Callable[[int, float], Found]] = {
    "noradrenaline": noradrenaline,
    "serotonin": serotonin,
    "acetylcholine": acetylcholine,
    "dopamine": dopamine,
}


def main() -> None:
    """Every modulator at every level."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="one seed, two levels, no JSON")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    levels, seeds = ((1.0, 2.0), 1) if chosen.quick else (LEVELS, chosen.seeds)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    rows = []
    for name, measure in ARMS.items():
        for level in levels:
            runs = [measure(seed, level) for seed in range(seeds)]
            values = {key: [one[key] for one in runs] for key in runs[0]}
            factor = Levels(**{name: level}).factor(name)
            found.setdefault(name, {})[f"{level:g}"] = {"factor": factor, **values}
            shown = ", ".join(f"{key} {told(each)}" for key, each in values.items())
            rows.append([name, f"{level:g}", f"{factor:g}", shown])
            print(*rows[-1], flush=True)
    if not chosen.quick:
        header = ["modulator", "level", "factor", "measured"]
        publish(
            "What do neuromodulators do to a network that runs?",
            header,
            rows,
            {"seeds": seeds, "found": found},
            __file__,
        )


def told(values: list[float]) -> str:
    """Mean and spread."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3g} ± {spread:.2g}"


if __name__ == "__main__":
    main()
