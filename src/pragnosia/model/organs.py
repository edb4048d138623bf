"""Sub-configurations, one frozen dataclass per organ; unknown keys are errors that name the nearest known key.

`None` means the organ is absent. Cross-field checks stand in `__post_init__`, so an impossible organ cannot be made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.kernels.activations import ACTIVATIONS

T = TypeVar("T", bound="Organ")

QK_NORMS = ("head", "full")


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
    balance_rate: float = 0.0
    """Step of the loss-free balance: after each step, b += rate * sign(mean load - load). 0 is off."""

    def __post_init__(self) -> None:
        require_whole("thalamus", num_awake=self.num_awake)
        require_positive("thalamus", scale=self.scale)
        require(self.balance_rate >= 0, f"thalamus.balance_rate is {self.balance_rate}; it must not be negative")
        if self.max_awake is not None:
            require_whole("thalamus", max_awake=self.max_awake)
            require(
                self.max_awake >= self.num_awake,
                f"thalamus.max_awake is {self.max_awake}, below num_awake {self.num_awake}; raise it",
            )


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
        require(
            self.lobes is None or isinstance(self.lobes, Mapping),
            f"experts.lobes is {self.lobes!r}; it must map labels to numbers of units, as in {{cortex: 16}}",
        )
        object.__setattr__(self, "lobes", dict(self.lobes) if self.lobes else {"cortex": self.num_units})
        require_whole("experts", num_units=self.num_units, unit_width=self.unit_width)
        if self.num_shared != 0:
            require_whole("experts", num_shared=self.num_shared)
        _check_activation("experts", self.activation)
        assert self.lobes is not None
        for label, count in self.lobes.items():
            require_whole(f"experts.lobes[{label!r}]", count=count)
        require(
            sum(self.lobes.values()) == self.num_units,
            f"experts.lobes hold {sum(self.lobes.values())} units, num_units is {self.num_units}; make them agree",
        )
        require(
            self.thalamus.num_awake <= self.num_units,
            f"thalamus.num_awake is {self.thalamus.num_awake}, more than the {self.num_units} units there are; "
            "lower it or add units",
        )

    @property
    def active_width(self) -> int:
        """Hidden neurons awake per token: woken and shared units together."""
        return (self.thalamus.num_awake + self.num_shared) * self.unit_width


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
