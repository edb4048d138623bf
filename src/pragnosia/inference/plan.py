"""A plan: what of a model lies where, and how fast it will be. Made by `make_plan` (inference/budget.py).

A token wakes A units in each of L sparse layers; a share h of them (the hit rate) is here, the others are read:

    seconds per token = awake bytes / memory rate + (1 - h) A L record / disk rate

and with a GPU, of whose slots a share g of the woken units is found (the memory is then its own):

                      + (1 - g) A L record / link rate

What is here is computed while the rest is on its way, yet on two cores that hides nothing that can be measured: the
threads that read take from those that compute (benchmarks/budget/forecast.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from pragnosia.inference.device_slots import slot_bytes
from pragnosia.inference.hits import CENTRAL, HIGH, LOW, Curve, hits
from pragnosia.inference.layers import PASSING
from pragnosia.kernels.pool import UnitPool
from pragnosia.units import format_bytes

_RESIDENTS = "attention, norms, routers, output head"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bytes per second that this machine reads."""

    memory: float
    disk: float
    vram: float = 300e9
    """The GPU its own memory: what a GPU of 2020's middle class reads."""
    link: float = 12e9
    """From host memory to the GPU: PCIe 3 with 16 lanes, less what its protocol takes."""
    assumed: tuple[str, ...] = ()
    """Those of the four that nobody measured or gave."""


@dataclass(frozen=True, kw_only=True)
class HostLayers:
    """What the host computes beside a GPU that cannot hold all layers: the last ones (inference/split.py)."""

    count: int = 0
    units: int = 0
    """Of all records, those of these layers."""
    resident: int = 0
    cache: int = 0
    scratch: int = 0
    awake_bytes: int = 0
    """Weights of them that one token reads."""

    @property
    def total(self) -> int:
        """Bytes of host memory, slots apart."""
        return self.resident + self.cache + self.scratch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes, each where it belongs; and what follows."""

    budget: int
    interpreter: int
    resident: int
    cache: int
    scratch: int
    record: int
    slots: int
    """In host memory."""
    num_units: int
    """Records that come and go: units, or whole layers of a dense model."""
    streamed_layers: int
    awake: int
    """Of each streamed layer, the records that a token may want."""
    context: int
    awake_bytes: int
    """Weights that one token reads."""
    record_read: int = 0
    """Bytes on disk of a record that is made plain on its way; 0: as many as here."""
    learning: int = 0
    """Adapters, their slopes and moments, where a model is tuned."""
    learns: str = "adapters"
    dense: bool = False
    vram: int = 0
    """The GPU's budget; 0 where the host computes. Else all but slots lies there: residents, what learns, scratch."""
    vram_slots: int = 0
    """On the GPU."""
    driver: int = 0
    """Of the GPU's memory, what CUDA and its libraries take."""
    buffers: int = 0
    """Host memory that a GPU needs beside the slots: CUDA's share there, staging buffers, adapters to be saved."""
    host: HostLayers = HostLayers()
    """Layers that the host computes, where the GPU computes the others."""

    @property
    def each(self) -> int:
        """Bytes of a slot in host memory."""
        return UnitPool.bytes_for(self.record, 1)

    @property
    def vram_each(self) -> int:
        """Bytes of a slot on the GPU."""
        return slot_bytes(self.record)

    @property
    def pool(self) -> int:
        """Host memory of the slots."""
        return UnitPool.bytes_for(self.record, max(self.slots, 0))

    @property
    def vram_pool(self) -> int:
        """GPU memory of its slots."""
        return self.vram_each * max(self.vram_slots, 0)

    @property
    def computing(self) -> int:
        """What lies where the model computes, slots apart; of a model on two devices, on the GPU."""
        return self.resident + self.cache + self.learning + self.scratch - self.host.resident - self.host.cache

    @property
    def vram_units(self) -> int:
        """Of all records, those that the GPU's slots are for."""
        return self.num_units - self.host.units

    @property
    def total(self) -> int:
        """Of host memory; never above the budget."""
        return self.interpreter + self.buffers + self.pool + (self.host.total if self.vram else self.computing)

    @property
    def vram_total(self) -> int:
        """Of the GPU's memory; never above its budget."""
        return self.driver + self.computing + self.vram_pool if self.vram else 0

    @property
    def least_slots(self) -> int:
        """What a layer needs at once and what the next reads meanwhile: on the GPU, and on the way there in memory."""
        return min(PASSING if self.dense else 2 * self.awake, self.num_units)

    @property
    def most_slots(self) -> int:
        """More in host memory would never be used: what stays on the GPU for good is not asked for again.

        Of units nothing stays for good unless all have a slot there, and a unit that leaves is best found in memory.
        """
        stays = _kept(self.vram_slots, self.num_units) if self.dense or self.vram_slots >= self.num_units else 0
        return max(self.num_units - stays, self.least_slots)

    @property
    def fits(self) -> bool:
        """Whether both budgets hold what has to be there."""
        return self.slots >= self.least_slots and (not self.vram or self.vram_slots >= self.least_slots)

    @property
    def share(self) -> float:
        """Of all units, those that have a slot, here or there."""
        return min((self.slots + self.vram_slots) / max(self.num_units, 1), 1.0)

    def hits(self, curve: Curve = CENTRAL) -> tuple[float, float]:
        """Of woken units, those expected on the GPU, and those on the GPU or in memory (inference/hits.py)."""
        if self.dense:  # which reads in a circle: what stays is known
            stays = _kept(self.vram_slots, self.num_units)
            all_stay = stays + _kept(self.slots, self.num_units - stays)
            return stays / self.num_units, all_stay / self.num_units
        near = hits(self.vram_slots / max(self.vram_units, 1), curve) if self.vram_slots else 0.0
        return near * self.vram_units / max(self.num_units, 1), hits(self.share, curve)

    @property
    def hit_rate(self) -> float:
        """Expected to be on the GPU or in memory, what really comes depends on model and text: see `hit_range`."""
        return self.hits()[1]

    @property
    def vram_hit_rate(self) -> float:
        """Expected to be on the GPU."""
        return self.hits()[0]

    @property
    def hit_range(self) -> tuple[float, float]:
        """Of a model whose load is spread evenly, and of one that keeps to a few units."""
        return self.hits(LOW)[1], self.hits(HIGH)[1]

    def tokens_per_second(self, rates: Rates, curve: Curve = CENTRAL) -> float:
        """Expected when decoding, once the slots are full of what is wanted: from a cold start less at first."""
        near, here = self.hits(curve)
        woken = self.awake * self.streamed_layers
        seconds = (1 - here) * woken * (self.record_read or self.record) / rates.disk
        if not self.vram:
            return 1 / (seconds + self.awake_bytes / rates.memory)
        by_host, on_gpu = self.host.awake_bytes, self.vram_units / max(self.num_units, 1)
        seconds += by_host / rates.memory + (self.awake_bytes - by_host) / rates.vram
        return 1 / (seconds + (on_gpu - near) * woken * self.record / rates.link)

    def speed_range(self, rates: Rates) -> tuple[float, float]:
        """Tokens per second at the two ends of `hit_range`."""
        return self.tokens_per_second(rates, LOW), self.tokens_per_second(rates, HIGH)

    def table(self, rates: Rates | None = None) -> str:
        """For a person, before anything runs."""
        what = "layers" if self.dense else "units"
        slots = f"slots for {self.num_units} {what} of {format_bytes(self.record)}"
        away = self.host
        host = [
            ("interpreter and libraries", self.interpreter, ""),
            ("CUDA's share and staging", self.buffers, "assumed"),
        ]
        computing = [
            ("resident weights", self.resident - away.resident, "norms, output head" if self.dense else _RESIDENTS),
            ("keys and values", self.cache - away.cache, f"{self.context} tokens"),
            (f"{self.learns}, slopes, moments", self.learning, ""),
            ("activations and scratch", self.scratch, f"{self.context} tokens" if self.learning else ""),
        ]
        pool = (what, self.pool, f"{self.slots} {slots}")
        total = ("total", self.total, f"of {format_bytes(self.budget)}")
        if self.vram:
            all_but = f": the head, and all but the last {away.count} layers" if away.count else ""
            theirs = slots.replace(str(self.num_units), str(self.vram_units))
            lines = [f"  on the GPU{all_but}", *_lines([("CUDA", self.driver, "assumed"), *computing])]
            lines += _lines([(what, self.vram_pool, f"{self.vram_slots} {theirs}")])
            lines += _lines([("total", self.vram_total, f"of {format_bytes(self.vram)}")])
            parts = f"weights {format_bytes(away.resident)}, keys and values {format_bytes(away.cache)}, scratch"
            rest = (f"the last {away.count} layers", away.total, parts)
            lines += ["  in memory", *_lines([*host, rest, pool, total])]
        else:
            lines = _lines([*host, *computing, pool, total])
        if rates is not None:
            speed, span = _span(*[self.tokens_per_second(rates)] * 2), _span(*self.speed_range(rates))
            expected = f"  expected once warm: {self._expected(what)}, {speed} tokens/s"
            lines.append(expected if speed == span else f"{expected} ({span})")
        return "\n".join(lines)

    def _expected(self, what: str) -> str:
        """Where woken units are."""
        low, high = self.hit_range
        words = f"{self.hit_rate:.0%} of woken {what} here"
        if f"{low:.0%}" != f"{high:.0%}":
            words += f" ({low:.0%} to {high:.0%})"
        return words + (f", {self.vram_hit_rate:.0%} on the GPU" if self.vram else "")


def _kept(slots: int, count: int) -> int:
    """Of layers that pass in a circle, those that stay for good."""
    return count if slots >= count else max(slots - PASSING, 0)


def _lines(rows: list[tuple[str, int, str]]) -> list[str]:
    return [f"  {name:<26}{format_bytes(size):>10}  {note}".rstrip() for name, size, note in rows if size]


def _span(low: float, high: float) -> str:
    """`2` where both ends read alike."""
    ends = [f"{end:.2g}" if end < 100 else f"{end:.0f}" for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
