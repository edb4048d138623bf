"""Joules by a stated model, from operations and bytes. An estimate: no figure here has two good digits.

    E = N_op e_op + N_byte e_byte          e_op [pJ per operation], e_byte [pJ per byte to or from memory]

A multiply-accumulate is two operations, so e_op is half the sum of a multiplication and an addition. Two
kinds of model stand side by side:

circuit   Only the arithmetic circuits and the DRAM: a floor. Instruction fetch, caches, leakage, idle cores
          and cooling are left out; by the rated figures of [4] a busy CPU draws 66 times as much for an fp32
          operation and 8 times as much for a byte.
package   The rated power of one named product over its rated peak rates: what it draws while kept perfectly
          busy. Programs stay below the peak rates, so they draw more than this per operation.

[1] Horowitz 2014, doi:10.1109/ISSCC.2014.6757323: 45 nm, 0.9 V. Addition and multiplication in pJ: fp32 0.9,
    3.7; fp16 0.4, 1.1; int8 0.03, 0.2; int32 addition 0.1. DRAM 1.3 to 2.6 nJ per 64 bit; the lower end here.
[2] Jouppi et al. 2021, doi:10.1109/ISCA52012.2021.00010, table 2: the same at 7 nm. fp32 0.38, 1.31; fp16
    0.16, 0.34; bf16 0.11, 0.21; int8 0.007, 0.07; int32 addition 0.03. Products of 16 bits are summed in
    fp32, of 8 bits in int32.
[3] O'Connor et al. 2017, doi:10.1145/3123939.3124545: HBM2 3.92 pJ, GDDR5 14 pJ per bit.
[4] AMD EPYC 7763: 280 W; 64 cores, 2.45 GHz, 32 fp32 operations per cycle and core; 8 channels of DDR4-3200.
[5] NVIDIA H100 SXM: 700 W; 67 Top/s fp32, 989 Top/s bf16 and 1979 int8 (dense); 3.35 TB/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pragnosia.errors import ConfigError, unknown_name

_PICO = 1e-12
_DDR = 1300 / 8  # [1]
_EPYC_FP32 = 280 / (64 * 2.45e9 * 32) / _PICO  # [4]; 8 lanes x 2 units x (multiply, add)


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules, and where they come from: `model`, or a counter (`rapl`, `nvml`, `rapl+nvml`)."""

    joules: float
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class EnergyModel:
    """Picojoules per operation in each precision and per byte, with the source they stand in."""

    name: str
    pj_per_operation: Mapping[str, float]
    pj_per_byte: float
    scope: str
    source: str

    def estimate(self, operations: float, num_bytes: float, precision: str) -> Energy:
        """Joules for so many operations and bytes; `precision` is a torch dtype's name."""
        try:
            per_operation = self.pj_per_operation[precision]
        except KeyError:
            message = unknown_name("precision", precision, self.pj_per_operation)
            raise ConfigError(message) from None
        joules = (operations * per_operation + num_bytes * self.pj_per_byte) * _PICO
        return Energy(joules=joules, source="model", note=f"{self.name}: {self.scope} ({self.source})")


def _half_sum(addition: float, multiplication: float) -> float:
    return (addition + multiplication) / 2


_45NM = {
    "float32": _half_sum(0.9, 3.7),
    "float16": _half_sum(0.9, 1.1),
    # 45 nm has no bf16 in [1]; its multiplier is smaller than fp16's, so fp16 bounds it from above.
    "bfloat16": _half_sum(0.9, 1.1),
    "int8": _half_sum(0.1, 0.2),
}
_7NM = {
    "float32": _half_sum(0.38, 1.31),
    "float16": _half_sum(0.38, 0.34),
    "bfloat16": _half_sum(0.38, 0.21),
    "int8": _half_sum(0.03, 0.07),
}
_FLOOR = "arithmetic and DRAM only, a lower bound"
_PACKAGE = "rated power at rated peak rates"

MODELS = {
    model.name: model
    for model in (
        EnergyModel(name="circuit-45nm-ddr", pj_per_operation=_45NM, pj_per_byte=_DDR, scope=_FLOOR,
                    source="Horowitz 2014"),
        EnergyModel(name="circuit-7nm-ddr", pj_per_operation=_7NM, pj_per_byte=_DDR, scope=_FLOOR,
                    source="Jouppi et al. 2021, DRAM Horowitz 2014"),
        EnergyModel(name="circuit-7nm-hbm", pj_per_operation=_7NM, pj_per_byte=8 * 3.92, scope=_FLOOR,
                    source="Jouppi et al. 2021, HBM2 O'Connor et al. 2017"),
        EnergyModel(name="circuit-7nm-gddr", pj_per_operation=_7NM, pj_per_byte=8 * 14, scope=_FLOOR,
                    source="Jouppi et al. 2021, GDDR5 O'Connor et al. 2017"),
        # This CPU computes bf16 by widening to fp32.
        EnergyModel(name="package-cpu", scope=_PACKAGE, source="AMD EPYC 7763",
                    pj_per_operation=dict.fromkeys(("float32", "bfloat16", "float16"), _EPYC_FP32),
                    pj_per_byte=280 / 204.8e9 / _PICO),
        EnergyModel(name="package-gpu", scope=_PACKAGE, source="NVIDIA H100 SXM",
                    pj_per_operation={"float32": 700 / 67e12 / _PICO, "float16": 700 / 989e12 / _PICO,
                                      "bfloat16": 700 / 989e12 / _PICO, "int8": 700 / 1979e12 / _PICO},
                    pj_per_byte=700 / 3.35e12 / _PICO),
    )
}  # fmt: skip


def energy_model(name: str | None = None, *, device: str = "cpu", gpu_name: str = "") -> EnergyModel:
    """The model of that name; without one, the circuit model of the device's kind of memory.

    `gpu_name` defaults to the GPU torch uses. Raises ConfigError for a name there is not.
    """
    if name is None and device == "cpu":
        name = "circuit-7nm-ddr"
    elif name is None:
        if not gpu_name and torch.cuda.is_available():
            gpu_name = torch.cuda.get_device_name()
        name = f"circuit-7nm-{_memory_kind(gpu_name)}"
    if name not in MODELS:
        raise ConfigError(unknown_name("energy model", name, MODELS))
    return MODELS[name]


def _memory_kind(gpu_name: str) -> str:
    """Data-centre GPUs carry HBM, all others GDDR."""
    stacked = ("P100", "V100", "A100", "A800", "H100", "H200", "H800", "GH200", "B100", "B200", "MI")
    return "hbm" if any(word in gpu_name for word in stacked) else "gddr"
