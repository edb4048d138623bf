"""Sub-configurations, one frozen dataclass per organ; unknown keys are errors that name the nearest known key.

`None` means the organ is absent. Cross-field checks stand in `__post_init__`, so an impossible organ cannot be made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import sqrt
from typing import Any, Protocol, TypeVar

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.kernels.activations import ACTIVATIONS

T = TypeVar("T", bound="Organ")

QK_NORMS = ("head", "full")
COLUMN_ROUTER = {"kind": "sigmoid", "renormalise": False, "scale": 2.0, "balance_rate": 1e-3}
USUALLY_AWAKE = 0.05
LARGEST_RIVALRY = 256  # neurons that may compete with each other (kernels/source/columns.hpp)
UNIT_NAMES = {"experts": "units", "columns": "columns"}


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition`: for what a user can mend."""
    if not condition:
        raise ConfigError(message)


def require_positive(owner: str, **values: Any) -> None:
    """Every value is a number greater than zero."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number, f"{owner}.{name} is {value!r}; it must be a number")
        require(value > 0, f"{owner}.{name} is {value}; it must be greater than 0")


def require_whole(owner: str, **values: Any) -> None:
    """Every value is a whole number greater than zero: a size."""
    require_positive(owner, **values)
    for name, value in values.items():
        require(isinstance(value, int), f"{owner}.{name} is {value}; it must be a whole number")


@dataclass(frozen=True, kw_only=True)
class Organ:
    """What all organs' configurations share: reading from and writing to plain dictionaries."""

    @classmethod
    def read(cls: type[T], values: Any) -> T | None:
        """The organ described by a mapping; None and organs stay. Raises ConfigError for an unknown key."""
        if values is None or isinstance(values, cls):
            return values
        require(isinstance(values, Mapping), f"{cls.__name__} must be a mapping, got {values!r}")
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(unknown_name(f"key in {cls.__name__}", str(key), known))
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from error

    def write(self) -> dict[str, Any]:
        """As a plain dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Organ):
    """Grouped-query attention: H query heads of width K share fewer key-value heads."""

    num_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int | None = None
    """None is the model's width shared out among the heads, which must divide it."""
    bias: bool = False
    """On the query, key and value projections."""
    output_bias: bool = False
    qk_norm: str | None = None
    """`head`: RMS norm over each head's width (Qwen3); `full`: over all heads together (OLMoE)."""
    clip_qkv: float | None = None
    """Clamp queries, keys and values to ± this (OLMoE)."""
    sliding_window: int | None = None
    """How many tokens back, itself included, a token of a `sliding_attention` layer sees."""
    sinks: bool = False
    """One learned logit per head that takes attention to nowhere (gpt-oss)."""

    def __post_init__(self) -> None:
        require_whole(
            "attention",
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=2 if self.head_dim is None else self.head_dim,
        )
        require(
            self.num_heads % self.num_key_value_heads == 0,
            f"attention.num_heads is {self.num_heads}, not a multiple of num_key_value_heads "
            f"{self.num_key_value_heads}; choose a divisor",
        )
        require(
            self.head_dim is None or self.head_dim % 2 == 0,
            f"attention.head_dim is {self.head_dim}; rotary positions need an even width",
        )
        if self.qk_norm is not None and self.qk_norm not in QK_NORMS:
            raise ConfigError(unknown_name("attention.qk_norm", self.qk_norm, QK_NORMS))
        if self.sliding_window is not None:
            require_whole("attention", sliding_window=self.sliding_window)
        if self.clip_qkv is not None:
            require_positive("attention", clip_qkv=self.clip_qkv)


@dataclass(frozen=True, kw_only=True)
class DendritesConfig(Organ):
    """Dendritic attention: every head of `attention` hears and speaks through the most driven of its dendrites."""

    num_dendrites: int = 4
    """Of each head."""
    num_awake: int = 1
    """Of each head, for each token."""

    def __post_init__(self) -> None:
        require_whole("dendrites", num_dendrites=self.num_dendrites, num_awake=self.num_awake)
        require(
            self.num_awake <= self.num_dendrites,
            f"dendrites.num_awake is {self.num_awake}, more than the {self.num_dendrites} a head has; lower it",
        )


def _check_activation(owner: str, name: str) -> None:
    if name not in ACTIVATIONS:
        raise ConfigError(unknown_name(f"{owner}.activation", name, ACTIVATIONS))


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(Organ):
    """A dense feed-forward: always awake."""

    width: int = 1024
    activation: str = "swiglu"
    bias: bool = False

    def __post_init__(self) -> None:
        require_whole("feed_forward", width=self.width)
        _check_activation("feed_forward", self.activation)


@dataclass(frozen=True, kw_only=True)
class ThalamusConfig(Organ):
    """The router: which units wake for a token, and how strongly."""

    kind: str = "sigmoid"
    """A name in `parts.THALAMI` (softmax, sigmoid, threshold) or `module:Class`."""
    num_awake: int = 2
    """Units woken per token at full energy; on average, for `threshold`."""
    max_awake: int | None = None
    """`threshold` only: the most units one token may wake; None is twice `num_awake`."""
    renormalise: bool = True
    """The strengths of the awake units sum to `scale`."""
    scale: float = 1.0
    bias: bool = False
    rank: int | None = None
    """The scores are of rank r: r (D + U) weights read per token instead of D U. None is full rank."""
    balance_rate: float = 0.0
    """Step of the loss-free balance: after each step, b += rate * sign(mean load - load). 0 is off."""

    def __post_init__(self) -> None:
        require_whole("thalamus", num_awake=self.num_awake)
        if self.rank is not None:
            require_whole("thalamus", rank=self.rank)
        require_positive("thalamus", scale=self.scale)
        require(self.balance_rate >= 0, f"thalamus.balance_rate is {self.balance_rate}; it must not be negative")
        if self.max_awake is not None:
            require_whole("thalamus", max_awake=self.max_awake)
            require(
                self.max_awake >= self.num_awake,
                f"thalamus.max_awake is {self.max_awake}, below num_awake {self.num_awake}; raise it",
            )


class UnitsConfig(Protocol):
    """What whoever serves a bank wants to know of it, be its units experts or columns."""

    @property
    def num_units(self) -> int:
        """U."""

    @property
    def unit_width(self) -> int:
        """F: neurons of a unit."""

    @property
    def num_shared(self) -> int:
        """Units that every token wakes, as one dense feed-forward."""

    @property
    def num_speaking(self) -> int | None:
        """The most neurons of an awake unit that speak; None: all."""

    @property
    def activation(self) -> str:
        """A name in `kernels.ACTIVATIONS`."""

    @property
    def bias(self) -> bool:
        """Whether units have biases."""

    @property
    def lobes(self) -> Mapping[str, int] | None:
        """Label -> number of units, in order."""

    @property
    def thalamus(self) -> ThalamusConfig:
        """Their router."""

    @property
    def active_width(self) -> int:
        """Hidden neurons awake per token."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Organ):
    """Fine-grained units in labelled lobes over a bank, plus shared units that never sleep."""

    num_units: int = 16
    unit_width: int = 128
    num_shared: int = 0
    """Units every token wakes; they are one dense feed-forward of width num_shared * unit_width."""
    activation: str = "swiglu"
    bias: bool = False
    lobes: Mapping[str, int] | None = None
    """Label -> number of units, in order; None is one lobe named `cortex`."""
    thalamus: ThalamusConfig = field(default_factory=ThalamusConfig)

    def __post_init__(self) -> None:
        require(self.thalamus is not None, "experts.thalamus is null; experts need a router, say which")
        object.__setattr__(self, "thalamus", ThalamusConfig.read(self.thalamus))
        require_whole("experts", num_units=self.num_units, unit_width=self.unit_width)
        if self.num_shared != 0:
            require_whole("experts", num_shared=self.num_shared)
        object.__setattr__(self, "lobes", _share_out("experts", self.lobes, self.num_units, "num_units is"))
        _check_activation("experts", self.activation)
        _check_awake("experts", self.thalamus, self.num_units)

    @property
    def num_speaking(self) -> int | None:
        """All neurons of an expert speak."""
        return None

    @property
    def active_width(self) -> int:
        """Hidden neurons awake per token: woken and shared units together."""
        return (self.thalamus.num_awake + self.num_shared) * self.unit_width


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(Organ):
    """Cortical columns: `width` hidden neurons in columns of equal size, of which a few wake for each token.

    The seed's 32 columns of 64 are width 2048 and column_width 64.
    """

    width: int = 1024
    """Hidden neurons in all, asleep and awake."""
    column_width: int = 8
    """Neurons of one column."""
    num_speaking: int | None = None
    """The most neurons of an awake column that speak, those that answer loudest; None: all."""
    activation: str = "relu2"
    bias: bool = False
    lobes: Mapping[str, int] | None = None
    """Label -> number of columns, in order; None is one lobe named `cortex`."""
    thalamus: Any = None
    """A `ThalamusConfig`; left out: gates as they are, balanced; 1 in 20 awake, as loud as all by 2 sqrt(U / A)."""

    def __post_init__(self) -> None:
        require_whole("columns", width=self.width, column_width=self.column_width)
        require(
            self.width % self.column_width == 0,
            f"columns.width is {self.width}, which is no whole number of columns of {self.column_width}; "
            "choose a multiple",
        )
        if self.num_speaking is not None:
            require_whole("columns", num_speaking=self.num_speaking)
            require(
                self.num_speaking <= self.column_width <= LARGEST_RIVALRY,
                f"columns.num_speaking is {self.num_speaking} in columns of {self.column_width}; it must be at most "
                f"that, and columns whose neurons compete hold at most {LARGEST_RIVALRY}",
            )
        object.__setattr__(self, "lobes", _share_out("columns", self.lobes, self.num_units, "columns there are"))
        _check_activation("columns", self.activation)
        object.__setattr__(self, "thalamus", self._router(self.thalamus))
        _check_awake("columns", self.thalamus, self.num_units)

    def _router(self, given: Any) -> Any:
        """What is given, over what columns usually have."""
        if isinstance(given, ThalamusConfig):
            return given
        require(given is None or isinstance(given, Mapping), f"columns.thalamus must be a mapping, got {given!r}")
        awake = max(1, round(self.num_units * USUALLY_AWAKE))
        router: Any = ThalamusConfig.read({**COLUMN_ROUTER, "num_awake": awake, **(given or {})})
        if "scale" in (given or {}) or router.renormalise or router.kind == "softmax":
            return router  # sums to it, or was told
        return replace(router, scale=round(router.scale * sqrt(self.num_units / router.num_awake), 2))

    @property
    def num_units(self) -> int:
        """U: columns."""
        return self.width // self.column_width

    @property
    def unit_width(self) -> int:
        """F: neurons of a column."""
        return self.column_width

    @property
    def num_shared(self) -> int:
        """Every column may sleep."""
        return 0

    @property
    def active_width(self) -> int:
        """Hidden neurons in awake columns."""
        return int(self.thalamus.num_awake) * self.column_width


def _share_out(owner: str, lobes: Any, num_units: int, counted: str) -> dict[str, int]:
    """Lobes that hold all units. Raises ConfigError."""
    require(
        lobes is None or isinstance(lobes, Mapping),
        f"{owner}.lobes is {lobes!r}; it must map labels to numbers of units, as in {{cortex: 16}}",
    )
    shared = dict(lobes) if lobes else {"cortex": num_units}
    for label, count in shared.items():
        require_whole(f"{owner}.lobes[{label!r}]", count=count)
    held = sum(shared.values())
    require(
        held == num_units,
        f"{owner}.lobes hold {held} units, {counted} {num_units}; make them agree",
    )
    return shared


def _check_awake(owner: str, thalamus: ThalamusConfig, num_units: int) -> None:
    require(
        thalamus.num_awake <= num_units,
        f"{owner}.thalamus.num_awake is {thalamus.num_awake}, more than the {num_units} {UNIT_NAMES[owner]} there are; "
        f"lower it or add {UNIT_NAMES[owner]}",
    )


CURRICULA = ("all", "rotate", "gradual")


@dataclass(frozen=True, kw_only=True)
class ExitsConfig(Organ):
    """Layers after which a token may leave, by the last norm and the output head; and how that is trained."""

    layers: Sequence[int]
    """So many layers stand before each exit; the last layer is no exit, it is the end."""
    loss_weight: float = 1.0
    """Of the exits' mean cross-entropy, beside the end's."""
    curriculum: str = "rotate"
    """Which exits learn in a step: `all`; `rotate`, one after the other; `gradual`, the deepest first, then more."""
    layer_dropout: float = 0.1
    """Share of a batch's rows that pass the last layer by; less below, none passes the first."""

    def __post_init__(self) -> None:
        given: Any = self.layers
        listed = isinstance(given, list | tuple) and len(given) > 0
        require(listed, f"exits.layers is {given!r}; name layers, as in [2, 4]")
        for layer in given:
            require_whole("exits", layers=layer)
        object.__setattr__(self, "layers", sorted(set(given)))
        require_positive("exits", loss_weight=self.loss_weight)
        require(0 <= self.layer_dropout < 1, f"exits.layer_dropout is {self.layer_dropout}; it must lie in [0, 1)")
        if self.curriculum not in CURRICULA:
            raise ConfigError(unknown_name("exits.curriculum", self.curriculum, CURRICULA))


@dataclass(frozen=True, kw_only=True)
class GatesConfig(Organ):
    """Layers with a gate: a token passes such a layer only if its score is among the highest (gates.py)."""

    layers: Sequence[int]
    """Counted from 0. The others every token passes; every second one is what the paper found best."""
    share: float = 0.5
    """Of all tokens, those that pass."""

    def __post_init__(self) -> None:
        given: Any = self.layers
        listed = isinstance(given, list | tuple) and len(given) > 0
        require(listed, f"gates.layers is {given!r}; name layers, as in [1, 3]")
        for layer in given:
            whole = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
            require(whole, f"gates.layers names {layer!r}; layers are counted 0, 1, 2 and so on")
        object.__setattr__(self, "layers", sorted(set(given)))
        require_positive("gates", share=self.share)
        require(self.share < 1, f"gates.share is {self.share}; it must lie between 0 and 1, as 0.5")
