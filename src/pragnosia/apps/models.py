"""`inspect`, `import`, `export`, `doctor`: what a model is, where it comes from, and what this machine makes of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps import brains, one_pass, spikes
from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.dialling import left_behind, left_behind_rows
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.errors import ConfigError
from pragnosia.inference.one_pass import is_one_pass
from pragnosia.units import format_bytes, format_count

if TYPE_CHECKING:
    from pragnosia.measure.machine import Machine
    from pragnosia.model.configuration import PragnosiaConfig
    from pragnosia.model.cortex import Cortex

Out = Annotated[Path, typer.Argument(help="A directory to make.", metavar="OUT")]


@answering
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|PRESET|CONFIG",
            help="A model directory, a GGUF file, the name of a preset, or the YAML that a model is trained from.",
        ),
    ],
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens remembered; default 2048 or all the model holds.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one training step.")] = 8192,
    text: Annotated[
        str | None, typer.Option(help="Instead: load it, let it read this, and say what stands in its workspace.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Say what a model is: total and active parameters, cost per token, memory to train, tune and run.

    Nothing is loaded: the model is built without storage, so 450b works on any machine. With --text it is loaded, and
    its workspace is read out: awareness, attention, memory, intention.
    """
    if is_one_pass(model):
        one_pass.refuse(text=text)
        return one_pass.inspect(Path(model))
    if spikes.is_spiking(model):
        spikes.refuse(text=text)
        return spikes.inspect(Path(model))
    if (shape := spikes.configured(model)) is not None:
        return spikes.inspect_config(model, shape)
    if text is not None:
        from pragnosia.apps.introspecting import introspect

        return introspect(model, text, quiet=as_json)
    if Path(model).is_dir() or gguf_in(model) is not None:
        _check_outside(Path(model))
    from pragnosia.measure.accounting import account
    from pragnosia.measure.memory import memory_to_run, memory_to_train, memory_to_tune

    config, precision = _described(model)
    counted = account(_sleeping(model, config) or config, precision=precision, context=context)
    memory = {
        "train": memory_to_train(counted, tokens=batch_tokens, checkpointing=True),
        "tune": memory_to_tune(counted, tokens=batch_tokens),
        "run": memory_to_run(counted),
    }
    values = {
        "model": model,
        "precision": precision,
        "context": counted.context,
        "total_parameters": counted.total_parameters,
        "active_parameters": counted.active_parameters,
        "operations_per_token": counted.operations_per_token,
        "bytes_per_token": counted.bytes_per_token,
        "asleep_parameters": round(counted.asleep_parameters),
        "memory": {purpose: needed.total for purpose, needed in memory.items()},
        "memory_parts": {purpose: needed.parts for purpose, needed in memory.items()},
        "lobes": dict(config.units.lobes or {}) if config.units else {},
    }
    return Answer(values, _description(values, config))


def _sleeping(model: str, config: PragnosiaConfig) -> Cortex | None:
    """A sparsified model without its weights; None for one that is wide awake."""
    from pragnosia.inference.sparsity import put_to_sleep, read_sparsity
    from pragnosia.measure.accounting import on_meta

    sparsity = read_sparsity(Path(model))
    if sparsity is None:
        return None
    outline = on_meta(config)
    put_to_sleep(outline, sparsity.sites)
    return outline


def _check_outside(folder: Path) -> None:
    """Raise CheckpointError for a directory that is no model's, or whose weights are damaged; it need not hold any."""
    from pragnosia.inference.directory import check_weights, has_weights, is_foreign

    is_foreign(folder)
    if has_weights(folder):
        check_weights(folder)


def _described(model: str) -> tuple[PragnosiaConfig, str]:
    """Configuration and precision of a directory, a preset, or a model that a YAML file would train."""
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import neither
    from pragnosia.inference.loading import load_config
    from pragnosia.model.presets import PRESETS, preset
    from pragnosia.quantisation.index import is_packed, read_index

    if model in PRESETS:
        return preset(model), "bfloat16"
    if Path(model).suffix in (".yaml", ".yml") and not Path(model).is_dir():
        return _to_be_trained(Path(model)), "float32"
    if not Path(model).is_dir() and gguf_in(model) is None:
        raise CheckpointError(neither(model, PRESETS))
    config = load_config(model)
    plain = str(config.dtype or "float32").removeprefix("torch.")
    if not is_packed(Path(model)):
        return config, plain
    entry = read_index(Path(model)).entry
    return config, entry.name if entry.plain_dtype is None else plain


def _to_be_trained(file: Path) -> PragnosiaConfig:
    """The shape that a training configuration gives; how long it is trained need not be said."""
    from pragnosia.data import load_tokenizer
    from pragnosia.training.assembly import model_config
    from pragnosia.training.configuration import read_config
    from pragnosia.training.settings import read_settings

    values = read_settings(file)
    if "model" not in values:
        raise ConfigError(f"{file} has no section `model`: it describes none; see configs/")
    config = read_config(values if values.keys() & {"steps", "tokens"} else values | {"steps": 1})
    own = config.tokenizer.path
    return model_config(config, None if own is None else load_tokenizer(own))


def _description(values: dict[str, Any], config: PragnosiaConfig) -> list[str]:
    total, active = values["total_parameters"], values["active_parameters"]
    shape = f"{config.num_hidden_layers} layers of width {config.hidden_size}, vocabulary {config.vocab_size}"
    rows = [
        ("model", values["model"]),
        ("shape", shape),
        ("total parameters", format_count(total)),
        ("active per token", f"{format_count(active)} ({active / total:.1%})"),
        ("operations per token", format_count(values["operations_per_token"])),
        ("bytes per token", f"{format_bytes(values['bytes_per_token'])} ({values['precision']})"),
    ]
    if values["asleep_parameters"]:
        rows.append(("asleep per token", f"weights of inputs that sleep: {format_count(values['asleep_parameters'])}"))
    if organ := config.units:
        lobes = ", ".join(f"{label} {count}" for label, count in (organ.lobes or {}).items())
        wakes = f"{organ.thalamus.num_awake} of {organ.num_units} units of width {organ.unit_width}"
        besides = f"{1 - organ.thalamus.num_awake / organ.num_units:.1%} asleep"
        if organ.num_shared:
            besides = f"{organ.num_shared} shared"
        rows.append(("wakes", f"{wakes}, {besides} ({organ.thalamus.kind})"))
        rows.append(("lobes", lobes))
    if (memory := config.hippocampus) is not None:
        layers = ", ".join(str(n) for n, kind in enumerate(config.feed_forwards or ()) if kind == "memory")
        recalled = f"{memory.num_heads} x {memory.num_awake} of {format_count(memory.num_rows)} rows"
        rows.append(("recalls", f"{recalled} in layer {layers} (counted from 0)"))
    if config.dendrites is not None:
        rows.append(("dendrites", f"{config.dendrites.num_awake} of {config.dendrites.num_dendrites} of each head"))
    if config.exits is not None:
        rows.append(("exits", f"after layer {', '.join(map(str, config.exits.layers))}"))
    if config.gates is not None:
        layers = ", ".join(map(str, config.gates.layers))
        rows.append(("gates", f"{100 * config.gates.share:g}% of the tokens pass layer {layers} (counted from 0)"))
    rows += _remembering(config)
    for purpose, needed in values["memory"].items():
        parts = ", ".join(
            f"{name.replace('_', ' ')} {format_bytes(size)}" for name, size in values["memory_parts"][purpose].items()
        )
        rows.append((f"memory to {purpose}", f"{format_bytes(needed)} ({parts})"))
    return aligned(rows)


def _remembering(config: PragnosiaConfig) -> list[tuple[str, str]]:
    """What there is beside plain keys and values."""
    rows = []
    if (fades := config.fleeting) is not None:
        where = "all layers" if fades.layers is None else f"layer {', '.join(map(str, fades.layers))}"
        rows.append(("fleeting", f"behind {fades.intact} tokens, by power {fades.power:g}, {where}"))
    for name in ("working_memory", "workspace"):
        if slots := getattr(config, name):
            layers = ", ".join(map(str, slots.layers))
            does = f"{slots.num_slots} slots in layer {layers} (counted from 0), written every {slots.segment} tokens"
            rows.append((name.replace("_", " "), does))
    return rows


@answering
def import_model(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A Hugging Face directory, a GGUF, a llama2.c or a NIR file (.nir)."),
    ],
    out: Out,
    tokenizer: Annotated[Path | None, typer.Option(help="A llama2.c tokenizer that lies elsewhere.")] = None,
    dt_ms: Annotated[
        float | None, typer.Option(help="Of a NIR graph: length of a step; default the file's, or 1.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Turn another family's checkpoint into a model directory of ours, or a NIR graph into a brain to simulate."""
    from pragnosia.checkpoints.admission import check_source, check_vacant

    if source.suffix == brains.SUFFIX:
        return brains.import_nir(source, out, dt_ms=dt_ms)
    if dt_ms is not None:
        raise ConfigError(f"--dt-ms is for NIR graphs, whose names end in .nir; {source} is none")
    check_source(source)
    check_vacant(out)
    from pragnosia.checkpoints.importing import import_model as bring_in

    report, left = bring_in(source, out, tokenizer=tokenizer), left_behind(source)
    told = aligned(left_behind_rows(left, source, out))
    return Answer(asdict(report) | {"not_carried": left}, [*_moved(asdict(report), "imported"), *told])


@answering
def export_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, or a brain's file or folder.")],
    out: Out,
    family: Annotated[str | None, typer.Option(help="Target family; default where it came from.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="huggingface, or nir for spiking neurons; OUT is then a file.")
    ] = None,
    drive: Annotated[str, typer.Option(help="With nir: what neurons are given, constant or noise.")] = "constant",
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Write a model directory of ours as another family's checkpoint, or spiking neurons as a NIR graph."""
    if brains.is_brain(model, form):
        return brains.export_nir(model, out, drive=drive, family=family)
    from pragnosia.checkpoints.admission import check_vacant
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_directory
    from pragnosia.quantisation.index import is_packed

    if is_packed(model):
        raise CheckpointError(f"{model} is packed, which no family reads; export the model it was made from")
    check_directory(model)
    check_vacant(out)
    from pragnosia.checkpoints.exporting import export_model as send_out

    report = send_out(model, out, family)
    return Answer(asdict(report), _moved(asdict(report), "exported"))


def _moved(report: dict[str, Any], verb: str) -> list[str]:
    size = f"{format_count(report['num_parameters'])} parameters, {format_bytes(report['num_bytes'])}"
    where = f"{report['source']} ({report['family']}) to {report['out']}"
    return [f"{verb} {where}: {report['num_tensors']} tensors, {size}"]


@answering
def doctor(
    folder: Annotated[Path | None, typer.Option(help="Where models lie; its disk is measured.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Look, but measure no speeds.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Look at this machine: what it has, how fast it is, what will be slow and why."""
    from pragnosia.measure.advice import diagnose
    from pragnosia.measure.machine import survey

    machine = survey(folder or Path(), measure=not quick)
    advice = diagnose(machine)
    values = machine.as_dict() | {"advice": [asdict(entry) for entry in advice]}
    findings = [f"{entry.level:<6}  {entry.topic}: {entry.text}" for entry in advice]
    return Answer(values, [*_machine_lines(machine), "", *(findings or ["nothing to complain about"])])


def _machine_lines(machine: Machine) -> list[str]:
    processor, limits = machine.processor, machine.limits
    cores = f"{processor.physical} cores, {limits.cores:g} usable, {machine.num_threads} threads"
    rows = [
        ("processor", f"{processor.model}, {cores}"),
        ("instructions", ", ".join(processor.instructions) or "none that matter here"),
        ("memory", f"{format_bytes(limits.memory_total)}, {format_bytes(limits.memory_available)} available"),
        *(("limited by", limit) for limit in limits.limited_by),
        ("native kernel", machine.native_kernel or "none"),
    ]
    rows += [
        ("gpu", f"{gpu.name}, {format_bytes(gpu.memory_available)} of {format_bytes(gpu.memory_total)} free")
        for gpu in machine.accelerators
    ] or [("gpu", "none")]
    if machine.speeds is not None:
        for speed in machine.speeds.devices:
            rates = ", ".join(f"{name} {format_count(rate)}op/s" for name, rate in speed.operations_per_second.items())
            rows.append((speed.device, f"reads memory at {format_bytes(speed.memory_bytes_per_second)}/s; {rates}"))
        disk = machine.speeds.disk
        if disk is not None:
            how = "page cache bypassed" if disk.direct else "through the page cache"
            rows.append(("disk", f"{disk.folder} reads {format_bytes(disk.read_bytes_per_second)}/s ({how})"))
    rows.append(("libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items())))
    rows.append(("python", f"{machine.python} on {machine.platform}"))
    return aligned(rows)
