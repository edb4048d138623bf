"""The packed products, built for other processors than this one."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pragnosia.kernels import compiled

DOOR = """
#include "packed.hpp"
extern "C" void product(int64_t format, const void* x, const void* rows, int64_t row_bytes, int64_t count, int64_t outs,
                        int64_t depth, void* y) {
    packed_linear(Format(format), x, false, rows, row_bytes, nullptr, count, outs, depth, 1, y);
}
"""


def product_for(processor: str, folder: Path) -> Any:
    """`product(format, x, rows, row_bytes, count, outs, depth, y)`; skips where the compiler knows no such name."""
    (folder / "door.cpp").write_text(DOOR)
    compiler = shutil.which("c++") or "g++"
    flags = [flag for flag in compiled.FLAGS if not flag.startswith("-march")]
    command = [compiler, *flags, f"-march={processor}", "-shared", f"-I{compiled.SOURCE}", str(folder / "door.cpp")]
    built = subprocess.run([*command, "-o", str(folder / "door.so")], capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"{compiler} knows no -march={processor}")
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    product = ctypes.CDLL(str(folder / "door.so")).product
    product.argtypes = [whole, pointer, pointer, whole, whole, whole, whole, pointer]
    return product
