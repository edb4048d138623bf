"""The decode loop: read the prompt once, then one token at a time into a state of fixed room."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from pragnosia.errors import PromptError
from pragnosia.inference.sampler import Sampler, Sampling
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.state import State
from pragnosia.model.thalamus import Routing


@dataclass
class Trace:
    """What woke, step by step: the raw material of an energy account."""

    routings: list[tuple[Routing | None, ...]] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)

    def steps(self) -> Iterator[tuple[tuple[Routing | None, ...], int]]:
        """Each forward pass: who woke in each layer, and for how many tokens."""
        return zip(self.routings, self.num_tokens, strict=True)


@dataclass
class Decoder:
    """One continuing text: the tokens so far and the state after all but the last of them.

    `read` appends given tokens, `speak` yields new ones; they may alternate, which is a conversation.
    """

    model: PragnosiaForCausalLM
    room: int
    energy: float = 1.0
    trace: Trace | None = None

    def __post_init__(self) -> None:
        limit = self.model.config.max_position_embeddings
        self.room = max(1, min(self.room, limit))
        self.tokens: Int[Tensor, "1 S"] = torch.empty(1, 0, dtype=torch.long, device=self.model.device)
        self.state: State = self.model.fresh_state(1, self.room)

    def read(self, ids: list[int]) -> None:
        """Append tokens. Raises PromptError when they leave no room for an answer within the context."""
        limit, vocabulary = self.model.config.max_position_embeddings, self.model.config.vocab_size
        if self.tokens.shape[1] + len(ids) >= limit:
            raise PromptError(
                f"the prompt has {self.tokens.shape[1] + len(ids)} tokens, the model's context holds {limit}; cut it"
            )
        outside = [token for token in ids if not 0 <= token < vocabulary]
        if outside:
            raise PromptError(f"token {outside[0]} is not in the model's vocabulary of {vocabulary}")
        new = torch.tensor([ids], dtype=torch.long, device=self.model.device)
        self.tokens = torch.cat((self.tokens, new), 1)

    def speak(self, max_new_tokens: int, sampling: Sampling, stop_tokens: Collection[int] = ()) -> Iterator[int]:
        """New tokens until there are `max_new_tokens`, the context is full, or one of `stop_tokens` (not yielded)."""
        if max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
        if self.tokens.shape[1] == 0:
            raise PromptError("there is no token to continue; give a prompt")
        sampler = Sampler(sampling, self.model.device)
        limit = self.model.config.max_position_embeddings
        for _ in range(min(max_new_tokens, limit - self.tokens.shape[1])):
            token = self._step(sampler)
            self.tokens = torch.cat((self.tokens, token), 1)
            chosen = int(token)
            if chosen in stop_tokens:
                return
            yield chosen

    @torch.inference_mode()
    def _step(self, sampler: Sampler) -> Int[Tensor, "1 1"]:
        unread = self.tokens[:, self.state.length :]
        output = self.model(unread, past_key_values=self.state, logits_to_keep=1, energy=self.energy)
        self.state = output.past_key_values
        if self.trace is not None:
            self.trace.routings.append(output.routings)
            self.trace.num_tokens.append(unread.shape[1])
        return sampler(self.tokens, output.logits[:, -1])
