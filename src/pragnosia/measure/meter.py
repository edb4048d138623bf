"""Measured joules: RAPL counters of the processor, NVML counters of the GPUs, around a piece of work.

RAPL counts microjoules per package (processor socket) in `/sys/class/powercap/intel-rapl:*` (AMD too). It wraps
around at `max_energy_range_uj`, after minutes on a large server; a thread reads often enough to miss no turn.
NVML counts millijoules since the driver was loaded (Volta and later). Both count everything that runs on the
package or GPU, other people's programs too. The kernel's text files are read directly: the libraries kept up
for them bring hundreds of megabytes (codecarbon, zeus), the light ones are abandoned (pyRAPL, pyJoules).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from pragnosia.errors import UserError
from pragnosia.measure.energy import Energy

POWERCAP = Path("/sys/class/powercap")
# A 4 kW package turns a 262 kJ counter once a minute; nothing draws that.
_SECONDS_BETWEEN_READINGS = 20.0


class Counter(Protocol):
    """A hardware energy counter: `joules()` since it was made."""

    source: str

    def joules(self) -> float:
        """Joules since this counter was made."""


class RaplCounter:
    """All packages, and the DRAM beside them where it is counted (servers)."""

    source = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        """Raises UserError where there is no counter or no permission; the message says which."""
        if not root.is_dir():
            raise UserError(f"no RAPL: {root} is absent (a virtual machine, or not Linux)")
        self._zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _counts_once(zone)]
        if not self._zones:
            raise UserError(f"no RAPL: no package zone under {root}")
        try:
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
            self._last = self._read()
        except PermissionError:
            raise UserError(
                f"RAPL is readable by root only; allow it with: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"no RAPL: {error}") from None
        self._microjoules = 0

    def joules(self) -> float:
        now = self._read()
        for before, after, turn in zip(self._last, now, self._ranges, strict=True):
            self._microjoules += after - before if after >= before else after - before + turn
        self._last = now
        return self._microjoules * 1e-6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def _counts_once(zone: Path) -> bool:
    """Packages, and DRAM beside them; cores and uncore lie inside a package, psys around everything."""
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"


class NvmlCounter:
    """The GPUs torch sees."""

    source = "nvml"

    def __init__(self) -> None:
        """Raises UserError where there is no GPU, no nvidia-ml-py, or no counter."""
        if not torch.cuda.is_available():
            raise UserError("no NVML: torch sees no GPU")
        try:
            import pynvml
        except ImportError:
            raise UserError("no NVML: install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [_handle(pynvml, index) for index in range(torch.cuda.device_count())]
            self._start = self._millijoules()
        except pynvml.NVMLError as error:
            raise UserError(f"no NVML: {error}") from None

    def joules(self) -> float:
        return (self._millijoules() - self._start) * 1e-3

    def _millijoules(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in self._handles)


def _handle(nvml: Any, index: int) -> Any:
    """By identity, not by number: CUDA_VISIBLE_DEVICES renumbers torch's devices and not NVML's."""
    identity = torch.cuda.get_device_properties(index).uuid
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")


class EnergyMeter:
    """Joules of a `with` block by every counter there is.

        with EnergyMeter() as meter:
            work()
        meter.measured      # Energy, or None; then `meter.missing` says why

    With `counters` None, RAPL and NVML are looked for.
    """

    def __init__(self, counters: list[Counter] | None = None) -> None:
        self._given = counters
        self._counters: list[Counter] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self.missing: tuple[str, ...] = ()
        self.measured: Energy | None = None

    def __enter__(self) -> EnergyMeter:
        self.measured = None
        if self._given is None:
            self._counters, self.missing = find_counters()
        else:
            self._counters = list(self._given)
        if self._counters:
            self._stop.clear()
            self._reader = threading.Thread(target=self._keep_reading, daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._stop.set()
            self._reader.join()
            self._reader = None
        self.measured = self.read()

    def read(self) -> Energy | None:
        """What was measured so far, None without counters."""
        if not self._counters:
            return None
        with self._lock:
            joules = {counter.source: counter.joules() for counter in self._counters}
        note = ", ".join(f"{source} {value:.4g} J" for source, value in joules.items())
        return Energy(joules=sum(joules.values()), source="+".join(joules), note=f"measured: {note}")

    def _keep_reading(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_READINGS):
            self.read()


def find_counters() -> tuple[list[Counter], tuple[str, ...]]:
    """The counters of this machine, and for each kind that is missing, why."""
    tried = [_attempt(kind) for kind in (RaplCounter, NvmlCounter)]
    found = [counter for counter in tried if not isinstance(counter, str)]
    return found, tuple(reason for reason in tried if isinstance(reason, str))


def _attempt(kind: Callable[[], Counter]) -> Counter | str:
    try:
        return kind()
    except UserError as error:
        return str(error)
