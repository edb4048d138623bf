"""The dial: settings of one model with what they cost and how well they predict, measured on a text. `energy.json`.

    energy e      the setting that predicts best among those that cost at most e times the whole model
    cost          joules of a token that is decoded, by a stated model (measure/energy.py), from operations and bytes

Energy 1 is always the whole model and needs no dial. `pragnosia calibrate` measures one (measure/dial.py) and lays it
beside the model. torch is not loaded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from pragnosia.checkpoints.admission import SPARSITY
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.beside import read_beside, write_beside
from pragnosia.inference.directory import turnable
from pragnosia.inference.exits import check_layers
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.quantisation.index import is_packed

ENERGY = "energy.json"
INTENTS = ("draft", "answer", "think")
BARELY_WORSE, SAME_WORDS = 1.02, 0.9
"""Of an answer: bits per byte over the whole model's, and the share of the words that must be the whole model's."""
_SAMPLES, _SAMPLE = 16, 4096  # of a file of weights: places and bytes
_ROUNDING = 1e-9

Wish: TypeAlias = float | str
"""A share of the whole model's energy in (0, 1], or what a request is for: one of INTENTS."""


@dataclass(frozen=True, kw_only=True)
class Notch:
    """One setting, as measured. Costs are those of one token, decoded alone."""

    setting: Setting
    bits_per_byte: float
    agreed: float
    """Share of the tokens for which its likeliest word is the whole model's."""
    operations_per_token: float
    bytes_per_token: float
    joules_per_token: float
    layers_used: float
    """Mean; a layer that only remembers a token is not used."""
    units_awake: float
    """In a layer that has units, mean."""


@dataclass(frozen=True, kw_only=True)
class Dial:
    """A calibration."""

    model: str
    """Its print, so that another model's dial is known for what it is."""
    num_layers: int
    energy_model: str
    data: tuple[str, ...]
    tokens: int
    """Of the text."""
    context: float
    """Tokens that the decoded token of a notch's cost sees."""
    notches: tuple[Notch, ...]
    """The whole model first."""

    @property
    def whole(self) -> Notch:
        """All of the model."""
        return self.notches[0]

    def share(self, notch: Notch) -> float:
        """Of the whole model's energy."""
        return notch.joules_per_token / self.whole.joules_per_token

    def frontier(self, *, leaving: bool = True) -> list[Notch]:
        """The notches worth turning to, dearest first; without `leaving`, those at which all layers speak."""
        return frontier(notch for notch in self.notches if leaving or not notch.setting.leave)

    def at(self, wish: Wish, *, leaving: bool = True) -> Notch:
        """The notch for an energy or an intent; below the cheapest there is, that one.

        `draft` is the cheapest, `think` the whole model, `answer` the cheapest that is nearly as good: at most 2 %
        worse in bits per byte, with the whole model's likeliest word nine times in ten. Where a model predicts a text
        badly at any setting, as one in a language that it has not learned, the bits alone say nothing. Raises
        ConfigError for what is neither.
        """
        check_energy(wish)
        if wish in (1, "think"):
            return self.whole
        if wish == "answer":
            speaking = (one for one in self.notches if leaving or not one.setting.leave)
            good = [one for one in speaking if nearly_whole(one, self.whole)]
            return min(good, key=lambda one: one.joules_per_token)
        known = self.frontier(leaving=leaving)
        if wish == "draft":
            return known[-1]
        cheap = [one for one in known if self.share(one) <= float(wish) + _ROUNDING]
        return min(cheap, key=lambda one: one.bits_per_byte) if cheap else known[-1]

    def excess(self, notch: Notch, wish: Wish) -> str | None:
        """That a notch costs more than was wished for, in a line; None where it does not."""
        if isinstance(wish, str) or self.share(notch) <= float(wish) + _ROUNDING:
            return None
        return f"energy {wish:g} is below the cheapest setting there is, which takes {self.share(notch):.2g}: that one"

    def write(self, folder: Path) -> None:
        """Beside the model. Raises OSError."""
        write_beside(folder / ENERGY, asdict(self))


def nearly_whole(notch: Notch, whole: Notch) -> bool:
    """Whether it is good enough for an answer."""
    return notch.agreed >= SAME_WORDS and notch.bits_per_byte <= BARELY_WORSE * whole.bits_per_byte


def check_energy(energy: Any) -> None:
    """Raise ConfigError unless `energy` is a share of the whole model's, or an intent."""
    number = float(energy) if isinstance(energy, Real) and not isinstance(energy, bool) else math.nan
    if energy not in INTENTS and not 0 < number <= 1:
        raise ConfigError(
            f"energy is {energy!r}; it must lie in (0, 1], where 1 is the whole model, or be one of "
            f"{', '.join(INTENTS)}"
        )


def frontier(notches: Iterable[Notch]) -> list[Notch]:
    """The whole model, and of the others what nothing as cheap predicts better than; dearest first.

    Operations never grow from one to the next: what would cost fewer joules but more operations is left out.
    """
    whole, *others = notches
    assert whole.setting == WHOLE
    best: list[Notch] = []
    for one in sorted(others, key=lambda one: (one.joules_per_token, one.bits_per_byte)):
        if one.joules_per_token < whole.joules_per_token and (not best or one.bits_per_byte < best[-1].bits_per_byte):
            best.append(one)
    kept = [whole]
    for one in reversed(best):
        if one.operations_per_token <= kept[-1].operations_per_token:
            kept.append(one)
    return kept


def read_dial(folder: str | Path) -> Dial | None:
    """The dial beside a model, None where there is none. Raises CheckpointError for a damaged or another model's."""
    path = Path(folder) / ENERGY
    dial = read_beside(path, _dial)
    if dial is not None and dial.model != model_print(folder):
        raise CheckpointError(f"{path} was measured on another model, or before this one changed; calibrate again")
    return dial


def needed_dial(folder: str | Path) -> Dial:
    """The dial beside a model. Raises ConfigError where there is none, CheckpointError as `read_dial`."""
    dial = read_dial(folder)
    if dial is None:
        raise not_calibrated(folder)
    return dial


def not_calibrated(folder: str | Path) -> ConfigError:
    """That only energy 1 can be had, and what to do about it."""
    if is_dense(folder):
        return ConfigError(f"energy stays 1: {nothing_to_turn(folder)}")
    return ConfigError(
        f"{folder} is not calibrated, and energy below 1 is chosen from what was measured; run: "
        f"pragnosia calibrate {folder} --data TEXT"
    )


def is_dense(folder: str | Path) -> bool:
    """Whether a model directory is known to hold nothing that a dial can turn."""
    try:
        return not turnable(folder)
    except CheckpointError:
        return False


def nothing_to_turn(folder: str | Path) -> str:
    """Of a dense model: what it lacks, and what would let some of it sleep."""
    lacks = f"{folder} is dense, without units, trained exits or gates, so there is nothing to dial"
    columns = "train with columns (configs/braingpt-nano.yaml)"
    if (Path(folder) / SPARSITY).is_file() or is_packed(Path(folder)):  # `sparsify` takes neither
        return f"{lacks}; for a dial {columns}"
    return f"{lacks}; let some of it sleep: pragnosia sparsify {folder} OUT --level 0.4 --data TEXT, or {columns}"


def model_print(folder: str | Path) -> str:
    """A short name of a model's content: its configuration, and samples of its weights. Raises CheckpointError."""
    digest, place = hashlib.sha256(), Path(folder)
    try:
        for path in (place / "config.json", *sorted(place.glob("*.safetensors"))):
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for number in range(_SAMPLES):
                    file.seek(size * number // _SAMPLES)
                    digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise CheckpointError(f"{place} cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:20]


def _dial(values: Mapping[str, Any]) -> Dial:
    """Checked. Raises TypeError, ValueError, KeyError."""
    notches = tuple(_notch(one) for one in values["notches"])
    dial = Dial(**{**values, "notches": notches, "data": tuple(values["data"])})
    if isinstance(dial.num_layers, bool) or not isinstance(dial.num_layers, int):
        raise ValueError(f"num_layers is {dial.num_layers!r}")
    if not notches or notches[0].setting != WHOLE:
        raise ValueError("its first notch is not the whole model")
    if notches[0].agreed != 1:
        raise ValueError("the whole model does not agree with itself")
    for one in notches:
        check_layers((layer for layer, _ in one.setting.leave), dial.num_layers)
    return dial


def _notch(values: Mapping[str, Any]) -> Notch:
    notch = Notch(**{**values, "setting": Setting.read(values["setting"])})
    numbers: Sequence[Any] = [value for name, value in values.items() if name != "setting"]
    if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in numbers):
        raise ValueError(f"a notch's figures are {numbers}")
    if not notch.joules_per_token > 0:
        raise ValueError("a notch costs nothing")
    if not notch.agreed <= 1:
        raise ValueError(f"a notch agrees on {notch.agreed} of the words")
    return notch
