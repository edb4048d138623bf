"""What the verbs do with a spiking language model (spiking/neurogen.py): generate, chat, eval, inspect, energy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.errors import ConfigError
from pragnosia.units import KIB, format_bytes, format_count, format_duration, format_joules, plural

if TYPE_CHECKING:
    from pragnosia.data import Joined
    from pragnosia.inference.companion import Companion
    from pragnosia.inference.sampling import Sampling
    from pragnosia.inference.spikes import SpikingSpeaker
    from pragnosia.measure.neurogen import TokenCost
    from pragnosia.spiking.neurogen import NeuroGenForCausalLM
    from pragnosia.spiking.neurogen_configuration import NeuroGenConfig
    from pragnosia.spiking.regions import Brain, Currents

FAMILY = "neurogen"
PACKED = "int8"


def is_spiking(model: Path | str) -> bool:
    """Whether a directory holds such a model; torch is not loaded."""
    try:
        values = json.loads((Path(model) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == FAMILY


def refuse(**options: object) -> None:
    """Raise ConfigError for an option that was given and means nothing here."""
    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} means nothing to a spiking model; leave it out")


def generate(
    model: Path, prompt: str, max_new_tokens: int, sampling: Sampling, beside: Path | None, *, quiet: bool
) -> Answer:
    """Continue a text."""
    speaker = _speaker(model)
    speaker.companion = _companion(speaker, beside, learn=False)
    began = time.perf_counter()
    text = "".join(_shown(piece, quiet) for piece in speaker.speak(prompt, sampling, max_new_tokens))
    seconds = time.perf_counter() - began
    if not quiet:
        print(file=sys.__stdout__)
    cost = _cost(speaker)
    said = speaker.tokens - len(speaker.encode(prompt)) + (speaker.stopped == "length")
    values = {"text": text, "stopped": speaker.stopped, "tokens": said, "tokens_per_second": speaker.tokens / seconds}
    values |= {**asdict(cost), "joules_source": "model", "tokens_read_and_said": speaker.tokens}
    return Answer(values, aside=f"[{said} tokens, {values['tokens_per_second']:.0f} tokens/s, {_told(cost)}]")


def chat(model: Path, max_new_tokens: int, sampling: Sampling, system: str | None, *, quiet: bool) -> Answer:
    """Turn by turn, from standard input; Ctrl-D (or /exit) leaves. The state goes on from turn to turn."""
    speaker = _speaker(model)
    messages = [] if system is None else [{"role": "system", "content": system}]
    interactive, heard = sys.stdin.isatty() and not quiet, ""
    began = time.perf_counter()
    for line in _lines(interactive):
        messages.append({"role": "user", "content": line})
        text = str(speaker.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        if not text.startswith(heard):  # a template that takes words back
            speaker.forget()
            heard = ""
        fresh = speaker.encode(text[len(heard) :])
        answer = "".join(_shown(piece, quiet) for piece in speaker.answer(fresh, sampling, max_new_tokens))
        if not quiet:
            print(file=sys.__stdout__)
        heard = text + answer
        messages.append({"role": "assistant", "content": answer})
    values = {"messages": messages, "seconds": time.perf_counter() - began, **asdict(_cost(speaker))}
    return Answer(values, aside=f"[{speaker.tokens} tokens, {_told(_cost(speaker))}]" if speaker.tokens else "")


def evaluate(model: Path, data: list[str], max_bytes: int | None, beside: Path | None, *, learn: bool) -> Answer:
    """Bits per byte of a text, read in parts side by side; each but the first hears 256 tokens before it is scored.

    With a one-pass learner beside it a text is read from end to end.
    """
    from pragnosia.data import Joined, resolve
    from pragnosia.measure.neurogen import predict, token_cost

    sources = Joined(tuple(resolve(source) for source in data))
    speaker = _speaker(model)
    companion = _companion(speaker, beside, learn=learn)
    found = predict(speaker.model, _documents(speaker, sources, max_bytes), companion=companion)
    cost = token_cost(speaker.model, found.fired, found.read)
    values = {
        "model": str(model),
        "data": data,
        "bits_per_byte": found.bits_per_byte,
        "bytes": found.bytes,
        "tokens": found.tokens,
        "next_token_accuracy": found.hits / found.tokens,
        "seconds": found.seconds,
        "tokens_per_second": found.read / found.seconds,
        **asdict(cost),
        "joules_source": "model",
    }
    rows = [
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        (
            "next token",
            f"{values['next_token_accuracy']:.1%} were held likeliest{' by the model alone' * bool(beside)}",
        ),
        ("text", f"{format_bytes(found.bytes)}, {format_count(found.tokens)} tokens"),
        ("speed", f"{values['tokens_per_second']:.0f} tokens/s, {format_duration(found.seconds)}"),
        ("cost per token", _told(cost)),
    ]
    return Answer(values, aligned(rows))


def _documents(speaker: SpikingSpeaker, sources: Joined, max_bytes: int | None) -> Iterator[tuple[Any, int]]:
    """Ids of each text, behind the token that documents end with, and its bytes; no more than so many in all."""
    import torch

    left = max_bytes
    for text in sources.documents():
        part = text if left is None else text.encode()[:left].decode(errors="ignore")
        size = len(part.encode())
        yield torch.tensor([int(speaker.tokenizer.eos_token_id), *speaker.encode(part)]), size
        left = None if left is None else left - size
        if left is not None and left < 1:
            return


def pack(source: Path, out: Path, form: str, data: list[str] | None, *, measured: bool) -> Answer:
    """The same model with int8 weights, and what that cost on a text: 64 KiB of `data`, else a little of `default`."""
    from pragnosia.checkpoints.admission import check_vacant

    if form != PACKED:
        raise ConfigError(f"{source} is a spiking model, which is packed to {PACKED} alone; say --format {PACKED}")
    check_vacant(out)
    from pragnosia.data import Joined, resolve
    from pragnosia.measure.neurogen import predict
    from pragnosia.quantisation.spikes import pack_directory, weight_bytes

    text = Joined(tuple(resolve(name) for name in data or ["default"])) if measured else None
    speaker = _speaker(source)
    made = pack_directory(speaker.model, source, out)
    values: dict[str, Any] = {"source": str(source), "format": form}
    values |= {"num_bytes": weight_bytes(out), "source_bytes": weight_bytes(source)}
    rows = [
        ("packed", f"{source} to {out} as {form}"),
        ("weights", f"{format_bytes(values['num_bytes'])} of {format_bytes(values['source_bytes'])}"),
    ]
    if text is not None:
        most = (64 if data else 4) * KIB
        found = [predict(mind, _documents(speaker, text, most)) for mind in (speaker.model, made)]
        values |= {"source_bits_per_byte": found[0].bits_per_byte, "packed_bits_per_byte": found[1].bits_per_byte}
        values["text_bytes"] = found[0].bytes
        told = f"{found[1].bits_per_byte:.4f}, of the source {found[0].bits_per_byte:.4f}"
        rows.append(("bits per byte", f"{told}, on {format_bytes(found[0].bytes)} of {', '.join(data or ['default'])}"))
    return Answer(values, aligned(rows))


def inspect(model: Path) -> Answer:
    """What there is of it, and what a silent token costs."""
    speaker = _speaker(model)
    return _described(str(model), speaker.model)


def configured(name: str) -> NeuroGenConfig | None:
    """The shape that a training configuration of a spiking model gives; None for anything else. Raises ConfigError."""
    if Path(name).suffix not in (".yaml", ".yml") or not Path(name).is_file():
        return None
    from pragnosia.training.settings import read_settings

    values = read_settings(name)
    section = values.get("model")
    if not isinstance(section, dict) or section.get("kind") != FAMILY:
        return None
    from pragnosia.training.minds import spiking_config, with_brain

    tokenizer = values.get("tokenizer") or {}
    return spiking_config(with_brain(values, name)["model"], tokenizer.get("vocab_size"), None)


def inspect_config(name: str, config: NeuroGenConfig) -> Answer:
    """The same of a model that a configuration would train."""
    from pragnosia.spiking.neurogen import NeuroGenForCausalLM

    return _described(name, NeuroGenForCausalLM(config))


@answering
def energy(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The directory of a spiking model.")],
    text: Annotated[str, typer.Argument(help="What it is to read.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Let a spiking model read a text: spikes, synaptic operations and joules of a token, beside a dense network's.

    What a cortex costs is told by eval, generate and inspect.
    """
    if not is_spiking(model):
        raise ConfigError(f"{model} is no spiking model; what a cortex costs is told by: pragnosia inspect {model}")
    speaker = _speaker(model)
    speaker.read(speaker.encode(text))
    cost = _cost(speaker)
    values = {"model": str(model), "tokens": speaker.tokens, **asdict(cost), "joules_source": "model"}
    rows = [
        ("a token", f"{cost.neuron_updates_per_token:,} neuron updates, {cost.spikes_per_token:,.1f} spikes"),
        ("synapses", f"{cost.synaptic_operations_per_token:,.0f} operations"),
        ("in all", f"{format_count(cost.operations_per_token)} operations, {format_bytes(cost.bytes_per_token)}"),
        ("energy", f"{format_joules(cost.joules_per_token)} by model (docs/spiking.md)"),
        ("without spikes", f"{format_joules(cost.dense_joules_per_token)}: as many synapses, not equal quality"),
    ]
    return Answer(values, aligned(rows))


def reading(model: Path, text: str | None) -> tuple[Brain, int, Callable[[int], Currents]]:
    """A model's brain, the steps it takes to read a text, and the currents of each. Raises ConfigError for no text."""
    import torch

    from pragnosia.spiking.events import as_currents

    if not text:
        raise ConfigError(f"{model} is a spiking language model; say what it is to read: pragnosia raster {model} TEXT")
    speaker = _speaker(model)
    mind, config = speaker.model, speaker.model.config
    with torch.no_grad():
        drive = mind.currents(torch.tensor([speaker.encode(text)]))
    each, brain = int(config.steps_per_token), mind.brain
    return brain, len(drive) * each, lambda at: as_currents(brain, config.into or (), drive[at // each])


def _described(name: str, mind: NeuroGenForCausalLM) -> Answer:
    from pragnosia.spiking.int8 import weights_of

    brain, config = mind.brain, mind.config
    parts = {part: sum(one.numel() for one in weights_of(getattr(mind, part))) for part in ("enter", "wires", "read")}
    learned = sum(weight.numel() for weight in mind.parameters() if weight.requires_grad)
    state = mind.begin().nbytes
    regions = {region.name: region.config.size for region in brain.regions}
    values = {
        "model": name,
        "kind": FAMILY,
        "total_parameters": sum(parts.values()),
        "learned_parameters": learned,
        "parameters": parts,
        "weights": config.weights,
        "neurons": brain.num_neurons,
        "synapses": brain.num_synapses,
        "regions": regions,
        "into": config.into,
        "out": config.out,
        "steps_per_token": config.steps_per_token,
        "vocabulary": config.vocab_size,
        "state_bytes": state,
    }
    held = plural(int(config.steps_per_token), "step")
    rows = [
        ("model", name),
        ("kind", "spiking language model"),
        (
            "parameters",
            f"{format_count(values['total_parameters'])}, of which rules may change {format_count(learned)}",
        ),
        ("", ", ".join(f"{format_count(count)} {what}" for what, count in parts.items()) + f", as {config.weights}"),
        ("neurons", f"{brain.num_neurons:,}, {brain.num_synapses:,} synapses"),
        ("regions", ", ".join(f"{region} {size:,}" for region, size in regions.items())),
        ("a token", f"{held} of {brain.config.dt_ms:g} ms, into {', '.join(config.into or ())}"),
        ("state", f"{format_bytes(state)}, however long the text"),
    ]
    return Answer(values, aligned(rows))


def _speaker(model: Path) -> SpikingSpeaker:
    from pragnosia.inference.spikes import SpikingSpeaker

    return SpikingSpeaker.from_pretrained(model)


def _companion(speaker: SpikingSpeaker, folder: Path | None, *, learn: bool) -> Companion | None:
    from pragnosia.inference.companion import Companion

    return None if folder is None else Companion.open(folder, speaker.tokenizer, learn=learn)


def _cost(speaker: SpikingSpeaker) -> TokenCost:
    from pragnosia.measure.neurogen import token_cost

    return token_cost(speaker.model, speaker.fired, speaker.tokens)


def _told(cost: TokenCost) -> str:
    told = (
        f"{cost.spikes_per_token:.0f} spikes, {format_count(cost.synaptic_operations_per_token)} synaptic operations, "
        f"{format_joules(cost.joules_per_token)} by model"
    )
    if cost.dense_joules_per_token == cost.joules_per_token:  # there are no synapses
        return told
    return f"{told} (every synapse in every step: {format_joules(cost.dense_joules_per_token)})"


def _lines(interactive: bool) -> Iterator[str]:
    """What the user says."""
    while True:
        if interactive:
            print("> ", end="", file=sys.__stdout__, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() in ("/exit", "/quit"):
            return
        if line.strip():
            yield line.rstrip("\n")


def _shown(piece: str, quiet: bool) -> str:
    if not quiet:
        print(piece, end="", file=sys.__stdout__, flush=True)
    return piece
