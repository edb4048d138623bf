"""Worker: llama.cpp on the same tokens. usage: peer_llama.py GGUF THREADS PROMPT NEW; LLAMA_LIB names libllama.so.

Its C interface is called directly, so nothing of it has to be installed in Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path

from _tokens import tokens

started = time.perf_counter()
POINTER, WHOLE, FLAG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool


def main(path: str, threads: int, prompt: int, new: int) -> None:
    """Through llama-cpp-python's declarations where they are importable (PYTHONPATH), which know the structures."""
    os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(Path(os.environ["LLAMA_LIB"]).parent))
    import llama_cpp

    model = llama_cpp.Llama(
        path,
        n_ctx=prompt + new + 8,
        n_batch=512,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    loaded = time.perf_counter() - started
    given = tokens(prompt + new)
    begun = time.perf_counter()
    model.eval(given[:prompt])
    first = time.perf_counter() - begun
    seconds, read = [], _read()
    until = time.perf_counter() + float(os.environ.get("MOST_SECONDS", "60"))
    for number, token in enumerate(given[prompt:]):
        if number == new // 3:
            read = _read()
        begun = time.perf_counter()
        model.eval([token])
        seconds.append(time.perf_counter() - begun)
        if time.perf_counter() > until:
            break
    steady = seconds[len(seconds) // 3 :]
    result = {
        "tokens_per_second": len(steady) / sum(steady),
        "bytes_read_per_token": (_read() - read) / max(len(steady), 1),
        "seconds_to_load": loaded,
        "seconds_to_first_token": first,
        "tokens": len(seconds),
    }
    print(json.dumps(result))


def _read() -> int:
    """Bytes this process fetched from disk."""
    with Path("/proc/self/io").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
