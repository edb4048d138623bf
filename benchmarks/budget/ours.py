"""Worker: our engine on given tokens within a budget. usage: ours.py MODEL BYTES PROMPT NEW; prints a line of JSON.

With 0 bytes there is no budget: the whole model is loaded before it speaks, packed units too.
"""

from __future__ import annotations

import json
import sys
import time

started = time.perf_counter()

import torch  # noqa: E402
from _tokens import tokens  # noqa: E402

from pragnosia.inference.decode import Decoder  # noqa: E402
from pragnosia.inference.loading import load_model  # noqa: E402
from pragnosia.inference.program import Program  # noqa: E402
from pragnosia.inference.sampling import Sampling  # noqa: E402
from pragnosia.inference.stream import load_streamed, pool_of  # noqa: E402
from pragnosia.kernels.pool import PoolStats  # noqa: E402


def main(folder: str, budget: int, prompt: int, new: int) -> None:
    """Read a prompt, then the given tokens one by one, as if they had been chosen."""
    context = prompt + new + 8
    model, plan = load_streamed(folder, budget, context=context) if budget else (load_model(folder), None)
    pool = pool_of(model)
    for number in range(pool.slots if pool and not budget else 0):  # a slot for each
        units = model.config.experts.num_units
        pool.hold(number // units, number % units)
        pool.release(number // units, number % units)
    loaded = time.perf_counter() - started
    given = tokens(prompt + new, folder)
    decoder = Decoder(model, context)
    decoder.read(given[:prompt])
    seconds, none = [], PoolStats(0, 0, 0, 0, 0.0)
    empty, begun = pool.stats() if pool else none, time.perf_counter()
    next(decoder.speak(1, Sampling()))
    first = time.perf_counter() - begun
    before = pool.stats() if pool else none
    prefill = {
        "first_bytes_read": before.bytes_read - empty.bytes_read,
        "first_share_waiting": (before.seconds_waiting - empty.seconds_waiting) / torch.get_num_threads() / first,
    }
    with torch.inference_mode():
        program = Program(model, decoder.state)
        for number, token in enumerate(given[prompt:]):
            if pool and number == new // 3:  # the first third warms the pool
                before = pool.stats()
            begun = time.perf_counter()
            program(token)
            program.length += 1
            seconds.append(time.perf_counter() - begun)
    after, steady = pool.stats() if pool else none, seconds[new // 3 :]
    asked = after.hits + after.misses - before.hits - before.misses
    result = {
        "tokens_per_second": len(steady) / sum(steady),
        "bytes_read_per_token": (after.bytes_read - before.bytes_read) / len(steady),
        "hit_rate": (after.hits - before.hits) / asked if asked else 1.0,
        "share_waiting": (after.seconds_waiting - before.seconds_waiting) / torch.get_num_threads() / sum(steady),
        "seconds_to_load": loaded,
        "seconds_to_first_token": first,
        **prefill,
    }
    if plan:
        result |= {
            "slots": plan.slots,
            "planned_bytes": plan.total,
            "expected_hit_rate": plan.hit_rate,
            "awake_bytes": plan.awake_bytes,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
