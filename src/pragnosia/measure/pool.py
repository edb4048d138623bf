"""A pool of texts before a model: cut into pieces it can read, and what it makes of each.

    loss          mean_t  -ln p(x[t] | x[..t-1])                                          [nats per token]
    disagreement  mean_t  1/K sum_k KL(p_k(. | x[..t]) || p),   p = 1/K sum_k p_k         [nats per token]
    state         mean_t  h[t],  the last hidden state                                    (D,)

The K members of a committee are readings of one text: two models; else the exits the model was trained with and its
end; else the whole model and half of its units. Disagreement is McCallum and Nigam 1998 (Employing EM and Pool-Based
Active Learning for Text Classification), KL divergence to the mean, of the committee of Seung et al. 1992,
doi:10.1145/130385.130417.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.errors import ConfigError, DataError
from pragnosia.measure.passages import Passages
from pragnosia.measure.scoring import listening, score
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import WHOLE, Setting

PIECE = 256
"""Tokens of a piece, at most."""
BATCH_TOKENS = 4096
_ROWS = 256  # distributions held at once

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Piece:
    """A text of the pool, or a part of a long one."""

    text: str
    tokens: Int[Tensor, " N"]
    document: int
    """Counted from 0."""
    start: int
    """Where it begins in its document, in characters."""


@dataclass(frozen=True)
class Views:
    """What a model makes of N pieces."""

    loss: Float[Tensor, " N"]
    disagreement: Float[Tensor, " N"] | None
    states: Float[Tensor, "N D"]


def pieces_of(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, documents: Iterable[str], most: int = PIECE
) -> list[Piece]:
    """Documents cut into pieces of at most `most` tokens; what is empty, or of one token, is left out.

    Raises DataError where nothing is left, and as Passages.
    """
    passages, pieces = Passages(tokenizer, vocab_size), list[Piece]()
    for number, text in enumerate(documents):
        found, starts = passages.tokens_of(text)
        for first in range(0, len(found), most):
            ids = found[first : first + most]
            end = starts[first + most] if first + most < len(starts) else len(text)
            part = text[starts[first] : end]
            if len(ids) > 1 and part.strip():
                pieces.append(Piece(part, torch.tensor(ids, dtype=torch.long), number, starts[first]))
    if not pieces:
        raise DataError("the pool holds no text to choose from; give at least one document of two tokens or more")
    return pieces


@dataclass(frozen=True)
class Member:
    """One reading of a text in a committee: a model at a setting, up to an exit."""

    model: Cortex
    setting: Setting = WHOLE
    layer: int | None = None
    """Layers before the exit; None: all."""


def committee(model: Cortex, other: Cortex | None = None) -> tuple[str, list[Member]]:
    """Who can disagree, and what they are called. Raises ConfigError for a model that is of one mind."""
    config: Any = model.config
    if other is not None:
        if other.config.vocab_size != config.vocab_size:
            raise ConfigError(
                f"the models have vocabularies of {config.vocab_size} and {other.config.vocab_size}; they can only "
                "disagree about the same tokens"
            )
        return "two models", [Member(model), Member(other)]
    if config.exits is not None:
        layers = ", ".join(map(str, config.exits.layers))
        return f"exits {layers} and the end", [*(Member(model, layer=at) for at in config.exits.layers), Member(model)]
    if config.units is not None and config.units.thalamus.num_awake > 1:
        return "all and half of the units", [Member(model), Member(model, Setting(awake=0.5))]
    raise ConfigError(
        "this model cannot disagree with itself: it has neither exits nor units of which several wake; name a second "
        "model to disagree with it (--against), or choose by loss"
    )


def look(
    model: Cortex,
    pieces: Sequence[Piece],
    start: int | None,
    members: Sequence[Member] = (),
    progress: Progress | None = None,
) -> Views:
    """Read every piece behind the token `start`; of a committee only where there is one.

    Without a `start` a piece's first token is read and not judged.
    """
    order = sorted(range(len(pieces)), key=lambda at: len(pieces[at].tokens))  # of similar length together
    loss, apart = torch.zeros(len(pieces)), torch.zeros(len(pieces))
    states = torch.zeros(len(pieces), int(model.config.hidden_size))
    done = 0
    with listening(model):
        for some in _batches(order, pieces):
            rows, lengths = _rows([pieces[at].tokens for at in some], start)
            heard = _read(model, rows, lengths, members)
            loss[some], states[some] = heard.loss, heard.states
            if heard.disagreement is not None:
                apart[some] = heard.disagreement
            done += len(some)
            if progress is not None:
                progress(done, len(pieces))
    return Views(loss, apart if members else None, states)


def _batches(order: Sequence[int], pieces: Sequence[Piece]) -> Iterator[list[int]]:
    batch: list[int] = []
    for at in order:
        if batch and (len(batch) + 1) * (len(pieces[at].tokens) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _rows(texts: Sequence[Tensor], start: int | None) -> tuple[Int[Tensor, "B T+1"], list[int]]:
    """Texts padded on the right, where a causal model never looks; and how many tokens of each are judged."""
    begun = [text if start is None else torch.cat((torch.tensor([start]), text)) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(begun, batch_first=True), [len(text) - 1 for text in begun]


def _read(model: Cortex, rows: Tensor, lengths: list[int], members: Sequence[Member]) -> Views:
    rows = rows.to(model.device)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    kept = torch.arange(inputs.shape[1], device=rows.device) < torch.tensor(lengths, device=rows.device)[:, None]
    hidden = model.model(inputs, use_cache=False).last_hidden_state
    owner = torch.arange(len(rows), device=rows.device)[:, None].expand_as(kept)[kept]
    count = torch.tensor(lengths, dtype=torch.float32, device=rows.device)
    nats = -score(hidden[kept], model.lm_head, targets[kept]).log_probabilities
    loss = torch.zeros(len(rows), device=rows.device).index_add(0, owner, nats) / count
    states = (hidden.float() * kept[..., None]).sum(1) / count[:, None]
    apart = None
    if members:
        streams = [_stream(member, inputs)[kept] for member in members]
        between = _divergence(streams, [member.model for member in members])
        apart = (torch.zeros(len(rows), device=rows.device).index_add(0, owner, between) / count).cpu()
    return Views(loss.cpu(), apart, states.cpu())


def _stream(member: Member, inputs: Tensor) -> Float[Tensor, "B T D"]:
    """What a member's head would read."""
    output = member.model.model(
        inputs, use_cache=False, setting=member.setting, output_hidden_states=member.layer is not None
    )
    if member.layer is None:
        return output.last_hidden_state  # type: ignore[no-any-return]
    return member.model.model.norm(output.hidden_states[member.layer])  # type: ignore[no-any-return]


def _divergence(streams: Sequence[Float[Tensor, "N D"]], models: Sequence[Cortex]) -> Float[Tensor, " N"]:
    """Mean KL divergence of each member's next-word distribution to their mean [nats]."""
    found = []
    for parts in zip(*(stream.split(_ROWS) for stream in streams), strict=True):
        logs = torch.stack(
            [model.lm_head(part).float().log_softmax(-1) for model, part in zip(models, parts, strict=True)]
        )
        mean = logs.logsumexp(0) - torch.log(torch.tensor(float(len(parts))))
        found.append((logs.exp() * (logs - mean)).sum(-1).mean(0))
    return torch.cat(found).clamp_min(0)
