"""The machine as found: processor, memory, accelerators, libraries. Facts only; speeds are in bandwidth.py.

`survey()` looks (and measures, if asked); `machine_record()` is the short form every benchmark writes
beside its numbers, so that a figure can be traced to the machine and the commit it came from.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from pragnosia.measure.bandwidth import Speeds, measure_speeds
from pragnosia.measure.limits import Limits, read_limits

LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate", "peft", "datasets",
    "lm_eval", "triton", "bitsandbytes", "nvidia-ml-py", "torchvision", "torchaudio",
)  # fmt: skip

# The instruction sets that decide how fast a matrix product is, and what the kernel calls them.
INSTRUCTIONS = {
    "avx2": ("avx2",), "fma": ("fma",), "f16c": ("f16c",),
    "avx512f": ("avx512f",), "avx512_bf16": ("avx512_bf16",), "avx512_fp16": ("avx512_fp16",),
    "avx512_vnni": ("avx512_vnni",), "avx_vnni": ("avx_vnni",),
    "amx_bf16": ("amx_bf16",), "amx_int8": ("amx_int8",),
    "neon": ("neon", "asimd"), "arm_bf16": ("bf16",), "arm_dotprod": ("asimddp",), "arm_i8mm": ("i8mm",),
    "sve": ("sve",),
}  # fmt: skip

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The CPU: `physical` and `logical` cores of the machine, the instruction sets that matter here."""

    model: str
    physical: int
    logical: int
    instructions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU as torch sees it."""

    name: str
    memory_total: int
    memory_available: int
    capability: str
    driver: str | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything `doctor` knows; `speeds` is None until measured."""

    processor: Processor
    limits: Limits
    accelerators: tuple[Accelerator, ...]
    platform: str
    python: str
    libraries: dict[str, str]
    num_threads: int
    environment: dict[str, str] = field(default_factory=dict)
    native_kernel: str | None = None
    speeds: Speeds | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def survey(folder: Path | None = None, *, measure: bool = True) -> Machine:
    """Look at this machine; with `measure`, also time memory, arithmetic and the disk that holds `folder`."""
    return Machine(
        processor=find_processor(),
        limits=read_limits(),
        accelerators=find_accelerators(),
        platform=platform.platform(),
        python=platform.python_version(),
        libraries=library_versions(),
        num_threads=torch.get_num_threads(),
        environment={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        native_kernel=native_kernel(),
        speeds=measure_speeds(folder) if measure else None,
    )


def find_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Model and instruction sets, from /proc/cpuinfo; where there is none, what torch says of them."""
    try:
        model, flags = _read_cpuinfo(cpuinfo.read_text())
    except OSError:
        model, flags = "", _flags_by_torch()
    found = tuple(name for name, flag in INSTRUCTIONS.items() if flags.intersection(flag))
    logical = psutil.cpu_count(logical=True) or 1
    return Processor(
        model=model or platform.processor() or platform.machine(),
        physical=psutil.cpu_count(logical=False) or logical,
        logical=logical,
        instructions=found,
    )


def _read_cpuinfo(text: str) -> tuple[str, set[str]]:
    """x86 writes `model name` and `flags`, Arm `Features` and often no model."""
    model, flags = "", set[str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and not model:
            model = value.strip()
        elif key.strip() in ("flags", "Features") and not flags:
            flags = set(value.split())
    return model, flags


def _flags_by_torch() -> set[str]:
    """The vector width torch's kernels were chosen for, and Arm's own by the machine's name."""
    widths = {"AVX2": {"avx2", "fma"}, "AVX512": {"avx2", "fma", "avx512f"}}
    flags = set(widths.get(torch.backends.cpu.get_cpu_capability(), ()))
    return flags | {"neon"} if platform.machine() in ("arm64", "aarch64") else flags


def find_accelerators() -> tuple[Accelerator, ...]:
    """CUDA devices torch can use; the driver version comes from NVML where it answers."""
    if not torch.cuda.is_available():
        return ()
    driver = _driver_version()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            Accelerator(
                name=properties.name,
                memory_total=total,
                memory_available=free,
                capability=f"{properties.major}.{properties.minor}",
                driver=driver,
            )
        )
    return tuple(found)


def _driver_version() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def library_versions() -> dict[str, str]:
    """Versions of what is installed, from the packages' metadata: nothing is imported."""
    return {name: version for name in LIBRARIES if (version := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def native_kernel() -> str | None:
    """What the native CPU kernel says of itself; None where this build has no such kernel."""
    from pragnosia import kernels

    status = getattr(kernels, "native_status", None)
    return None if status is None else str(status())


def machine_record() -> dict[str, Any]:
    """Where and when a number was measured: commit, versions, processor, cores, memory, GPUs, date."""
    processor, limits = find_processor(), read_limits()
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": processor.model,
        "cores": limits.cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": limits.memory_total,
        "gpus": [gpu.name for gpu in find_accelerators()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": library_versions(),
    }


def commit(source: Path = Path(__file__)) -> str | None:
    """The commit `source` belongs to, with `+` where files differ from it; None outside a checkout.

    A file git does not track (an install into a virtual environment that lies inside somebody's checkout)
    belongs to no commit.
    """
    try:
        _git(source, "ls-files", "--error-unmatch", source.name)
        head = _git(source, "rev-parse", "HEAD")
        changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(source: Path, *arguments: str) -> str:
    command = ["git", "-C", str(source.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
