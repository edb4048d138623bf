"""What is in the global workspace when a text has been read, as its last token finds it.

    awareness   strength of the winners / strength of all that competed, mean over the segments that ended
    attention   whose words stand there: share of the standing strength by module, and slot by slot by token
    memory      what the last token reads: its weight on each slot, mean over heads; the rest reads nothing
    intention   sum_w p(w) log2 p(w) / q(w) [bits], p the next word's distribution, q what it would be if the last
                token read nothing; and the words that reading lifts most, by log2 p / q

Strength is sigmoid(s_i - fading * age), which is also its factor in reading (competition.py). M winners of C rivals
that are all alike have an awareness of M / C, and one that leaves all others behind an awareness near 1. Each layer
with a workspace is told by itself; `awareness` and `attention` of the whole are means over them. All of it is computed
from the model and the text: nothing is told where nothing stands, as in a text shorter than a segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.errors import ConfigError, PromptError
from pragnosia.model.competition import EMPTY, Standing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pragnosia.model.cortex import Cortex
    from pragnosia.model.workspace import Seen, Workspace


@dataclass(frozen=True)
class Winner:
    """What stands in one slot."""

    module: str
    """That said it."""
    place: int
    """Of the token for which it was said, in the text."""
    token: str
    strength: float
    """In (0, 1), as faded by now."""
    read: float
    """Weight that the last token gave it, mean over heads."""


@dataclass(frozen=True)
class LayerState:
    """One layer's workspace."""

    layer: int
    awareness: float
    attention: Mapping[str, float]
    """By module."""
    winners: tuple[Winner, ...]
    """Strongest first."""
    unread: float
    """Weight that the last token gave to no slot."""


@dataclass(frozen=True)
class Intention:
    """What the workspaces change in the next word."""

    bits: float
    lifted: tuple[tuple[str, float], ...]
    """Words and log2 of how many times likelier they are for what was read; largest first."""


@dataclass(frozen=True)
class WorkspaceState:
    """What is in a model's workspaces."""

    awareness: float
    attention: Mapping[str, float]
    memory: tuple[float, ...]
    """Weight that the last token gave to each winner of every layer, in the order of `layers`."""
    intention: Intention
    layers: tuple[LayerState, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def workspace_state(
    model: Cortex, ids: Sequence[int] | Int[Tensor, " T"], word: Callable[[int], str] = str, *, top: int = 5
) -> WorkspaceState:
    """Of a text read by itself; `word` names a token. Raises ConfigError for a model without a workspace."""
    spaces = {at: layer.workspace for at, layer in enumerate(model.model.layers) if layer.workspace is not None}
    if not spaces:
        raise ConfigError("this model has no workspace to look into; one is configured as workspace: {layers: [...]}")
    tokens = torch.as_tensor(ids, dtype=torch.long, device=model.device).view(1, -1)
    if tokens.shape[1] == 0:
        raise PromptError("there is no token to read; give some text")
    with _watched(spaces) as seen:
        reads = _next_word(model, tokens)
    with _last_token_hears_nothing(spaces):
        deaf = _next_word(model, tokens)
    text = [word(int(token)) for token in tokens[0]]
    layers = tuple(_layer(at, spaces[at], seen[at], text) for at in spaces)
    attention: dict[str, float] = {}
    for layer in layers:
        for module, share in layer.attention.items():
            attention[module] = attention.get(module, 0.0) + share / len(layers)
    gain = reads - deaf
    lifted = [(word(int(token)), float(gain[token]) / math.log(2)) for token in gain.topk(min(top, len(gain))).indices]
    return WorkspaceState(
        awareness=sum(layer.awareness for layer in layers) / len(layers),
        attention=attention,
        memory=tuple(winner.read for layer in layers for winner in layer.winners),
        intention=Intention(max(0.0, float((reads.exp() * gain).sum()) / math.log(2)), tuple(lifted)),
        layers=layers,
    )


def _next_word(model: Cortex, tokens: Int[Tensor, "1 T"]) -> Float[Tensor, " V"]:
    """Log-probabilities [nats] behind the last token."""
    logits: Tensor = model(tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits.float().log_softmax(-1)


@contextmanager
def _watched(spaces: Mapping[int, Workspace]) -> Iterator[dict[int, Seen]]:
    """Within it every workspace that is passed leaves what went on in it."""
    seen: dict[int, Seen] = {}

    def watch(at: int) -> Callable[..., None]:
        def hook(space: Any, given: tuple[Any, ...]) -> None:
            seen[at] = space.watch(*given)[1]

        return hook

    with ExitStack() as stack:
        for at, space in spaces.items():
            stack.callback(space.register_forward_pre_hook(watch(at)).remove)
        yield seen


@contextmanager
def _last_token_hears_nothing(spaces: Mapping[int, Workspace]) -> Iterator[None]:
    """Within it what workspaces say to the last token is nothing; the slots go on."""

    def hook(_: Any, __: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        heard = output[0].clone()
        heard[:, -1] = 0
        return heard, output[1]

    with ExitStack() as stack:
        for space in spaces.values():
            stack.callback(space.register_forward_hook(hook).remove)
        yield


def _layer(at: int, space: Workspace, seen: Seen, text: Sequence[str]) -> LayerState:
    standing, organ = seen.standing, space.slots.organ
    group = standing.strengths.shape[1] - 1  # the last token's segment
    names, each = space.modules_heard, len(space.modules_heard)
    strengths, entries = standing.strengths[0, group], standing.entries[0, group]
    read = seen.weights[0, group, (len(text) - 1) % organ.segment].mean(0)  # (M,)
    winners = []
    for slot in strengths.argsort(descending=True).tolist():
        if strengths[slot] <= EMPTY / 2:
            continue
        entry = int(entries[slot]) - organ.num_slots
        place, strength = entry // each, float(strengths[slot].sigmoid())
        winners.append(Winner(names[entry % each], place, text[place], strength, float(read[slot])))
    total = sum(winner.strength for winner in winners)
    attention = {
        name: sum(winner.strength for winner in winners if winner.module == name) / total if total else 0.0
        for name in names
    }
    return LayerState(at, _awareness(standing, space), attention, tuple(winners), 1 - float(read.sum()))


def _awareness(standing: Standing, space: Workspace) -> float:
    """Mean over the competitions that decided the slots up to the last token's segment; 0 where there was none."""
    organ, shares = space.slots.organ, list[float]()
    offered = standing.offered[0].unflatten(0, (standing.strengths.shape[1], -1))  # (G, P)
    for group in range(1, standing.strengths.shape[1]):
        # Winners as the next segment finds them, rivals as they were just before: both by the next one's fading.
        stood = standing.strengths[0, group - 1] - organ.fading
        rivals = torch.cat((stood, offered[group - 1] - organ.fading)).sigmoid().sum()
        shares.append(float(standing.strengths[0, group].sigmoid().sum() / rivals))
    return sum(shares) / len(shares) if shares else 0.0
