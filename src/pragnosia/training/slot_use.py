"""Which slots of long-term memory old text lives by, and which of them are a lesson's own.

    use(s)      = mean over tokens of old text of the sum of strengths^2 with which a token recalls slot s
    ease(s)     = 1 / (use(s) + floor)                         floor: what the least used tenth of the used slots has
    share(s, l) = sum of the strengths with which lesson l recalls slot s
    own(s, l)   = share(s, l) ease(s)

TF-IDF with slots for words (arXiv 2510.15103), the document frequency made continuous: what a change of a slot does to
old text grows with use(s), so ease says both which slots a lesson may have and how far each may go. A slot that holds
what was learned in an earlier sleep is nobody's any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pragnosia.errors import CheckpointError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from pragnosia.model.bank import Table
    from pragnosia.model.cortex import Cortex

FILE = "sleep/slots.safetensors"
"""Beside a model that has slept."""
_AT_ONCE = 16  # windows


@dataclass(frozen=True, eq=False)
class SlotUse:
    """What is known of a table's M slots before a night."""

    tokens: int
    """Of old text that was read."""
    use: Float[Tensor, " M"]
    taken: Bool[Tensor, " M"]
    """By what was learned in earlier nights."""

    @property
    def ease(self) -> Float[Tensor, " M"]:
        """How far a slot may go for a step of one; 0 for one that is taken."""
        used = self.use[self.use > 0].sort().values
        floor = float(used[len(used) // 10]) if len(used) else 1.0
        return (1 / (self.use + floor)).masked_fill(self.taken, 0.0)

    def write(self, folder: Path) -> None:
        """Lay it beside a model."""
        tensors = {
            "tokens": torch.tensor(self.tokens),
            "use": self.use,
            "taken": self.taken.to(torch.uint8),
        }
        (folder / FILE).parent.mkdir(exist_ok=True)
        save_file(tensors, folder / FILE)

    @classmethod
    def read(cls, folder: Path, slots: int) -> SlotUse | None:
        """What lies beside a model; None where it never slept. Raises CheckpointError for a file that is not its."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            held = load_file(path)
            found = cls(int(held["tokens"]), held["use"].float(), held["taken"].bool())
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged; remove it, and sleep looks anew") from error
        if found.use.shape != (slots,) or found.taken.shape != (slots,):
            raise CheckpointError(f"{path} tells of other slots than the model's {slots}; remove it, it is another's")
        return found


@dataclass(eq=False)
class Recalled:
    """The slots that the last pass recalled: of each layer rows and strengths (tokens, H A)."""

    rows: list[Tensor]
    strengths: list[Tensor]


@contextmanager
def watched(table: Table) -> Iterator[Recalled]:
    """Within it, what is recalled from a table is noted."""
    noted = Recalled([], [])

    def note(_: object, given: tuple[Tensor, Tensor]) -> None:
        noted.rows.append(given[0].detach())
        noted.strengths.append(given[1].detach())

    hook = table.register_forward_pre_hook(note)
    try:
        yield noted
    finally:
        hook.remove()


@torch.no_grad()
def used(model: Cortex, windows: Sequence[Tensor]) -> Float[Tensor, " M"]:
    """use(s) of windows (T,) of a text, all of one length."""
    table: Table = model.model.hippocampus
    energy, tokens = torch.zeros(table.num_units), 0
    for first in range(0, len(windows), _AT_ONCE):
        some = torch.stack(list(windows[first : first + _AT_ONCE]))
        with watched(table) as noted:
            model.model(some, use_cache=False)
        for rows, strengths in zip(noted.rows, noted.strengths, strict=True):
            energy.index_add_(0, rows.flatten(), strengths.flatten().float().square())
        tokens += some.numel()
    return energy / max(tokens, 1)


@torch.no_grad()
def own_slots(
    model: Cortex, tokens: Int[Tensor, "B T"], told: Bool[Tensor, "B T"], ease: Float[Tensor, " M"], most: int
) -> list[Int[Tensor, " S"]]:
    """Of each lesson, the slots most its own, at most `most`, by what it recalls where `told`; no taken ones."""
    table: Table = model.model.hippocampus
    with watched(table) as noted:
        model.model(tokens, use_cache=False)
    batch, time = tokens.shape
    found = []
    rows, strengths = (torch.cat([one.view(batch, time, -1) for one in parts], -1)
                       for parts in (noted.rows, noted.strengths))  # fmt: skip
    for lesson in range(batch):
        at = told[lesson]
        slots, which = rows[lesson, at].flatten().unique(return_inverse=True)
        weight = torch.zeros(len(slots)).index_add_(0, which, strengths[lesson, at].float().flatten())
        weight *= ease[slots]
        best = weight.topk(min(most, len(slots)))
        found.append(slots[best.indices[best.values > 0]])
    return found
