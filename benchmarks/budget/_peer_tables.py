"""The tables of docs/PEERS.md, made of the JSON that lies beside the benchmarks.

usage: python benchmarks/budget/_peer_tables.py; decode.py and peers.py do it, too
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _tables
from _tables import HERE, Table, Tables

PAGE = HERE.parents[1] / "docs" / "PEERS.md"
_FIRST = "512 tokens"  # a case that is about the prompt


def decode(values: dict[str, Any]) -> Table:
    """Ours beside llama.cpp, each alone under the same cap."""
    header = ["case", "ours, tokens/s", "llama.cpp", "ratio (rounds)", "MB read per token, ours / llama.cpp"]
    rows = []
    for case, found in values["cases"].items():
        if "llama.cpp" not in found:
            continue
        pairs = list(zip(*(_each(found[engine], _speed(case)) for engine in ("ours", "llama.cpp")), strict=False))
        ratios = [theirs / ours if case.endswith(_FIRST) else ours / theirs for ours, theirs in pairs]
        rows.append(
            [
                case,
                *(f"{median(_each(found[engine], 'tokens_per_second')):.2f}" for engine in ("ours", "llama.cpp")),
                f"{_ratio(ratios)}{', to the first token' if case.endswith(_FIRST) else ''}",
                _both(found, "bytes_read_per_token", 1e6, 0),
                _both(found, "seconds_to_first_token", 1, 1),
                _both(found, "peak_bytes", 1 << 20, 0),
            ]
        )
    return [*header, "first token, s", "peak, MiB"], rows


def peers(values: dict[str, Any]) -> Table:
    """Ours beside Python's ways."""
    header = ["peer", "ours, tokens/s", "peer", "ratio (rounds)", "MB read per token, ours / peer", "ready after, s"]
    rows = []
    for name, found in values["cases"].items():
        versions = found["peer"][0]["versions"]
        engines = {"ours": found["ours"], "llama.cpp": found["peer"]}
        speeds = [_each(found[engine], "tokens_per_second") for engine in ("ours", "peer")]
        rows.append(
            [
                f"{name} {versions[name]}, transformers {versions['transformers']}",
                *(f"{median(some):.2f}" for some in speeds),
                _ratio([ours / theirs for ours, theirs in zip(*speeds, strict=False)]),
                _both(engines, "bytes_read_per_token", 1e6, 0),
                _both(engines, "seconds_to_load", 1, 1),
                _both(engines, "peak_bytes", 1 << 20, 0),
            ]
        )
    return [*header, "peak, MiB"], rows


def kernels(values: dict[str, Any]) -> Table:
    """One token through one layer: our rows beside torch's own operators."""
    header = ["outputs x inputs, threads", "format", "ours, us", "torch, us", "torch / ours"]
    rows = [
        [shape, name, f"{found[name]['us']:.0f}", f"{found[f'torch {name}']['us']:.0f}",
         f"{found[f'torch {name}']['us'] / found[name]['us']:.2f}x"]
        for shape, found in values["speeds"].items() if "x" in shape
        for name in ("bf16", "int8", "int4") if f"torch {name}" in found
    ]  # fmt: skip
    return header, rows


TABLES: Tables = {"decode": decode, "peers": peers, "../packed_kernels": kernels}


def written(page: str) -> str:
    """The page with its tables as the JSON has them."""
    return _tables.written(page, TABLES)


def write_page() -> None:
    """Write the page anew."""
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
    print(f"written: {PAGE.name}")


def _speed(case: str) -> str:
    return "seconds_to_first_token" if case.endswith(_FIRST) else "tokens_per_second"


def _each(runs: list[dict[str, Any]], key: str) -> list[float]:
    return [one[key] for one in runs if key in one]


def _ratio(ratios: list[float]) -> str:
    return f"{median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f}; {len(ratios)})"


def _both(found: dict[str, Any], key: str, scale: float, digits: int) -> str:
    values = (_each(found[engine], key) for engine in ("ours", "llama.cpp"))
    return " / ".join(f"{median(some) / scale:.{digits}f}" if some else "-" for some in values)


if __name__ == "__main__":
    write_page()
