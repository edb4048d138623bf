"""The C++ of this room, built once for this machine with its own compiler and kept in the user's cache.

The library is found by a hash of its source, the compiler, its flags and the processor, so that a changed file or a
shared home directory builds anew. OpenMP stays unlinked: the symbols come from the runtime torch has already loaded,
and so there is one pool of threads, not two. Without a compiler, or with PRAGNOSIA_NATIVE=0, there is no library
and every kernel takes its torch path.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401  (loads the OpenMP runtime that the library's symbols resolve to)

SOURCE = Path(__file__).parent / "source"
FLAGS = (
    *("-std=c++17", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"),
    *("-march=native", "-fPIC", "-fopenmp"),
    # nothing of -ffast-math that would change a NaN; only leave to turn loops into vector code
    *("-fno-math-errno", "-fno-trapping-math", "-fno-thread-jumps", "-w"),
)
BUILD_SECONDS = 300


def native_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none; builds them on the first call."""
    return _load()[0]


def loaded_library() -> ctypes.CDLL:
    """The compiled kernels, known to be there."""
    library = native_library()
    assert library is not None
    return library


def native_status() -> str:
    """One line on the compiled kernels for a person: in use, or why not."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("PRAGNOSIA_NATIVE", "1") == "0":
        return None, "off (PRAGNOSIA_NATIVE=0)"
    compiler = _compiler()
    if compiler is None:
        return None, "off (no C++ compiler; install g++ or set CXX)"
    try:
        path = _build(compiler)
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return None, f"off ({compiler[0]}: {reason.strip().splitlines()[0] if reason.strip() else 'failed'})"
    _declare(library)
    tiles = "bfloat16 tiles" if library.pragnosia_tiles() else "no bfloat16 tiles"
    return library, f"on ({tiles}, {path})"


def _declare(library: ctypes.CDLL) -> None:
    """Argument types (source/native.cpp); a bank's call is one packed struct."""
    pointer, integer, whole = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.pragnosia_bank_few.argtypes = [ctypes.c_char_p]
    library.pragnosia_bank_forward.argtypes = library.pragnosia_bank_backward.argtypes = [ctypes.c_char_p, integer]
    library.pragnosia_linear_few.argtypes = [
        *(pointer, integer, pointer, pointer, integer),
        *(whole, whole, whole, whole, pointer),
    ]
    library.pragnosia_awake_linear.argtypes = [
        *(pointer, integer, pointer, pointer, integer),
        *(whole, whole, whole, pointer),
    ]
    library.pragnosia_route.argtypes = [pointer, pointer, pointer, whole, whole, pointer, pointer]
    library.pragnosia_route_back.argtypes = [*[pointer] * 6, whole, whole, whole, *[pointer] * 3]
    library.pragnosia_recall.argtypes = [pointer] * 4
    library.pragnosia_recall_back.argtypes, library.pragnosia_recall_back.restype = [pointer] * 9, None
    library.pragnosia_read_rows.argtypes, library.pragnosia_read_rows.restype = [pointer] * 2, None
    library.pragnosia_read_packed_rows.argtypes = [pointer, whole, whole, pointer]
    library.pragnosia_group_slots.argtypes = [pointer, whole, whole, *[pointer] * 4]
    library.pragnosia_group_slots.restype = whole
    library.pragnosia_rows_back.argtypes = [*[pointer] * 4, whole, pointer, pointer]
    library.pragnosia_rows_back.restype = None
    library.pragnosia_step_rows.argtypes, library.pragnosia_step_rows.restype = [*[pointer] * 5, whole], None
    library.pragnosia_norm.argtypes = [pointer, ctypes.c_float, pointer, integer, pointer]
    library.pragnosia_norm_back.argtypes = [pointer, pointer, pointer, integer, pointer, pointer]
    library.pragnosia_pool_new.argtypes = [*[whole] * 5, ctypes.c_double]
    library.pragnosia_pool_new.restype = pointer
    library.pragnosia_pool_delete.argtypes = [pointer]
    library.pragnosia_pool_open.argtypes, library.pragnosia_pool_open.restype = [pointer, ctypes.c_char_p], whole
    library.pragnosia_pool_place.argtypes = [pointer, whole, whole, pointer, whole, pointer, whole]
    library.pragnosia_pool_hold.argtypes, library.pragnosia_pool_hold.restype = [pointer, whole, whole], pointer
    library.pragnosia_pool_report.argtypes = [pointer, pointer]
    library.pragnosia_pool_close.argtypes = [pointer, whole]
    for name in ("request", "wait", "release", "ready", "forget"):
        getattr(library, f"pragnosia_pool_{name}").argtypes = [pointer, whole, whole]
    library.pragnosia_pool_wait.restype = pointer
    library.pragnosia_pool_first_slot.argtypes, library.pragnosia_pool_first_slot.restype = [pointer], pointer
    library.pragnosia_pool_tick.argtypes = [pointer, whole]
    library.pragnosia_step.argtypes, library.pragnosia_step.restype = [pointer, whole, whole], whole
    library.pragnosia_span.argtypes, library.pragnosia_span.restype = [pointer], whole
    library.pragnosia_far_new.argtypes = [ctypes.c_char_p, *[whole] * 4, pointer]
    library.pragnosia_far_new.restype = pointer
    library.pragnosia_far_delete.argtypes, library.pragnosia_far_delete.restype = [pointer], None
    library.pragnosia_far_gather.argtypes = [pointer, pointer, whole, pointer]
    library.pragnosia_far_report.argtypes, library.pragnosia_far_report.restype = [pointer] * 2, None
    library.pragnosia_spikes.argtypes, library.pragnosia_spikes.restype = [pointer], whole
    library.pragnosia_gaussians.argtypes, library.pragnosia_gaussians.restype = [*[whole] * 5, pointer], None
    library.pragnosia_loss_rows.argtypes = [
        *(pointer, integer, whole, whole, pointer, whole, ctypes.c_float, integer, whole, pointer),
    ]
    library.pragnosia_coincidence.argtypes = [*[pointer] * 2, whole, integer, pointer, pointer, whole]
    library.pragnosia_coincidence.restype = None
    library.pragnosia_packed_linear.argtypes = [
        *(whole, pointer, integer, pointer, whole, pointer),
        *(whole, whole, whole, whole, pointer),
    ]
    library.pragnosia_pack.argtypes = [
        *(whole, pointer, integer, whole, whole, pointer),
        *(pointer, whole, whole, ctypes.c_float, whole, pointer, whole),
    ]
    library.pragnosia_unpack.argtypes = [whole, pointer, whole, whole, whole, whole, pointer, integer]
    library.pragnosia_unpack.restype = None


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return None


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _cache_directory() -> Path:
    """The user's cache, or a directory of this process alone where that cannot be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "pragnosia" / "kernels"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="pragnosia-"))
    return directory if os.access(directory, os.W_OK) else Path(tempfile.mkdtemp(prefix="pragnosia-"))


def _build(compiler: list[str]) -> Path:
    digest = hashlib.sha256()
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, check=True, timeout=BUILD_SECONDS
    )
    digest.update("\0".join((*compiler, version.stdout, *FLAGS, _processor())).encode())
    directory = _cache_directory()
    target = directory / f"kernels-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    # whoever finishes first, or last, puts the same whole file in place
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as scratch:
        compiled, linked = Path(scratch) / "native.o", Path(scratch) / "native.so"
        _run([*compiler, *FLAGS, "-c", str(SOURCE / "native.cpp"), "-o", str(compiled)])
        _run([*compiler, "-shared", str(compiled), "-o", str(linked)])
        linked.replace(target)
    return target


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS).stdout
