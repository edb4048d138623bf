"""The decode loop: read the prompt once, then one token at a time into a state of fixed room."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pragnosia.errors import CheckpointError, PromptError
from pragnosia.inference.early import EarlyProgram, Tally, early_program
from pragnosia.inference.effort import Effort
from pragnosia.inference.exits import Draft, check_layers
from pragnosia.inference.ladder import Climb, climbable
from pragnosia.inference.mixing import Mixes
from pragnosia.inference.program import Program, writable
from pragnosia.inference.prompt import read_by_layers
from pragnosia.inference.sampler import Sampler, Sampling
from pragnosia.inference.scratch import PROMPT_PIECE
from pragnosia.inference.stream import pool_of
from pragnosia.inference.vram import prompt_piece
from pragnosia.model.cortex import Cortex, CortexStack
from pragnosia.model.output_cortex import PragnosiaCausalLMOutput
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.state import State
from pragnosia.model.thalamus import Routing


@dataclass
class Trace:
    """What woke, step by step: the raw material of an energy account."""

    routings: list[tuple[Routing | None, ...]] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    climbs: list[Climb] = field(default_factory=list)
    """Passes of some layers alone, where fewer than all are spoken with (early.py)."""
    recalls: list[Effort] = field(default_factory=list)
    """What asking a store, or the text so far, took."""

    def steps(self) -> Iterator[tuple[tuple[Routing | None, ...], int]]:
        """Each forward pass: who woke in each layer, and for how many tokens."""
        return zip(self.routings, self.num_tokens, strict=True)


@dataclass
class Decoder:
    """One continuing text: the ids so far and the state after all but the last of them.

    `read` appends given tokens, `speak` yields new ones; they may alternate, which is a conversation. Prompts run
    through the model's modules, single tokens through a `Program` where one can be written.
    """

    model: Cortex
    room: int
    setting: Setting = WHOLE
    trace: Trace | None = None
    progress: Callable[[int, int], None] | None = None
    """Called while a prompt is read, layer by layer, with tokens times layers done, and in all."""
    draft: Draft | None = None
    """The exit that drafts, where a program can be written and no token may leave early; the words are the same."""
    planned: int | None = None
    """Tokens that a plan has room for; more would take more memory than it says."""
    mixing: Mixes | None = None
    """What a store, or the text so far, brings to mind of each next token; all layers then read every token."""

    def __post_init__(self) -> None:
        check_layers((layer for layer, _ in self.setting.leave), self.model.config.num_hidden_layers)
        most = self.model.config.max_position_embeddings
        self.limit: int = most if self.planned is None else min(most, self.planned)
        self.room = max(1, min(self.room, self.limit))
        self.ids: list[int] = []
        self._state: State = self.model.fresh_state(1, self.room)
        self._program: Program | EarlyProgram | None = None
        self.tally = Tally()
        """What speaking with fewer layers came to."""
        self._piece: int = getattr(self.model, "prompt_piece", PROMPT_PIECE)  # of a prompt, read at once
        self.decoding = "modules"
        """What computes single tokens: `modules`, or where a program can be written `compiled`, `speculative` or
        `leaving early`."""

    @property
    def tokens(self) -> Int[Tensor, "1 S"]:
        """The ids as a batch of one."""
        return torch.tensor([self.ids], dtype=torch.long, device=self.model.device)

    @property
    def state(self) -> State:
        """What the model remembers: all tokens it has read."""
        return self._state if self._program is None else self._program.state

    @property
    def length(self) -> int:
        """Tokens that the model has read."""
        return self._state.length if self._program is None else self._program.length

    def rewind(self, state: State) -> None:
        """Go back to where the text was when this was its state."""
        self._program, self._state = None, state
        if self.mixing is not None:
            self.mixing.cut(state.length)
        del self.ids[state.length :]

    def read(self, ids: list[int]) -> None:
        """Append tokens. Raises PromptError when they leave no room for an answer within the context."""
        limit, vocabulary = self.limit, self.model.config.vocab_size
        if len(self.ids) + len(ids) >= limit:
            raise PromptError(
                f"the prompt has {len(self.ids) + len(ids)} tokens and needs room for one more; "
                f"{self.bound} {limit}: cut it"
            )
        outside = [token for token in ids if not 0 <= token < vocabulary]
        if outside:
            raise PromptError(f"token {outside[0]} is not in the model's vocabulary of {vocabulary}")
        if self.mixing is not None:
            self.mixing.asked = True
        self.ids += ids

    @torch.inference_mode()
    def take_in(self, tokens: int) -> None:
        """Read so many of the tokens that wait, now and at once; the last one waits for `speak`."""
        self._fold()
        waiting = min(tokens, len(self.ids) - 1 - self._state.length)
        while waiting > 0:
            count = min(waiting, self._most())
            self._settle(self._modules(count), count)
            waiting -= count

    @property
    def bound(self) -> str:
        """Where the room ends, in words that a number follows."""
        planned = self.limit < self.model.config.max_position_embeddings
        return "the plan (see --context) has room for" if planned else "the model's context holds"

    def speak(self, max_new_tokens: int, sampling: Sampling, stop_tokens: Collection[int] = ()) -> Iterator[int]:
        """New tokens until there are `max_new_tokens`, the context is full, or one of `stop_tokens` (not yielded)."""
        if max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
        if not self.ids:
            raise PromptError("there is no token to continue; give a prompt")
        sampler = Sampler(sampling, self.model.device)
        limit = self.limit
        self._fold()  # the model may have changed since we last spoke
        single = writable(self.model, self._state)
        self.decoding = self._kind(single)
        for said in range(min(max_new_tokens, limit - len(self.ids))):
            try:
                chosen = self._step(sampler, single)
            except CheckpointError as error:
                if not said:
                    raise
                raise CheckpointError(f"{error}; what was said so far stays") from error
            self.ids.append(chosen)
            if chosen in stop_tokens:
                return
            yield chosen

    @torch.inference_mode()
    def _step(self, sampler: Sampler, single: bool) -> int:
        """Read what is unread; the next token."""
        if self._program is not None and self._program.length == self._program.room:
            self._fold()  # the modules make room
        elif self._program is None and single and len(self.ids) - self._state.length == 1 and self._has_room():
            self._program = self._written()
        # What was read counts once the next token is chosen: Ctrl-C in between leaves a text that can go on.
        if self._program is not None:
            likeliest = self._program(self.ids[-1])
            chosen = self._choose(sampler, self._program.logits, likeliest, getattr(self._program, "hidden", None))
            self._program.length += 1
            if isinstance(self._program, Program):
                self._record(self._program.routings, 1)
            return chosen
        piece = self._most()
        with self._watched(len(self.ids) - self._state.length):
            unread = len(self.ids) - self._state.length
            if unread > piece and self._comes_from_disk():
                output: Any = read_by_layers(
                    *(self.model, self.tokens[:, -unread:], self._state, piece, self.setting),
                    tells=self.mixing is not None,
                )
                self._heard(output)
            else:
                while (unread := len(self.ids) - self._state.length) > piece:
                    self._settle(self._modules(piece), piece)
                output = self._modules(unread)
        logits = output.logits[:, -1]
        told = None if self.mixing is None else output.hidden_states[-1][0]
        chosen = self._choose(sampler, logits, int(logits.argmax()), told)
        self._settle(output, unread)
        return chosen

    def _most(self) -> int:
        """Tokens of a prompt that are read at once."""
        return self._piece if self.model.device.type == "cpu" else prompt_piece(self.model.config, self.room)

    def _kind(self, single: bool) -> str:
        """What will compute single tokens; what cannot climb speaks with all layers."""
        if not single:
            return "modules"
        if self.mixing is not None or not (self.setting.leave or self.draft) or not climbable(self.model):
            return "compiled"
        return "leaving early" if self.setting.leave else "speculative"

    def _written(self) -> Program | EarlyProgram:
        """A program for the next tokens."""
        if self.decoding == "compiled":
            return Program(self.model, self._state, self.setting, tells=self.mixing is not None)
        trace = None if self.trace is None else self.trace.climbs.append
        return early_program(self.model, self._state, self.setting, self.draft, self.tally, trace)

    def _choose(self, sampler: Sampler, logits: Tensor, likeliest: int, told: Tensor | None = None) -> int:
        """The next token; the last of the states `told` (N, D) is what memory is asked by.

        Raises CheckpointError where the scores are no numbers.
        """
        if not math.isfinite(float(logits[0, likeliest])):  # a NaN is likelier than anything
            raise CheckpointError("the model's scores are no numbers (NaN): its weights are damaged; copy it again")
        if self.mixing is not None and told is not None:
            logits = self.mixing.mix(self.ids, told[-1], logits)
            likeliest = int(logits.argmax())
            chosen = self._chosen(sampler, logits, likeliest)
            self.mixing.follows(told[-1], chosen)
            if self.trace is not None:
                self.trace.recalls.append(self.mixing.effort())
            return chosen
        return self._chosen(sampler, logits, likeliest)

    def _chosen(self, sampler: Sampler, logits: Tensor, likeliest: int) -> int:
        if sampler.is_argmax:
            return likeliest
        seen = self.tokens if sampler.reads_text else torch.empty(1, 0, dtype=torch.long)
        return int(sampler(seen, logits))

    def _comes_from_disk(self) -> bool:
        """Whether our own layers read their units, or themselves, from disk."""
        return isinstance(getattr(self.model, "model", None), CortexStack) and pool_of(self.model) is not None

    def _modules(self, count: int) -> Any:
        """The next unread tokens through the model's modules."""
        unread = self.ids[self._state.length : self._state.length + count]
        tokens = torch.tensor([unread], dtype=torch.long, device=self.model.device)
        if self.mixing is None:
            return self.model(tokens, past_key_values=self._state, logits_to_keep=1, setting=self.setting)
        read = self.model.model(tokens, past_key_values=self._state, setting=self.setting)
        hidden = read.last_hidden_state
        output = PragnosiaCausalLMOutput(
            logits=self.model.lm_head(hidden[:, -1:]),
            past_key_values=read.past_key_values,
            hidden_states=(hidden,),
            routings=read.routings,
        )
        self._heard(output)
        return output

    def _heard(self, output: Any) -> None:
        """Tell memory of states that were computed behind those that count."""
        if self.mixing is not None:
            self.mixing.heard(self.ids, output.hidden_states[-1][0], self._state.length, self.model.lm_head)

    @contextmanager
    def _watched(self, unread: int) -> Iterator[None]:
        """Within it every layer that has read its tokens says so, if anybody wants to know."""
        if self.progress is None or unread < 2:  # an answer's own tokens are progress enough
            yield
            return
        layers: nn.ModuleList = getattr(self.model, "layers", None) or self.model.model.layers  # exact mode's, or ours
        tell, done, total = self.progress, 0, unread * len(layers)

        def read(layer: nn.Module, given: Any, output: Any) -> None:
            nonlocal done
            done += given[0].shape[1]
            tell(done, total)

        tell(0, total)
        hooks = [layer.register_forward_hook(read) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _settle(self, output: Any, count: int) -> None:
        self._state = output.past_key_values
        self._record(lambda: output.routings, count)

    def _record(self, routings: Callable[[], tuple[Routing | None, ...]], num_tokens: int) -> None:
        if self.trace is not None:
            self.trace.routings.append(routings())
            self.trace.num_tokens.append(num_tokens)

    def _has_room(self) -> bool:
        return all(self._state.length < memory.keys.shape[2] for memory in self._state.layers)  # type: ignore[union-attr]

    def _fold(self) -> None:
        """Close the program and keep its state."""
        self._state, self._program = self.state, None
