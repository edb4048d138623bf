"""How fast bytes move: measured on this machine, given by hand (`--rates vram=300GB/s,link=12GB/s`), or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pragnosia.errors import ConfigError, UserError, unknown_name
from pragnosia.units import MIB, format_bytes, parse_bytes

if TYPE_CHECKING:
    from pragnosia.inference.plan import Rates

NAMES = ("memory", "disk", "vram", "link")
_WEIGHTS, _LARGE = ("*.safetensors", "*.bin", "*.gguf"), 256 * MIB
_DISK = 1e9  # what is assumed where nothing may be written: the slower half of the NVMe disks on sale


def given_rates(text: str | None) -> dict[str, float]:
    """`vram=300GB/s,link=12GB/s` -> bytes per second. Raises ConfigError; torch is not loaded."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, equals, rate = (word.strip() for word in part.partition("="))
        if not equals:
            raise ConfigError(f"--rates: {part!r} is no rate; write name=rate, as in disk=2GB/s,link=12GB/s")
        if name not in NAMES:
            raise ConfigError(f"--rates: {unknown_name('rate', name, NAMES)}")
        if rate[-1:].isdigit():
            raise ConfigError(f"--rates: {name} is {rate} of what? Write a unit, as in {name}={rate}GB/s")
        try:
            found[name] = parse_bytes(rate.removesuffix("/s"))
        except ValueError as error:
            raise ConfigError(f"--rates: {name}: {error}") from error
        if found[name] <= 0:
            raise ConfigError(f"--rates: {name} is {rate}; it must be more than nothing")
    return found


def measured_rates(
    folder: Path,
    given: Mapping[str, float] | None = None,
    *,
    form: str = "bf16",
    gpu: bool = False,
    rows: bool = False,
) -> Rates:
    """What is not given is measured: memory, the disk that holds `folder`, and the GPU's two where `gpu` asks for them.

    Memory by products with weights in the format `form`; the disk by the weights that lie there, or a file made for it;
    single reads, where `rows` asks, by those weights.
    Where there is no GPU, or nothing may be written into the folder, it is assumed and said so.
    """
    import torch

    from pragnosia.inference.plan import Rates
    from pragnosia.measure.bandwidth import link_bandwidth, memory_bandwidth, weight_bandwidth

    found, assumed = dict(given or {}), []
    if "memory" not in found:
        found["memory"] = weight_bandwidth(form, seconds=1.0)
    if "disk" not in found:
        try:
            found["disk"] = _disk(folder)
        except UserError:
            found["disk"] = _DISK
            assumed.append("disk")
    if rows:
        try:
            found["reads"] = _single(folder)
        except UserError:
            assumed.append("reads")
    for name, measure in (("vram", memory_bandwidth), ("link", link_bandwidth)) if gpu else ():
        if name in found:
            continue
        if torch.cuda.is_available():
            found[name] = measure(torch.device("cuda:0"))
        else:
            assumed.append(name)
    return Rates(**found, assumed=tuple(assumed))


def busy() -> str | None:
    """That others keep this machine busy, so that what is measured now is less than it can do; None if it is quiet."""
    import os

    from pragnosia.measure.limits import read_limits

    try:
        load = os.getloadavg()[0]
    except OSError:
        return None
    cores = read_limits().cores
    if load <= cores / 2:
        return None
    told = f"{load:.1f} processes wanted its {cores:g} cores in the last minute"
    return f"this machine is busy ({told}): the rates are those of now; plan again when it is quiet, or give --rates"


def _disk(folder: Path) -> float:
    """Of the weights that lie there, if they are large enough to time; else of a file made for it. Raises UserError."""
    from pragnosia.measure.bandwidth import disk_speed, reading_speed

    largest = _largest(folder)
    if largest is not None and largest.stat().st_size >= _LARGE:
        return reading_speed(largest)
    return disk_speed(folder).read_bytes_per_second


def _single(folder: Path) -> float:
    """Of the largest file of weights that lies there. Raises UserError."""
    from pragnosia.measure.bandwidth import single_reads

    largest = _largest(folder)
    if largest is None:
        raise UserError(f"there are no weights in {folder} to time single reads by")
    return single_reads(largest)


def _largest(folder: Path) -> Path | None:
    """The largest file of weights."""
    files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    return max(files, key=lambda file: file.stat().st_size, default=None)


def rates_line(rates: Rates, given: Mapping[str, float], *, gpu: bool, rows: bool = False) -> str:
    """Where each rate comes from, for people: `measured: memory 22 GiB/s; assumed: link 11.2 GiB/s`."""
    told: dict[str, list[str]] = {"measured": [], "given": [], "assumed": []}
    for name in NAMES if gpu else NAMES[:2]:
        source = "given" if name in given else "assumed" if name in rates.assumed else "measured"
        told[source].append(f"{name} {format_bytes(getattr(rates, name))}/s")
    if rows:
        told["assumed" if "reads" in rates.assumed else "measured"].append(f"single reads {rates.reads:,.0f}/s")
    return "; ".join(f"{source}: {', '.join(words)}" for source, words in told.items() if words)
