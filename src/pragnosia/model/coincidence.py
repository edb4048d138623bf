"""The coincidence learner: a language model that reads a text once and has learned it.

    tokens -> delay lines -> coincidence neurons -> decisions on a binary tree -> log p of every token

Said plainly: it is a log-linear n-gram model. Hashed patterns of the last tokens, of words, lines and of what stood
there before each vote on the next token, and linear neurons weigh the votes (kernels/coincidence.py says how). Forward
only reads; what learns is learning/coincidence.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.kernels import coincidence as kernel
from pragnosia.kernels.coincidence import Memory, Rates, Tree, tree_of
from pragnosia.kernels.memory import ask_huge_pages
from pragnosia.model.configuration import refuse_unknown

MOST_TOKENS = 512
"""A decision stands beside each last token in the tables, so that they grow with the square of the vocabulary."""
_BITS = {"bucket_bits": (1, 28), "match_bits": (1, 24), "history_bits": (5, 28), "correction_bits": (1, 24)}


class CoincidenceConfig(PreTrainedConfig):
    """Sizes and rates. Raises ConfigError."""

    model_type = "pragnosia-coincidence"

    vocab_size: int = 260
    bucket_bits: int = 22
    """2^b buckets of 32 bytes, shared by all coincidence neurons; the least used gives way to who is new."""
    match_bits: int = 20
    history_bits: int = 20
    """The last 2^b tokens learned are kept word for word."""
    correction_bits: int = 15
    slowest: float = 0.002
    fastest: float = 0.02
    decay: float = 1e-5
    final: float = 0.005
    correction: float = 0.02
    map_limit: float = 255.0
    slot_limit: int = 255
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    tokenizer_digest: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown(kwargs)
        if not 2 <= self.vocab_size <= MOST_TOKENS:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}; a coincidence learner reads bytes: 2 to {MOST_TOKENS} tokens"
            )
        for name, (least, most) in _BITS.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in {least} to {most}")
        for entry in fields(Rates):
            if not 0 <= getattr(self, entry.name) <= 1000:
                raise ConfigError(f"{entry.name} is {getattr(self, entry.name)}; it must lie in 0 to 1000")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def rates(self) -> Rates:
        """As the kernel takes them."""
        return Rates(**{entry.name: getattr(self, entry.name) for entry in fields(Rates)})


class CoincidenceForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids to the logits of the next token."""

    config_class = CoincidenceConfig
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = ["mixers", "finals", "maps", "map_counts", "match_odds", "match_counts"]  # noqa: RUF012

    def __init__(self, config: CoincidenceConfig) -> None:
        super().__init__(config)
        decisions, buckets = config.vocab_size - 1, 1 << config.bucket_bits
        mixers = decisions * kernel.SITUATIONS + config.vocab_size * kernel.DEPTHS
        self.mixers = nn.Parameter(torch.zeros(mixers, kernel.INPUTS), requires_grad=False)
        self.finals = nn.Parameter(torch.zeros(config.vocab_size * decisions, kernel.SETS), requires_grad=False)
        tables = {
            "slots": torch.empty(buckets, kernel.SLOTS, dtype=torch.int32),
            "maps": torch.zeros(kernel.CONTEXTS, kernel.COUNTS, kernel.LEVELS),
            "map_counts": torch.zeros(kernel.CONTEXTS, kernel.COUNTS, kernel.LEVELS),
            "first_correction": torch.zeros(1 << config.correction_bits, kernel.STEPS),
            "second_correction": torch.zeros(1 << config.correction_bits, kernel.STEPS),
            "match_odds": torch.zeros(kernel.MATCHES, kernel.MOST),
            "match_counts": torch.zeros(kernel.MATCHES, kernel.MOST),
            "found": torch.zeros(kernel.MATCHES, 1 << config.match_bits, dtype=torch.int32),
            "history": torch.zeros(1 << config.history_bits, dtype=torch.int32),
            "learned": torch.zeros(2, dtype=torch.int64),
            "branches": torch.zeros(decisions, 2, dtype=torch.int32),
            "kinds": torch.zeros(config.vocab_size, dtype=torch.int32),
            "folds": torch.zeros(config.vocab_size, dtype=torch.int32),
        }
        ask_huge_pages(tables["slots"])
        for name, table in tables.items():
            self.register_buffer(name, table)
        self._tree: Tree | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """What knows nothing: every input of a mixer alike, maps and corrections that change nothing, a flat tree.

        | tensor | value |
        |---|---|
        | mixers | 0.15 of each neuron's two inputs |
        | finals | the mean of the mixers |
        | maps, corrections | what goes in |
        | match odds | 0.7 |
        """
        if module is not self:
            return
        self.mixers.zero_()[:, : 2 * kernel.CONTEXTS] = 0.15
        self.finals.fill_(1 / kernel.SETS)
        buffers: Any = self
        levels = (torch.arange(kernel.LEVELS) + 0.5) / 4 - kernel.LEVELS / 8
        buffers.maps.copy_(levels.sigmoid().expand_as(buffers.maps))
        steps = ((torch.arange(kernel.STEPS) - kernel.STEPS // 2) * 0.5).sigmoid()
        for table in (buffers.first_correction, buffers.second_correction):
            table.copy_(steps.expand_as(table))
        buffers.match_odds.fill_(0.7)
        for name in ("slots", "map_counts", "match_counts", "found", "history", "learned", "kinds"):
            getattr(self, name).zero_()
        buffers.folds.copy_(torch.arange(len(buffers.folds)))
        decisions = len(buffers.branches)
        following = torch.arange(1, decisions + 1)
        following[-1] = -1 - decisions
        buffers.branches.copy_(torch.stack([-1 - torch.arange(decisions), following], 1))

    def opening(self) -> Tensor:
        """The state of silent delay lines, int64 (64,): what goes through `read` and comes back."""
        return torch.zeros(kernel.STATE_WORDS, dtype=torch.int64)

    def read(
        self, tokens: Tensor, state: Tensor, *, learn: bool = False, rows: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log p [nats] of each token (T,), of all behind each of the last `rows` (rows, V), and the state then.

        With `learn` the model's tables change; `forward` never asks for it.
        """
        state = state.clone()
        said, behind = kernel.read(*self._parts(), tokens, state, learn=learn, rows=rows)
        return said, behind, state

    def weigh(self, pieces: Sequence[Tensor], state: Tensor) -> Tensor:
        """Log p [nats] of each of some pieces (t,) of text, if it came next: (P,)."""
        return kernel.weigh(*self._parts(), pieces, state)

    def _parts(self) -> tuple[Memory, Tree, tuple[Tensor, Tensor], Rates]:
        """What the kernel takes."""
        own: Any = self
        if own.slots.device.type != "cpu":
            raise ConfigError(f"a coincidence learner runs on the CPU, this one lies on {own.slots.device}")
        memory = Memory(**{entry.name: getattr(self, entry.name).detach() for entry in fields(Memory)})
        config: Any = self.config
        return memory, self.tree, (own.kinds, own.folds), config.rates

    @property
    def tree(self) -> Tree:
        """The decisions that lead to each token. Raises CheckpointError where what was loaded is none."""
        if self._tree is None:
            own: Any = self
            size = len(own.kinds)
            fits = [(own.kinds, 4), (own.folds, size), (own.history, size), (own.found, 1 << 30)]
            if any(int(table.min()) < 0 or int(table.max()) >= limit for table, limit in fits) or own.learned.min() < 0:
                raise CheckpointError("the model's tables hold numbers that cannot be: its weights are damaged")
            try:
                self._tree = tree_of(own.branches)
            except ValueError as error:
                raise CheckpointError(f"the model's weights are damaged: {error}") from error
        return self._tree

    def plant(self, children: Tensor) -> None:
        """Another tree of decisions, for a model that has learned nothing. Raises ValueError for what is no tree."""
        own: Any = self
        assert int(own.learned[0]) == 0, "what was learned was learned for another tree"
        self._tree = tree_of(children)
        own.branches.copy_(children)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutput:
        """Logits (B, T, V) or of the last `logits_to_keep`; every row is read from its beginning, padding left out."""
        del others  # what else transformers hands on is no concern of ours
        length = input_ids.shape[1]
        kept = length if labels is not None or not logits_to_keep else min(length, logits_to_keep)
        logits = torch.zeros(len(input_ids), kept, self.config.vocab_size)
        for row, tokens in enumerate(input_ids):
            there = torch.ones_like(tokens) if attention_mask is None else attention_mask[row]
            places = there.nonzero().flatten()
            rows = int((places >= length - kept).sum())
            _, behind, _ = self.read(tokens[places].cpu(), self.opening(), rows=rows)
            logits[row, places[len(places) - rows :].cpu() - (length - kept)] = behind
        loss: Any = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(torch.long))
        return CausalLMOutput(loss=loss, logits=logits)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """There are none: a token is a spike on a line of its own."""

    def get_output_embeddings(self) -> None:
        """There are none: a token is a leaf."""
