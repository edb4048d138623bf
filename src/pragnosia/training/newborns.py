"""Newborns: weights that growth has just made learn slowly at first; those that were there before may rest.

    w <- w_before + share (w_after - w_before)
    share = min(1, (age + 1) / S)          of a newborn: age [steps] since birth, S = `steps`
    share = `elders`                       of the others, from the first birth on: 1 is as before, 0 is frozen

An optimiser that scales by its own moments cannot be slowed by smaller gradients, so its step is shortened instead. An
entry is as old as the youngest index it stands at. What is frozen as a whole asks for no gradient, and costs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.model.bank import NEWBORN
from pragnosia.plasticity.origin import Origin

ADULT = 1 << 30
_KEY = "newborn_"
Held = list[tuple[nn.Parameter, Tensor, Tensor, Tensor | None]]


@final
class Newborns:
    """Who is young: ages along the axes of parameters that have newborn entries."""

    def __init__(self, steps: int, elders: float = 1.0) -> None:
        self.steps, self.elders = steps, elders
        self.ages: dict[str, dict[int, Int[Tensor, " N"]]] = {}
        self.frozen: set[str] = set()
        """Parameters that rest as a whole."""

    def follow(self, origins: Mapping[str, Origin], weights: Mapping[str, nn.Parameter], old: set[str]) -> None:
        """After a change of structure; `old` names the parameters that learned before."""
        if not self.steps and self.elders == 1:
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

    def thaw(self, origins: Mapping[str, Origin], weights: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Before a change of structure is taken up: what rested as a whole may have newborn entries now."""
        rested, self.frozen = self.frozen, set()
        for name, weight in weights:
            if origins.get(name, Origin(name)).name in rested:
                weight.requires_grad_(True)

    def freeze(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Where elders do not learn, those that have no newborn entry ask for no gradient from now on."""
        if self.elders or not self.ages:
            return
        for name, weight in weights.items():
            if name not in self.ages:
                weight.requires_grad_(False)
                weight.grad = None
                self.frozen.add(name)

    def hold(self, weights: Mapping[str, nn.Parameter]) -> Held:
        """What entries are before a step that is not theirs in full."""
        if not self.ages:
            return []
        held: Held = []
        for name, weight in weights.items():
            ages = self.ages.get(name)
            if weight.grad is None or (ages is None and self.elders == 1):
                continue
            if weight.grad.is_sparse:
                if self.elders != 1:
                    rows = weight.grad.coalesce().indices()[0].unique()
                    share = torch.tensor(self.elders) if ages is None else self._share(ages[0][rows.cpu()])[:, None]
                    held.append((weight, weight.detach()[rows], share.to(weight.device), rows))
                continue
            if ages is None:
                held.append((weight, weight.detach().clone(), weight.new_tensor(self.elders), None))
            elif list(ages) == [0]:
                share = self._share(ages[0])
                rows = (share != 1).nonzero().flatten()
                if len(rows):
                    there = rows.to(weight.device)
                    along = share[rows].to(weight.device).view(-1, *[1] * (weight.dim() - 1))
                    held.append((weight, weight.detach()[there], along, there))
            else:
                youngest = torch.full((1,) * weight.dim(), torch.iinfo(torch.long).max)
                for dim, age in ages.items():
                    along = age.view([-1 if d == dim else 1 for d in range(weight.dim())])
                    youngest = torch.minimum(youngest, along)
                held.append((weight, weight.detach().clone(), self._share(youngest).to(weight.device), None))
        return held

    @torch.no_grad()
    def release(self, held: Held) -> None:
        """After the step: everyone has gone a part of the way, and is a step older."""
        for weight, before, share, rows in held:
            after = weight.data if rows is None else weight.data[rows]
            moved = before.lerp(after, share.to(before.dtype).expand_as(before))
            if rows is None:
                weight.data.copy_(moved)
            else:
                weight.data[rows] = moved
        for name, ages in list(self.ages.items()):
            old = {dim: age + 1 for dim, age in ages.items()}
            if self.elders == 1:  # who was born when is of no more use once all are grown
                old = {dim: age for dim, age in old.items() if bool((age < self.steps).any())}
            self.ages[name] = old
            if not old:
                del self.ages[name]

    def _share(self, age: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        grown = ((age + 1).float() / max(1, self.steps)).clamp(max=1.0)
        return torch.where(age >= ADULT, self.elders, grown)

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
