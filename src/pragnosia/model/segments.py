"""Segments: where the tokens of a text stand, S by S, however many of them come at once.

    place = tokens of the text before this one        segment = place // S

What is kept of a text changes only where a segment ends, so a token's answer does not depend on how the text was cut
into calls. Rows that are all tokens of one text stand alike, and a frame of segments is a view of them. Where a mask
leaves tokens out, or puts several texts into one row, every text gets a row of its own in the frame.

R rows of the frame (B, or texts), G segments, S tokens of one, N entries that each token has, E numbers in an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pragnosia.errors import ConfigError

if TYPE_CHECKING:
    from pragnosia.model.attention import Moment


@dataclass(frozen=True)
class Segments:
    """Of one call: T new tokens a row behind those of the running segment, which `pending` holds."""

    size: int
    """S."""
    groups: int
    """G: segments that have tokens of this call, or one."""
    length: int
    """T."""
    filled: int = 0
    """Tokens of the running segment before this call, where rows are alike."""
    first: int | Int[Tensor, " R"] = 0
    """Number of the running segment in its text."""
    places: Int[Tensor, "B T"] | None = None
    """In the frame laid flat, where rows are not alike; one past its end for what is no token."""
    before: Int[Tensor, " R"] | None = None
    """`filled` of every row, where they are not alike."""
    totals: Int[Tensor, " R"] | None = None
    """`before` and the new tokens of each row."""

    @classmethod
    def of(cls, moment: Moment, length: int, size: int) -> Segments:
        """Raises ConfigError for a mask of several texts behind what is remembered of one."""
        seen, present = int(moment.seen), moment.present
        if present is None:
            filled = seen % size
            return cls(size, max(1, -(-(filled + length) // size)), length, filled, seen // size)
        if present.dim() == 2:
            real = present.bool()
            counts, new = real[:, :seen].sum(1), real[:, seen:]
            text = torch.arange(len(new), device=new.device)[:, None].expand_as(new)
            return cls._uneven(text, new, counts, size)
        if seen:
            raise ConfigError("a mask of several texts in a row was given behind remembered tokens; read rows whole")
        seeing = present[:, 0].bool() if present.dim() == 4 else present.bool()
        new = seeing.diagonal(dim1=1, dim2=2)
        begins = seeing.to(torch.uint8).argmax(-1) + length * torch.arange(len(new), device=new.device)[:, None]
        texts, text = begins.unique(return_inverse=True)
        return cls._uneven(text, new, texts.new_zeros(len(texts)), size)

    @classmethod
    def _uneven(
        cls, text: Int[Tensor, "B T"], new: Bool[Tensor, "B T"], seen: Int[Tensor, " R"], size: int
    ) -> Segments:
        """Of texts, R in all, of which `seen` tokens went before; where `new` is False there is no token."""
        before, flat = seen % size, text.flatten()
        # A text lies in one row, left to right, so that its tokens are ranked by counting them there.
        marks = F.one_hot(text, len(seen)).mul(new[..., None]) if text.shape[0] != len(seen) else None
        ranks = new.long().cumsum(1) if marks is None else marks.cumsum(1).gather(2, text[..., None])[..., 0]
        places = before[flat].view_as(text) + ranks - 1
        totals = before.index_add(0, flat, new.flatten().long())
        groups = max(1, -(-int(totals.max()) // size))
        end = len(seen) * groups * size
        places = torch.where(new, text * (groups * size) + places, end)
        return cls(size, groups, text.shape[1], 0, seen // size, places, before, totals)

    @property
    def alike(self) -> bool:
        """Whether every row is all tokens of one text."""
        return self.places is None

    @property
    def num_complete(self) -> int:
        """Segments that end in this call: the most that one row has."""
        if self.totals is None:
            return (self.filled + self.length) // self.size
        return int(self.totals.max()) // self.size

    def completes(self, group: int) -> Bool[Tensor, " R"] | None:
        """Rows in which this segment ends; None: all."""
        return None if self.totals is None else self.totals >= (group + 1) * self.size

    def numbers(self, device: torch.device) -> Int[Tensor, "R G"]:
        """Of the segments, in their texts; R is 1 where rows are alike."""
        groups = torch.arange(self.groups, device=device)
        return groups[None] + (self.first if isinstance(self.first, int) else self.first[:, None])

    def frame(
        self, pending: Float[Tensor, "B S N E"] | None, new: Float[Tensor, "B T N E"], filler: float = 0.0
    ) -> Float[Tensor, "R G SN E"]:
        """What was pending and what is new, segment by segment; `filler` where there is nothing yet."""
        if self.places is None:
            parts = [new] if pending is None else [pending[:, : self.filled], new]
            whole = torch.cat(parts, 1) if len(parts) > 1 else new
            missing = self.groups * self.size - whole.shape[1]
            whole = F.pad(whole, (0, 0, 0, 0, 0, missing), value=filler) if missing else whole
        else:
            assert self.before is not None
            rows, room = len(self.before), self.groups * self.size
            whole = new.new_full((rows * room + 1, *new.shape[2:]), filler)
            whole = whole.index_put((self.places.flatten(),), new.flatten(0, 1))[:-1].unflatten(0, (rows, room))
            if pending is not None:
                old = torch.arange(self.size, device=new.device) < self.before[:, None]
                head = torch.where(old[..., None, None], pending, whole[:, : self.size])
                whole = torch.cat((head, whole[:, self.size :]), 1)
        framed: Tensor = whole.unflatten(1, (self.groups, self.size))
        return framed.flatten(2, 3)

    def rest(self, frame: Float[Tensor, "R G SN E"], filler: float = 0.0) -> Float[Tensor, "R SN E"]:
        """What is pending behind this call."""
        each = frame.shape[2]
        behind = F.pad(frame.flatten(1, 2), (0, 0, 0, each), value=filler)
        if self.totals is None:
            start = self.num_complete * each
            return behind[:, start : start + each]
        begins = self.totals // self.size * each
        at = begins[:, None] + torch.arange(each, device=frame.device)
        return behind.gather(1, at[..., None].expand(-1, -1, frame.shape[-1]))

    def spread(self, x: Float[Tensor, "B T E"]) -> Float[Tensor, "R G S E"]:
        """New tokens in their segments; where rows are alike and there is one segment, they alone."""
        if self.places is None and self.groups == 1:
            return x[:, None]
        if self.places is None:
            behind = self.groups * self.size - self.filled - x.shape[1]
            framed: Tensor = F.pad(x, (0, 0, self.filled, behind)).unflatten(1, (self.groups, self.size))
            return framed
        return self.frame(None, x[:, :, None])

    def gather(self, spread: Float[Tensor, "R G S E"]) -> Float[Tensor, "B T E"]:
        """Back in their rows; zero for what is no token."""
        if self.places is None and self.groups == 1:
            return spread[:, 0]
        if self.places is None:
            return spread.flatten(1, 2)[:, self.filled : self.filled + self.length]
        flat = F.pad(spread.flatten(0, 2), (0, 0, 0, 1))
        rows: Tensor = flat.index_select(0, self.places.flatten()).unflatten(0, self.places.shape)
        return rows
