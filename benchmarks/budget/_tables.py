"""The tables of docs/budget.md, made of the JSON that lies beside the benchmarks.

usage: python benchmarks/budget/_tables.py; growth.py, locality.py and forecast.py do it, too

Whatever stands between `<!-- NAME -->` and `<!-- end of NAME -->` is written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "budget.md"
Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def growth(values: dict[str, Any]) -> Table:
    """Tokens/s as a checkpoint grows past its cap."""
    header = ["GB", "times the cap", "of the units cached", "ours, tokens/s", "llama.cpp, tokens/s", "ratio"]
    rows = []
    for times, found in values["sizes"].items():
        mine, peer = (_middle(found[engine], "tokens_per_second") for engine in ("ours", "llama.cpp"))
        slots = _middle(found["ours"], "slots")
        reads = (_told(_middle(found[engine], "bytes_read_per_token"), 1e6, 0) for engine in ("ours", "llama.cpp"))
        rows.append(
            [
                f"{found['bytes'] / 1e9:.2f}",
                f"{float(times):g}x",
                "-" if slots is None else f"{slots / found['units']:.0%}",
                _told(mine),
                _told(peer),
                f"{mine / peer:.1f}x" if mine and peer else "-",
                " / ".join(reads),
                _told(_middle(found["ours"], "hit_rate")),
            ]
        )
    return [*header, "MB read per token, ours / llama.cpp", "hits"], rows


def locality(values: dict[str, Any]) -> Table:
    """The share of woken units that are here, by routing and by the share of units that have a slot."""
    header = ["routing", "units cached", "ours", "longest unused goes", "least used goes", "best there can be"]
    rows = [
        [kind, f"{float(share):.0%}", *(f"{at[name]:.3f}" for name in ("ours", "lru", "lfu", "best")),
         f"{found['in_the_model'][share]:.3f}" if share in found["in_the_model"] else ""]
        for kind, found in values["kinds"].items() for share, at in found["shares"].items()
    ]  # fmt: skip
    return [*header, "ours, in the model"], rows


def forecast(values: dict[str, Any]) -> Table:
    """Foretold beside measured: the middle round, and the single ones."""
    header = ["case", "foretold tokens/s", "measured", "foretold / measured, middle round", "each round"]
    rows = []
    for name, runs in values["cases"].items():
        ratios = [one["ratio"] for one in runs]
        told, came = (median([one[key] for one in runs]) for key in ("foretold", "measured"))
        hits = "/".join(f"{median([one[key] for one in runs]):.2f}" for key in ("hits_foretold", "hits_measured"))
        around = [one["ratio_around"] for one in runs if "ratio_around" in one]
        rows.append(
            [
                name,
                f"{told:.2f}",
                f"{came:.2f}",
                f"{median(ratios):.2f}",
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{median(around):.2f}" if around else "-",
                hits,
            ]
        )
    return [*header, "the same with the rates before and after", "hits, foretold/measured"], rows


Tables = dict[str, Callable[[dict[str, Any]], Table]]
"""By the name of the JSON that each is made of."""
TABLES: Tables = {"growth": growth, "locality": locality, "forecast": forecast}


def written(page: str, tables: Tables = TABLES) -> str:
    """The page with its tables as the JSON has them."""
    for name, made in tables.items():
        header, rows = made(json.loads((HERE / f"{name}.json").read_text("utf-8")))
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
        table = "\n".join([f"<!-- {name} -->", *lines, f"<!-- end of {name} -->"])
        page = re.sub(rf"<!-- {name} -->.*?<!-- end of {name} -->", lambda _, table=table: table, page, flags=re.DOTALL)
    return page


def write_page() -> None:
    """Write the page anew."""
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
    print(f"written: {PAGE.name}")


def _middle(runs: list[dict[str, Any]], key: str) -> float | None:
    values = [one[key] for one in runs if key in one]
    return median(values) if values else None


def _told(value: float | None, scale: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{value / scale:.{digits}f}"


if __name__ == "__main__":
    write_page()
