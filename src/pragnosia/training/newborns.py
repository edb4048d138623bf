"""Newborns: weights that growth has just made learn slowly at first, while the others go on as before.

    w <- w_before + min(1, (age + 1) / S) (w_after - w_before)          age [steps] since birth, S = `steps`

An optimiser that scales by its own moments cannot be slowed by smaller gradients, so its step is shortened instead. An
entry is as old as the youngest index it stands at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pragnosia.model.bank import NEWBORN
from pragnosia.plasticity.origin import Origin

ADULT = 1 << 30
_KEY = "newborn_"
Held = list[tuple[nn.Parameter, Tensor, Tensor, Tensor | None]]


@final
class Newborns:
    """Who is young: ages along the axes of parameters that have newborn entries."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ages: dict[str, dict[int, Int[Tensor, " N"]]] = {}

    def follow(self, origins: Mapping[str, Origin], weights: Mapping[str, nn.Parameter], old: set[str]) -> None:
        """After a change of structure; `old` names the parameters that learned before."""
        if not self.steps:
            return
        before, self.ages = self.ages, {}
        for name, weight in weights.items():
            origin = origins.get(name, Origin(name))
            if weight.dim() == 0:
                continue
            if origin.name is None or origin.newborn:
                self.ages[name] = {0: torch.zeros(len(weight), dtype=torch.long)}
                continue
            ages = {dim: age.clone() for dim, age in before.get(origin.name, {}).items()}
            for axis in origin.axes:
                born = axis.source == NEWBORN
                past = ages.get(axis.dim)
                if past is None and not bool(born.any()):
                    continue
                now = torch.full_like(axis.source, ADULT) if past is None else past[axis.source.clamp_min(0)]
                ages[axis.dim] = now.masked_fill(born, 0)
            if ages and (origin.name in old):
                self.ages[name] = ages

    def hold(self, weights: Mapping[str, nn.Parameter]) -> Held:
        """What young entries are before a step."""
        held: Held = []
        for name, ages in self.ages.items():
            weight = weights[name]
            if weight.grad is None or weight.grad.is_sparse:
                continue
            if list(ages) == [0]:
                rows = (ages[0] + 1 < self.steps).nonzero().flatten().to(weight.device)
                share = self._share(ages[0]).to(weight.device)[rows].view(-1, *[1] * (weight.dim() - 1))
                held.append((weight, weight.detach()[rows], share, rows))
            else:
                share = torch.ones((), device=weight.device)
                for dim, age in ages.items():
                    along = self._share(age).to(weight.device)
                    share = torch.minimum(share, along.view([-1 if d == dim else 1 for d in range(weight.dim())]))
                held.append((weight, weight.detach().clone(), share, None))
        return held

    @torch.no_grad()
    def release(self, held: Held) -> None:
        """After the step: young entries have gone a part of the way; everyone is a step older."""
        for weight, before, share, rows in held:
            after = weight.data if rows is None else weight.data[rows]
            moved = before.lerp(after, share.to(before.dtype).expand_as(before))
            if rows is None:
                weight.data.copy_(moved)
            else:
                weight.data[rows] = moved
        for name, ages in list(self.ages.items()):
            young = {dim: age + 1 for dim, age in ages.items() if bool((age + 1 < self.steps).any())}
            self.ages[name] = young
            if not young:
                del self.ages[name]

    def _share(self, age: Tensor) -> Tensor:
        return ((age + 1).float() / self.steps).clamp(max=1.0)

    def state(self) -> dict[str, Tensor]:
        """As `<parameter>/newborn_<axis>`."""
        return {f"{name}/{_KEY}{dim}": age for name, ages in self.ages.items() for dim, age in ages.items()}

    def load(self, key: str, value: Tensor) -> bool:
        """Take up one entry written by `state`; False for another's."""
        name, _, moment = key.rpartition("/")
        if not moment.startswith(_KEY):
            return False
        self.ages.setdefault(name, {})[int(moment.removeprefix(_KEY))] = value
        return True
