"""What will be slow on this machine and why, in plain sentences; and which presets it can hold.

Each check looks at a Machine and says what it finds; a new check is one function and one line in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pragnosia.measure.accounting import Account, account
from pragnosia.measure.bandwidth import DeviceSpeed
from pragnosia.measure.machine import Machine
from pragnosia.measure.memory import memory_needs
from pragnosia.model.presets import PRESETS, preset
from pragnosia.units import format_bytes

_FEW_CORES = 4
# What pyproject.toml asks for; below these the tested code paths are missing.
_OLDEST = {"torch": (2, 11), "transformers": (5, 17)}
_TOO_NEW = {"transformers": (6, 0)}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One finding: `slow` costs time, `broken` will fail, `note` is good to know."""

    level: Literal["broken", "slow", "note"]
    topic: str
    text: str


def diagnose(machine: Machine) -> list[Advice]:
    """Everything worth saying, what is broken first."""
    order = ("broken", "slow", "note")
    found = [advice for check in CHECKS for advice in check(machine)]
    return sorted(found, key=lambda advice: order.index(advice.level))


def _libraries(machine: Machine) -> Iterator[Advice]:
    versions = machine.libraries
    for name in ("torchvision", "torchaudio"):
        if name in versions and "+cpu" in versions.get("torch", "") and "+cpu" not in versions[name]:
            yield Advice(
                level="broken",
                topic="libraries",
                text=f"{name} {versions[name]} is built for CUDA and stands beside a CPU torch, which breaks "
                f"`import transformers`; nothing here needs it: pip uninstall {name}",
            )
    for name, oldest in _OLDEST.items():
        found = _release(versions.get(name, ""))
        if not found:
            yield Advice(level="broken", topic="libraries", text=f"{name} is not installed")
        elif found < oldest or found >= _TOO_NEW.get(name, (10**6,)):
            wanted = f"at least {'.'.join(map(str, oldest))}"
            if name in _TOO_NEW:
                wanted += f" and below {_TOO_NEW[name][0]}"
            text = f"{name} is {versions[name]}, tested is {wanted}"
            yield Advice(level="broken", topic="libraries", text=text)
    if machine.accelerators and "triton" not in versions:
        text = "there is a GPU and no triton: units run one after the other; pip install triton"
        yield Advice(level="slow", topic="libraries", text=text)


def _release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13)."""
    parts = version.partition("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _cores(machine: Machine) -> Iterator[Advice]:
    cores, threads = machine.limits.cores, machine.num_threads
    if machine.limits.limited_by:
        text = f"this process may use {cores:.3g} of {machine.processor.logical} cores and "
        text += f"{format_bytes(machine.limits.memory_total)} of memory: {', '.join(machine.limits.limited_by)}"
        yield Advice(level="note", topic="cores", text=text)
    if threads > max(1, cores):
        text = f"torch runs {threads} threads on {cores:.3g} cores, which wait for each other; "
        yield Advice(level="slow", topic="cores", text=text + f"set OMP_NUM_THREADS={max(1, int(cores))}")
    wanted = min(int(cores), machine.processor.physical)
    if threads < wanted and machine.environment:
        names = ", ".join(f"{name}={value}" for name, value in machine.environment.items())
        text = f"{names} leaves {wanted - threads} of {wanted} cores idle; unset it, or set it to {wanted}"
        yield Advice(level="slow", topic="cores", text=text)
    if cores < _FEW_CORES and not machine.accelerators:
        text = f"{cores:.3g} cores and no GPU: fine for `nano` and for speaking; larger models train slowly"
        yield Advice(level="slow", topic="cores", text=text)


def _precision(machine: Machine) -> Iterator[Advice]:
    names = machine.processor.instructions
    has_bf16 = any(name in names for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    cpu = _speed(machine, "cpu")
    ratio = None
    if cpu is not None:
        ratio = cpu.operations_per_second["bfloat16"] / cpu.operations_per_second["float32"]
    if not has_bf16:
        text = "the processor has no bf16 instructions: train in fp32; bf16 still halves the memory of weights"
        yield Advice(level="slow", topic="precision", text=text)
    elif ratio is not None:
        verb = "train in bf16" if ratio > 1 else "train in fp32"
        text = f"bf16 matrix products run at {ratio:.2g} times the speed of fp32 on this processor: {verb}"
        yield Advice(level="note", topic="precision", text=text)
    for gpu in machine.accelerators:
        if float(gpu.capability) < 8:
            text = f"{gpu.name} (compute capability {gpu.capability}) has no bf16: use float16 or float32"
            yield Advice(level="slow", topic="precision", text=text)


def _kernel(machine: Machine) -> Iterator[Advice]:
    if machine.native_kernel is not None:
        yield Advice(level="note", topic="kernel", text=f"native CPU kernel: {machine.native_kernel}")


def _presets(machine: Machine) -> Iterator[Advice]:
    """What fits, and how fast memory and disk let it speak at most."""
    free = max([machine.limits.memory_available, *(gpu.memory_available for gpu in machine.accelerators)])
    accounts = {name: _account_of(name) for name in PRESETS}
    needs = {name: memory_needs(one) for name, one in accounts.items()}
    ways = {
        "run": "run in bf16",
        "tune": "tune (LoRA on frozen bf16)",
        "train": "train (fp32 weights, AdamW, one sequence at a time)",
    }
    for way, meaning in ways.items():
        names = [name for name in PRESETS if needs[name][way].total <= free]
        text = f"{format_bytes(free)} free is enough to {meaning}: {', '.join(names) or 'no preset'}"
        yield Advice(level="note", topic="memory", text=text)
    held = {name for name in PRESETS if needs[name]["run"].total <= free}
    yield from _ceilings(machine, accounts, held)


@cache
def _account_of(name: str) -> Account:
    return account(preset(name))


def _ceilings(machine: Machine, accounts: dict[str, Account], held: set[str]) -> Iterator[Advice]:
    """Tokens per second no program can exceed, since every awake weight has to be read."""
    if machine.speeds is None:
        return
    fastest = max(machine.speeds.devices, key=lambda device: device.memory_bytes_per_second)
    speed = fastest.memory_bytes_per_second
    rates = ", ".join(f"{name} {_rate(speed, accounts[name])}" for name in accounts if name in held)
    text = f"{fastest.device} reads memory at {format_bytes(speed)}/s: tokens/s at most, batch 1: {rates}"
    yield Advice(level="note", topic="bandwidth", text=text)
    disk = machine.speeds.disk
    streamed = [name for name in accounts if name not in held]
    if disk is None or not streamed:
        return
    speed = disk.read_bytes_per_second
    rates = ", ".join(f"{name} {_rate(speed, accounts[name])}" for name in streamed)
    text = f"{disk.folder} reads at {format_bytes(speed)}/s: tokens/s at most where units stream from it: {rates}"
    if not disk.direct:
        text += " (through the page cache: the disk itself may be slower)"
    yield Advice(level="slow", topic="disk", text=text)


def _rate(bytes_per_second: float, one: Account) -> str:
    rate = bytes_per_second / one.bytes_per_token
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _speed(machine: Machine, device: str) -> DeviceSpeed | None:
    devices = () if machine.speeds is None else machine.speeds.devices
    return next((speed for speed in devices if speed.device == device), None)


CHECKS: tuple[Callable[[Machine], Iterator[Advice]], ...] = (
    _libraries,
    _cores,
    _precision,
    _kernel,
    _presets,
)
