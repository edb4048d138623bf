"""What a spiking model carries from token to token, and what its brain made of a window of them.

B rows, T tokens, D delay lines, N neurons, J traces, F = J N features, R numbers of a code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.spiking.fires import Fires
from pragnosia.spiking.state import BrainState
from pragnosia.spiking.unrolled import Film


@dataclass
class NeuroGenState:
    """All that is carried from token to token; `reorder_cache`, which is transformers' verb, alone changes it."""

    brain: BrainState
    traces: Float[Tensor, "J B N"]
    past: Int[Tensor, "D-1 B"]
    """Tokens that are still on the delay lines, the oldest first; SILENT where there was none."""
    length: int = 0
    """Tokens read."""
    codes: Float[Tensor, "J B R"] | None = None
    """What the readout made of the traces, where it read them by events."""
    codes_by: tuple[int, int] | None = None
    """Which weights it did that with: by others codes are computed anew."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = (self.traces, self.past, self.codes)
        return self.brain.nbytes + sum(part.nbytes for part in own if part is not None)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read, under the name transformers asks for."""
        return self.length

    def fork(self) -> NeuroGenState:
        """A copy that may be continued differently; any state may, no step changes one."""
        return self.rows(torch.arange(self.traces.shape[1], device=self.traces.device))

    def rows(self, which: Int[Tensor, " R"]) -> NeuroGenState:
        """These rows."""
        picked = self.brain.each(lambda part: part.index_select(0, which.to(part.device)))
        traces, past, codes = (
            None if part is None else part.index_select(1, which.to(part.device))
            for part in (self.traces, self.past, self.codes)
        )
        assert traces is not None
        assert past is not None
        return replace(self, brain=picked, traces=traces, past=past, codes=codes)

    def reorder_cache(self, beam_idx: Int[Tensor, " R"]) -> None:
        """Beam search goes on with these rows."""
        chosen = self.rows(beam_idx)
        self.brain, self.traces, self.past, self.codes = chosen.brain, chosen.traces, chosen.past, chosen.codes


@dataclass(frozen=True)
class Heard:
    """What a brain made of a window of tokens; `say` is what the readout makes of that."""

    tokens: Int[Tensor, "B T"]
    state: NeuroGenState
    begun: NeuroGenState
    fires: Fires | None = None
    """Who fired, where the brain was run by events; else the two below."""
    whole: tuple[Float[Tensor, "T B N"], Float[Tensor, "T B F"]] | None = None
    """Spikes of each neuron, and their traces."""
    film: Film | None = None

    @property
    def counts(self) -> Float[Tensor, "T B N"]:
        """Spikes of each neuron in each token."""
        if self.whole is not None:
            return self.whole[0]
        assert self.fires is not None
        return self.fires.dense()

    @property
    def traces(self) -> Float[Tensor, "T B F"]:
        """What the readout hears, of a brain that was run by products."""
        assert self.whole is not None
        return self.whole[1]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Spikes of a neuron in a token."""
        return self.counts.detach().mean() if self.fires is None else self.fires.mean

    @property
    def each(self) -> Float[Tensor, " N"]:
        """Spikes of each neuron, of all rows and tokens."""
        return self.counts.sum((0, 1)).double().cpu() if self.fires is None else self.fires.each
