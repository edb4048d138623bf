"""Wired brains in and out: `export --format nir` and `import FILE.nir`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pragnosia.apps.answer import Answer, aligned
from pragnosia.errors import CheckpointError, ConfigError, unknown_name
from pragnosia.units import format_bytes

if TYPE_CHECKING:
    from pragnosia.spiking.nir_graph import Graph
    from pragnosia.spiking.regions import Brain

FORMATS = ("huggingface", "nir")
SUFFIX = ".nir"


def is_brain(model: Path, form: str | None) -> bool:
    """Whether `export` is about spiking neurons. Raises ConfigError, CheckpointError for what cannot go together."""
    from pragnosia.apps.spikes import is_spiking
    from pragnosia.spiking.files import brain_file

    if form is not None and form not in FORMATS:
        raise ConfigError(unknown_name("format", form, FORMATS))
    spiking = is_spiking(model)
    fires = spiking or brain_file(model) is not None
    if fires and form != "nir":
        what = "a spiking language model" if spiking else "a brain wired in YAML"
        raise ConfigError(f"{model} is {what}, which only NIR can take: add --format nir")
    if form == "nir" and not fires:
        raise CheckpointError(
            f"{model} is neither a spiking language model nor a brain wired in YAML (a file with populations, or a"
            " folder with brain.yaml); NIR takes no other"
        )
    return fires


def export_nir(model: Path, out: Path, *, drive: str, family: str | None) -> Answer:
    """Write a wired brain, or a spiking language model, as a NIR graph. Raises ConfigError, CheckpointError."""
    from pragnosia.apps.spikes import is_spiking

    if family is not None:
        raise ConfigError(f"--family {family} is for models of words; leave it out with --format nir")
    if out.exists():
        raise CheckpointError(f"{out} already exists; choose another or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent} to write {out.name} into; make it first")
    brain, graph = _model_out(model, out, drive) if is_spiking(model) else _brain_out(model, out, drive)
    dense = 4 * sum(node.weight.shape[0] * node.weight.shape[1] for node in graph.nodes.values() if node.weight)
    values = {
        "source": str(model),
        "out": str(out),
        "format": "nir",
        "drive": drive,
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "neurons": brain.num_neurons,
        "synapses": brain.num_synapses,
        "num_bytes": out.stat().st_size,
        "dense_bytes": dense,
    }
    return Answer(values, _lines(values, "exported"))


def _brain_out(source: Path, out: Path, drive: str) -> tuple[Brain, Graph]:
    from pragnosia.spiking.configuration import read_brain
    from pragnosia.spiking.files import brain_file
    from pragnosia.spiking.nir_export import export_brain
    from pragnosia.spiking.regions import Brain

    file = brain_file(source)
    assert file is not None
    brain = Brain.build(read_brain(file), drive=drive)
    return brain, export_brain(brain, out, drive=drive)


def _model_out(source: Path, out: Path, drive: str) -> tuple[Brain, Graph]:
    if drive != "constant":
        raise ConfigError(f"--drive {drive}: a language model runs under the constant drive; leave it out")
    from pragnosia.inference.spikes import SpikingSpeaker
    from pragnosia.spiking.nir_model import export_model

    model = SpikingSpeaker.from_pretrained(source).model
    return model.brain, export_model(model, out)


def import_nir(source: Path, out: Path, *, dt_ms: float | None) -> Answer:
    """Keep a NIR graph as a brain folder. Raises CheckpointError, ConfigError."""
    from pragnosia.checkpoints.admission import check_vacant
    from pragnosia.checkpoints.writer import new_directory
    from pragnosia.spiking.nir_import import import_brain

    check_vacant(out)
    if dt_ms is not None and not 0 < dt_ms < float("inf"):
        raise ConfigError(f"--dt-ms is {dt_ms}; it must be greater than 0")
    found = import_brain(source, dt_ms=dt_ms)
    with new_directory(out) as folder:
        found.save(folder)
    values: dict[str, Any] = {
        "source": str(source),
        "out": str(out),
        "format": "nir",
        "dt_ms": found.config.dt_ms,
        "populations": {name: one.size for name, one in found.config.populations.items()},
        "projections": len(found.config.projections),
        "neurons": sum(one.size for one in found.config.populations.values()),
        "synapses": sum(one.count for one in found.synapses.values()),
        "drive": next((drive for _, drive in found.biases), "constant"),
        "notes": found.notes,
    }
    return Answer(values, _lines(values, "imported"))


def _lines(values: dict[str, Any], verb: str) -> list[str]:
    said = [(verb, f"{values['source']} to {values['out']}")]
    said.append(("brain", f"{values['neurons']:,} neurons, {values['synapses']:,} synapses"))
    if verb == "exported":
        sizes = f"{format_bytes(values['num_bytes'])}; whoever reads the matrices whole needs"
        said.append(
            (
                "graph",
                f"{values['nodes']} nodes, {values['edges']} edges, {sizes} {format_bytes(values['dense_bytes'])}",
            )
        )
    else:
        sizes = ", ".join(f"{name} {size:,}" for name, size in values["populations"].items())
        said += [
            ("populations", sizes),
            ("dt", f"{values['dt_ms']:g} ms"),
            *(("note", note) for note in values["notes"]),
        ]
        drive = "" if values["drive"] == "constant" else f" --drive {values['drive']}"
        said.append(("run it", f"pragnosia simulate {values['out']}{drive}"))
    return aligned(said)
