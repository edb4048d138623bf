"""How fast does a small mixture speak, batch 1, greedy, beside the same model under transformers' generate?

The models of benchmarks/training.py; 32 tokens of prompt, 128 new ones. transformers runs in each expert
implementation and precision, and its best counts; so does ours. Then: what do 16 times as many units cost?
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread
from _peers import IMPLEMENTATIONS, small
from transformers.generation import BaseStreamer

from pragnosia import Pragnosia, PragnosiaForCausalLM
from pragnosia.inference.sampler import Sampling
from training import SHAPES, best

PROMPT, NEW = 32, 128


class Clock(BaseStreamer):
    """Notes when each token comes; transformers calls `put` for the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """One more token, or the prompt."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more to come."""


def after_first(times: list[float]) -> tuple[float, float]:
    """Tokens after the first, and their seconds: reading the prompt is not decoding."""
    return len(times) - 1.0, times[-1] - times[0]


def speaking(model: Any, new: int = NEW) -> Arm:
    """An arm of ours."""
    speaker = Pragnosia(model)
    prompt = torch.randint(model.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()

    def arm() -> tuple[float, float]:
        decoder = speaker.decoder(PROMPT + new)
        decoder.read(prompt)
        return after_first([time.perf_counter() for _ in decoder.speak(new, Sampling())])

    return arm


def generating(model: Any, implementation: str, new: int = NEW) -> Arm:
    """An arm of transformers."""
    prompt = torch.randint(model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    model.eval()
    model.generation_config.eos_token_id = None

    def arm() -> tuple[float, float]:
        model.set_experts_implementation(implementation)
        clock = Clock()
        with torch.inference_mode():
            model.generate(prompt, max_new_tokens=new, do_sample=False, streamer=clock)
        return after_first(clock.times[1:])

    return arm


def main(rounds: int) -> None:
    """Measure every shape."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rows, results = [], {}
    for shape in SHAPES[1:]:
        arms: dict[str, Arm] = {}
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            arms[f"ours {precision}"] = speaking(PragnosiaForCausalLM(small(*shape).ours()).to(dtype))
            for implementation in IMPLEMENTATIONS:
                model: Any = small(*shape).their_model(implementation)
                model.to(dtype)
                arms[f"transformers {implementation} {precision}"] = generating(model, implementation)
        rates = in_turn(arms, rounds=rounds)
        mine, peer = best(rates, "ours"), best(rates, "transformers")
        against = ratio(rates[mine], rates[peer])
        name = "/".join(map(str, shape))
        results[name] = {
            "tokens_per_second": {arm: median(values) for arm, values in rates.items()},
            "best": {"ours": mine, "transformers": peer},
            "ours_over_transformers": against,
        }
        rows.append(
            [name, f"{median(rates[mine]):.0f} ({mine})", f"{median(rates[peer]):.0f} ({peer})", spread(against)]
        )
        print(rows[-1], flush=True)
    growth = growth_cost(rounds)
    rows += [[f"{name}: cost {spread(cost)}", "", "", ""] for name, cost in growth.items()]
    header = ["units/awake/width", "ours tok/s", "transformers tok/s", "ours/theirs"]
    values = {"shapes": results, "cost_of_16x_units": growth, "prompt": PROMPT, "new": NEW, "rounds": rounds, "seed": 0}
    publish("Greedy decode tokens per second, small mixtures, CPU, batch 1", header, rows, values, __file__)


def growth_cost(rounds: int) -> dict[str, dict[str, float]]:
    """Time per token with 16 times the units over time with few, at the same number awake."""
    costs = {}
    for (few, many), awake, width in (((4, 64), 2, 128), ((16, 256), 8, 32), ((16, 256), 2, 512)):
        arms = {}
        for units in (few, many):
            model = PragnosiaForCausalLM(small(units, awake, width).ours())
            arms[str(units)] = speaking(model.to(torch.bfloat16))
        rates = in_turn(arms, rounds=3 * rounds)
        costs[f"{few} -> {many} units of {width}, {awake} awake"] = ratio(rates[str(few)], rates[str(many)])
    return costs


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
