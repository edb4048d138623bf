"""How fast this machine moves bytes and multiplies matrices: short timings, best of several.

The best of several and not the mean: other programs only ever make a timing longer. A forecast wants the middle one
instead (`usual`), for it will run beside the same programs. Decoding one token reads
every awake weight once, so tokens/s is bounded by memory bandwidth / bytes per token; a model streamed from
disk by disk bandwidth / bytes per token.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from pragnosia.errors import UserError
from pragnosia.kernels.compiled import native_library
from pragnosia.kernels.far import IN_FLIGHT, FarRows
from pragnosia.kernels.formats import format_named
from pragnosia.kernels.packed import packed_linear
from pragnosia.measure.limits import read_limits
from pragnosia.units import GIB, MIB

_BLOCK = 4 * MIB
_PIECE, _STRETCH = MIB, 128 * MIB  # what a pool reads at once; what is timed at once
_READERS = 4
_PAGE = 4096
_DEPTH = 2048  # of the rows whose product is timed
# Larger than the last-level cache of the large servers of 2026 (hundreds of MiB on some).
_BUFFER = GIB
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """Sequential reading from one folder; `direct` says the page cache was bypassed."""

    folder: str
    read_bytes_per_second: float
    write_bytes_per_second: float
    direct: bool


@dataclass(frozen=True, kw_only=True)
class DeviceSpeed:
    """One device: memory read once, and multiply-accumulates as two operations, per precision."""

    device: str
    memory_bytes_per_second: float
    operations_per_second: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What was timed: the CPU first, then each GPU; the disk if a folder was given."""

    devices: tuple[DeviceSpeed, ...]
    disk: DiskSpeed | None = None


def measure_speeds(folder: Path | None = None) -> Speeds:
    """Time memory and arithmetic on every device, and the disk that holds `folder`: two seconds each."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    devices = tuple(device_speed(torch.device(name)) for name in names)
    return Speeds(devices=devices, disk=None if folder is None else disk_speed(folder))


def device_speed(device: torch.device, *, seconds: float = 0.3) -> DeviceSpeed:
    """Memory bandwidth and matrix throughput in fp32 and bf16, `seconds` for each of the three."""
    return DeviceSpeed(
        device=str(device),
        memory_bytes_per_second=memory_bandwidth(device, seconds=seconds),
        operations_per_second={
            name: matrix_throughput(device, dtype, seconds=seconds)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        },
    )


def memory_bandwidth(
    device: torch.device, *, seconds: float = 0.3, num_bytes: int = _BUFFER, usual: bool = False
) -> float:
    """Bytes per second of one matrix-vector product over a buffer no cache holds: what decoding does.

    At its best, or as it usually is beside whatever else runs.
    """
    if device.type == "cpu":
        num_bytes = min(num_bytes, max(MIB, read_limits().memory_available // 4))
    rows = max(1, num_bytes // (4 * 4096))
    # Written, not just allocated: untouched pages are all one page of zeros.
    matrix = torch.ones(rows, 4096, device=device)
    vector = torch.ones(4096, device=device)
    timings = _timings(lambda: torch.mv(matrix, vector), device, seconds)
    return matrix.nbytes / (median(timings) if usual else min(timings))


def weight_bandwidth(name: str, *, seconds: float = 0.3, num_bytes: int = _BUFFER // 2) -> float:
    """Bytes per second of weights in a format, read by a product with one row, as it usually is beside what else runs.

    What a token costs in memory: formats of few bits are slower than the memory, for they have to be unpacked.
    Where there are no compiled kernels it is the memory's own rate.
    """
    if native_library() is None:
        return memory_bandwidth(torch.device("cpu"), seconds=seconds, usual=True)
    num_bytes = min(num_bytes, max(MIB, read_limits().memory_available // 4))
    row = format_named(name).row_bytes(_DEPTH)
    packed = torch.empty(max(1, num_bytes // row), row, dtype=torch.uint8).zero_()  # written, not just allocated
    x = torch.ones(1, _DEPTH, dtype=torch.bfloat16)
    with torch.inference_mode():
        timings = _timings(lambda: packed_linear(x, packed, _DEPTH, name), x.device, seconds)
    return packed.nbytes / median(timings)


def link_bandwidth(device: torch.device, *, seconds: float = 0.3, num_bytes: int = 256 * MIB) -> float:
    """Bytes per second from host memory to a device: page-locked, as units travel; a plain copy where it is the CPU."""
    here = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty_like(here, device=device, pin_memory=False)
    return num_bytes / min(_timings(lambda: there.copy_(here, non_blocking=True), device, seconds))


def matrix_throughput(
    device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3, size: int | None = None
) -> float:
    """Operations per second of a square matrix product."""
    size = size or (1024 if device.type == "cpu" else 8192)
    left = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / min(_timings(lambda: torch.mm(left, left), device, seconds))


def _timings(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each of at least three runs, repeated until `seconds` have passed; the first run warms up."""
    _wait(device)
    work()
    _wait(device)
    timings, started = list[float](), time.perf_counter()
    while len(timings) < 3 or time.perf_counter() - started < seconds:
        began = time.perf_counter()
        work()
        _wait(device)
        timings.append(time.perf_counter() - began)
    return timings


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def disk_speed(folder: Path, *, num_bytes: int = 256 * MIB, seconds: float = 1.5) -> DiskSpeed:
    """Write a temporary file, then read it past the page cache, again and again; each stops after `seconds`.

    What is reported of reading is the middle pass: one alone may fall into a bad moment of a disk that others share.

    Raises UserError where the folder cannot be written.
    """
    try:
        # without a name where that can be read again: a process that is killed leaves nothing behind
        nameless = _DESCRIPTORS.is_dir()
        with tempfile.TemporaryFile(dir=folder) if nameless else tempfile.NamedTemporaryFile(dir=folder) as file:
            path = _DESCRIPTORS / str(file.fileno()) if nameless else Path(file.name)
            size, writing = _write(file.fileno(), num_bytes, seconds)
            passes, direct = _passes(path, size, seconds)
    except OSError as error:
        raise UserError(
            f"cannot measure the disk at {folder}: {error.strerror}; name a folder you may write to"
        ) from error
    return DiskSpeed(
        folder=str(folder),
        read_bytes_per_second=median(passes),
        write_bytes_per_second=size / writing,
        direct=direct,
    )


def reading_speed(file: Path, *, seconds: float = 1.5) -> float:
    """Bytes per second of a large file that lies there already, read as a pool reads it: past the page cache.

    Stretch after stretch, of which the middle one counts. Nothing is written. Raises UserError where it cannot be read.
    """
    try:
        size = file.stat().st_size
        descriptor, direct = _open_direct(file)
        try:
            deadline, rates, start = time.perf_counter() + seconds, list[float](), 0
            while not rates or time.perf_counter() < deadline:
                stretch = min(_STRETCH, size - start)
                began = time.perf_counter()
                got = _read(descriptor, start + stretch, deadline, start=start, block=_PIECE)
                rates.append(got / (time.perf_counter() - began))
                start += stretch
                if size - start < _STRETCH:
                    if not direct:  # a second pass would find the page cache
                        break
                    start = 0
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; copy it again") from error
    return median(rates[:-1] or rates)  # the last was cut short


def single_reads(file: Path, *, seconds: float = 0.5) -> float:
    """Pages of a file read one by one, many asked for at once, as rows of long-term memory are [1/s].

    Raises UserError for a file that cannot be read so, or is too small for the reads to differ.
    """
    pages = file.stat().st_size // _PAGE
    if pages < 64 * IN_FLIGHT:
        raise UserError(f"{file} is too small to time single reads; give --rates")
    lot, best = torch.Generator().manual_seed(0), 0.0
    try:
        far, ends = FarRows(file, 0, pages, _PAGE, 0), time.perf_counter() + seconds
        while time.perf_counter() < ends:
            started = time.perf_counter()
            far.gather(torch.randint(pages, (4 * IN_FLIGHT,), generator=lot))
            best = max(best, 4 * IN_FLIGHT / (time.perf_counter() - started))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot time single reads of {file}: {error}") from error
    return best


def _write(descriptor: int, num_bytes: int, seconds: float) -> tuple[int, float]:
    """Whole blocks until done or out of time; (bytes, seconds) with the final flush."""
    block = os.urandom(_BLOCK)  # incompressible: some disks and file systems compress
    started, written = time.perf_counter(), 0
    while written < max(num_bytes, _BLOCK):
        written += os.write(descriptor, block)
        if time.perf_counter() - started > seconds:
            break
    os.fsync(descriptor)
    return written, time.perf_counter() - started


def _passes(path: Path, size: int, seconds: float) -> tuple[list[float], bool]:
    """Bytes per second of each pass over the file; past the page cache?"""
    descriptor, direct = _open_direct(path)
    deadline, rates = time.perf_counter() + seconds, list[float]()
    try:
        while not rates or (direct and time.perf_counter() < deadline):  # a second pass would find the page cache
            started = time.perf_counter()
            rates.append(_read(descriptor, size, deadline) / (time.perf_counter() - started))
        return rates[:-1] or rates, direct  # the last was cut short
    finally:
        os.close(descriptor)


def _read(descriptor: int, end: int, deadline: float, *, start: int = 0, block: int = _BLOCK) -> int:
    """Bytes of one pass from `start` to `end`, by several readers: one alone leaves an NVMe disk idle."""

    def read_share(reader: int) -> int:
        got, offset = 0, start + reader * block
        with mmap.mmap(-1, block) as buffer:  # page-aligned, as direct reading demands
            while offset + block <= end and time.perf_counter() < deadline:
                got += os.preadv(descriptor, [buffer], offset)
                offset += _READERS * block
        return got

    with ThreadPoolExecutor(_READERS) as readers:
        return sum(readers.map(read_share, range(_READERS)))


def _open_direct(path: Path) -> tuple[int, bool]:
    """A descriptor that bypasses the page cache where the file system allows it, else with a dropped one."""
    if hasattr(os, "O_DIRECT"):
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_DIRECT), True
    descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor, False
