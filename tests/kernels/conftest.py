"""What tests of Triton programs share: compiling them for a GPU that is not here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_BEFORE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

done = 0

def build(program, fixed, kinds, num_warps=4):
    global done
    names = program.arg_names
    signature = {name: "constexpr" if name in fixed else kinds.get(name, "i32") for name in names}
    source = ASTSource(program, signature, {(names.index(name),): value for name, value in fixed.items()})
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    done += bool(triton.compile(source, target=target, options={"num_warps": num_warps}).asm["cubin"])
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[str, int], int]:
    """Runs a script that calls `build(program, fixed, kinds)`: how many programs became machine code.

    In a process where the interpreter is off. `fixed` are the constants, `kinds` the types of what is no i32.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")

    def run(script: str, capability: int) -> int:
        here = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-W", "ignore", "-c", f"{_BEFORE}{script}\nprint(done)", str(capability)]
        done = subprocess.run(command, env={**os.environ, **here}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return int(done.stdout)

    return run
