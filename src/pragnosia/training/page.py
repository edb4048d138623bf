"""The page of a run: report.html, one file that needs nothing else, from the run's log alone.

Loss with every structural event on it, rate and gradient, who worked layer by layer over the whole run, size over time,
and the events with their reasons. Pictures are SVG in the page; nothing is loaded, no script runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pragnosia.measure.pictures import COOL, INK, LEAF, SOFT, WARM, style
from pragnosia.training.checkpoint import write_whole
from pragnosia.training.curves import draw_loss, draw_rate, series
from pragnosia.training.events import Event, balance, events_of
from pragnosia.training.log import Record
from pragnosia.units import format_count, format_duration

PAGE = "report.html"
_MOST_ROWS = 400
"""Lines of a log drawn in a heat map: more than a screen has pixels for."""
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "pragnosia", "font.family": "sans-serif"}
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22223b; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.figures { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: 1rem 0; }
.figures div { min-width: 7rem; } .figures b { display: block; font-size: 1.15rem; font-weight: 600; }
.figures span, caption, .soft { color: #6b6375; font-size: .85rem; }
figure { margin: 0 0 1rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #eceaf0; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: #f6f5f8; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


def write_page(records: Sequence[Record], path: Path, title: str, facts: Mapping[str, Any], settings: str) -> None:
    """Write the page of a run, whole or not at all; `facts` are report.json's, `settings` the run's YAML."""
    write_whole(path, page(records, title, facts, settings))


def page(records: Sequence[Record], title: str, facts: Mapping[str, Any], settings: str) -> str:
    """The page as text."""
    events = events_of(records)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _figures(records, facts, events),
        _picture("Loss and structural events", (10, 4), lambda axes: _loss(axes, records, events)),
        _picture("Learning rate and gradient", (10, 2.6), lambda axes: draw_rate(axes, records)),
        *_sizes(records, events),
        *_utilisation(records),
        _happened(events),
        f"<details><summary>The run's configuration</summary><pre>{escape(settings)}</pre></details>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _figures(records: Sequence[Record], facts: Mapping[str, Any], events: Sequence[Event]) -> str:
    births, deaths = balance(events)
    told = [
        ("bits per byte", f"{facts['bits_per_byte']:.4f}"),
        ("steps", str(facts["steps"])),
        ("tokens", format_count(facts["tokens"])),
        ("tokens/s", format_count(facts["tokens_per_second"])),
        ("learning took", format_duration(facts["seconds"])),
        ("structural events", str(sum(event.what != "refused" for event in events))),
        ("births, deaths of units", f"{births}, {deaths}"),
    ]
    sizes = [record["parameters"] for record in records if "parameters" in record]
    if sizes:
        told.insert(1, ("parameters", " → ".join(format_count(size) for size in dict.fromkeys((sizes[0], sizes[-1])))))
    return (
        '<div class="figures">' + "".join(f"<div><b>{b}</b><span>{escape(a)}</span></div>" for a, b in told) + "</div>"
    )


def _picture(title: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """A figure with one axes, as SVG within the page."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure.subplots())
        return _framed(title, figure)


def _framed(title: str, figure: Figure) -> str:
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return f'<h2>{escape(title)}</h2>\n<figure role="img" aria-label="{escape(title)}">{drawing}</figure>'


def _tokens_at(records: Sequence[Record], step: int) -> float:
    """Where on the axis of tokens a step is: of the first line at or after it."""
    return float(next((record["tokens"] for record in records if record["step"] >= step), records[-1]["tokens"]))


def _loss(axes: Axes, records: Sequence[Record], events: Sequence[Event]) -> None:
    draw_loss(axes, records)
    for number, event in enumerate(events, start=1):
        at = _tokens_at(records, event.step)
        axes.axvline(at, color=WARM, linewidth=0.9, linestyle=(0, (3, 3)), alpha=0.8)
        axes.annotate(
            str(number), (at, 1), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points", color=WARM,
            fontsize=9,
        )  # fmt: skip


def _sizes(records: Sequence[Record], events: Sequence[Event]) -> list[str]:
    """Parameters over time, where they changed."""
    if not any(event.parameters[0] != event.parameters[1] for event in events):
        return []

    def draw(axes: Axes) -> None:
        style(axes, "Size", "tokens", "parameters")
        for key, colour, label in (("parameters", COOL, "in all"), ("active_parameters", LEAF, "awake for a token")):
            x, y = series(records, key)
            axes.plot(x, y, color=colour, drawstyle="steps-post", linewidth=1.6, label=label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
        axes.legend(frameon=False, fontsize=9)

    return [_picture("Parameters", (10, 2.6), draw)]


def _utilisation(records: Sequence[Record]) -> list[str]:
    """A heat map per layer: the run from left to right, units from the first at the top to the last."""
    held = [record for record in records if record.get("utilisation")]
    if not held:
        return []
    held = held[:: -(-len(held) // _MOST_ROWS)]
    names = list(dict.fromkeys(part["name"] for record in held for part in record["utilisation"]))
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(10, 0.5 + 1.15 * len(names)), layout="constrained", facecolor="white")
        rows = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
        image: Any = None
        for axes, name in zip(rows, names, strict=True):
            columns = [_loads(record, name) for record in held]
            tall = max(map(len, columns))
            table = [[column[row] if row < len(column) else float("nan") for column in columns] for row in range(tall)]
            edge = (held[0]["tokens"], max(held[-1]["tokens"], held[0]["tokens"] + 1))
            image = axes.imshow(
                table, aspect="auto", cmap="magma", vmin=0, vmax=2, interpolation="nearest",
                extent=(*edge, tall, 0),
            )  # fmt: skip
            axes.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=9)
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.tick_params(colors=SOFT, labelsize=8.5)
        rows[-1].xaxis.set_major_formatter(lambda value, _: format_count(value))
        rows[-1].set_xlabel("tokens", color=SOFT, fontsize=9)
        bar = figure.colorbar(image, ax=list(rows), shrink=min(1.0, 2 / len(names)), pad=0.01)
        bar.set_label("work against an even share", color=SOFT, fontsize=8.5)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=SOFT, labelsize=8.5)
        drawn = _framed("Who works: each layer's units over the run", figure)
    return [drawn, _layers(held[-1])]


def _loads(record: Record, name: str) -> list[float]:
    return next((part["load"] for part in record["utilisation"] if part["name"] == name), [])


def _layers(record: Record) -> str:
    """Who works at the end."""
    rows = "".join(
        f'<tr><td>{escape(part["name"])}</td><td class="n">{part["units"]}</td><td class="n">{part["asleep"]}</td>'
        f'<td class="n">{part["busiest"]:.2f}</td></tr>'
        for part in record["utilisation"]
    )
    head = '<th>layer</th><th class="n">units</th><th class="n">asleep</th><th class="n">busiest, of an even share</th>'
    return f"<table><caption>In step {record['step']}</caption><tr>{head}</tr>{rows}</table>"


def _happened(events: Sequence[Event]) -> str:
    """The events, numbered as on the curve."""
    if not events:
        return '<h2>Structural events</h2><p class="soft">None: the model kept its structure.</p>'
    rows = "".join(
        f'<tr><td class="n">{number}</td><td class="n">{event.step}</td><td>{escape(event.what)}</td>'
        f"<td>{escape(event.detail)}</td><td>{escape(event.reason)}</td>"
        f'<td class="n">{" → ".join(format_count(size) for size in dict.fromkeys(event.parameters))}</td>'
        f'<td class="n">{"" if event.jump is None else f"{100 * event.jump:+.3f} %"}</td></tr>'
        for number, event in enumerate(events, start=1)
    )
    head = '<th class="n">no.</th><th class="n">step</th><th>what</th><th>now</th><th>why</th>'
    head += '<th class="n">parameters</th><th class="n">jump of the loss</th>'
    return f"<h2>Structural events</h2><table><tr>{head}</tr>{rows}</table>"
