"""A long prompt, layer by layer: every piece of it passes a layer before the next layer begins.

So a unit that lies on disk is read once for the whole prompt, if memory holds the units of one layer; piece by piece
through all layers it would be read once for each piece. Bits are the same either way. What it takes is the stream of
the whole prompt, (1, T, D), which a plan counts (inference/scratch.py).
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from pragnosia.inference.stream import pool_of
from pragnosia.kernels.pool import HALF_LIFE
from pragnosia.model.cortex import Cortex
from pragnosia.model.output_cortex import PragnosiaCausalLMOutput
from pragnosia.model.setting import Setting
from pragnosia.model.state import Memory, State
from pragnosia.model.thalamus import Routing, joined

_FORGOTTEN = 16 * int(HALF_LIFE)  # ticks after which the uses of a whole prompt weigh less than a new one


def read_by_layers(
    model: Cortex, tokens: Int[Tensor, "1 T"], state: State, piece: int, setting: Setting, *, tells: bool = False
) -> PragnosiaCausalLMOutput:
    """Logits of the last token (1, 1, V), the state after all, and who woke; the last hidden states where it `tells`.

    Raises CheckpointError.
    """
    stack, pool, length = model.model, pool_of(model), tokens.shape[1]
    x = stack.embed_tokens(tokens)
    memories: list[Memory | None] = []
    woken: list[Routing | None] = []
    for layer, before in zip(stack.layers, state.layers, strict=True):
        memory, routings = before, []
        for start in range(0, length, piece):
            part = x[:, start : start + piece]
            moment = stack.moment(part, seen=state.length + start, setting=setting)
            thought, memory, routing = layer(part, memory, moment)
            part.copy_(thought)
            routings.append(routing)
        memories.append(memory)
        woken.append(_joined(routings))
        if pool is not None:
            pool.tick(_FORGOTTEN)  # the layer behind us will not be asked for again
    hidden = stack.norm(x if tells else x[:, -1:])
    logits = model.lm_head(hidden[:, -1:])
    after = State(tuple(memories), state.length + length)
    told = (hidden,) if tells else None
    return PragnosiaCausalLMOutput(logits=logits, past_key_values=after, hidden_states=told, routings=tuple(woken))


def _joined(routings: list[Routing | None]) -> Routing | None:
    """Of all pieces."""
    parts = [routing for routing in routings if routing is not None]
    return joined(parts) if parts else None
