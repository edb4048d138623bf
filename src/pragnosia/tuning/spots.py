"""Spots: where PEFT finds a site of ours, in a family's names or in our own.

A spot is a linear module (`…self_attn.q_proj`, or `…experts.3.up_proj` as transformers 4 held units) or a parameter of
three axes (`…mlp.experts.gate_up_proj` as transformers 5 holds them); the weight rules of the family say which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pragnosia.checkpoints.admission import read_json
from pragnosia.checkpoints.families import family_named, fitting_family, read_family, write_config
from pragnosia.checkpoints.family import Family
from pragnosia.checkpoints.importing import ORIGIN
from pragnosia.checkpoints.rules import Joined, Rule, same
from pragnosia.errors import CheckpointError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.tuning.sites import Site


@dataclass(frozen=True)
class Spot:
    """One module or parameter of theirs, and the part of a site that it is."""

    site: Site
    name: str
    """Of the module, or of the parameter."""
    is_parameter: bool = False
    unit: int | None = None
    part: int = 0
    num_parts: int = 1
    """Rows of the site are shared out among so many modules, in turn."""
    transposed: bool = False
    """Parameters: (U, in, out) there."""
    interleaved: bool = False
    """Parameters: rows of gate and up take turns there."""

    @property
    def container(self) -> str:
        """Of a parameter: the module that holds it."""
        return self.name.rpartition(".")[0]


class _EveryName:
    """Families with two layouts take the one whose names are present: all are, so the one that is held in memory."""

    def __contains__(self, name: object) -> bool:
        return True


def rules_in_memory(config: PragnosiaConfig, known: Iterable[str], family: Family | None) -> dict[str, Rule]:
    """For each site the rule of the family's model in memory; without a family, our own names."""
    if family is None:
        return {name: same(name, name) for name in known}
    rules = {rule.ours: rule for rule in family.weights(config, _EveryName())}
    return {name: rules[name] for name in known}


def readable_rules(config: PragnosiaConfig, known: Iterable[str], family: Family | None) -> list[Rule]:
    """Every way in which an adapter of this model may name its sites."""
    known = list(known)
    found = list(rules_in_memory(config, known, None).values())
    if family is not None:
        found += rules_in_memory(config, known, family).values()
        found += [rule for rule in family.weights(config) if rule.ours in known]
    return found


def spots(site: Site, rule: Rule) -> list[Spot]:
    """Where a site is, under a rule."""
    names = list(rule.their_shapes(site.shape))
    if not isinstance(rule, Joined):
        transposed, interleaved = getattr(rule, "transposed", False), getattr(rule, "interleaved", False)
        return [Spot(site, names[0], is_parameter=True, transposed=transposed, interleaved=interleaved)]
    if rule.num_units is None and site.num_units is not None:
        return [Spot(site, names[0], is_parameter=True)]
    count, found = len(rule.parts), []
    for number, name in enumerate(names):
        unit = None if rule.num_units is None else number // count
        found.append(Spot(site, name.removesuffix(".weight"), unit=unit, part=number % count, num_parts=count))
    return found


def family_of(folder: Path, config: PragnosiaConfig) -> Family | None:
    """Whose names a directory's adapters bear: its own family's, else that of one that can express it, else None."""
    values = read_json(folder / "config.json")
    if values.get("model_type") != PragnosiaConfig.model_type:
        return read_family(values)
    origin = read_json(folder / ORIGIN).get("family") if (folder / ORIGIN).exists() else None
    if origin is not None:
        try:
            family = family_named(str(origin))
            write_config(family, config)
        except CheckpointError:  # it has been changed since
            return fitting(config)
        return family
    return fitting(config)


def fitting(config: PragnosiaConfig) -> Family | None:
    """A family that can express the model, if there is one."""
    try:
        return fitting_family(config)
    except CheckpointError:
        return None
