"""What the verbs do with a one-pass learner (model/coincidence.py): its own train, eval, generate and inspect."""

from __future__ import annotations

import functools
import inspect as inspection
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from pragnosia.apps import spikes
from pragnosia.apps.answer import Answer, aligned
from pragnosia.errors import ConfigError
from pragnosia.inference.one_pass import check, check_learner, is_one_pass, load
from pragnosia.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from pragnosia.inference.sampling import Sampling
    from pragnosia.model.coincidence import CoincidenceForCausalLM

KIND = "coincidence"
P = ParamSpec("P")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_SPEAKING = {
    *_SAMPLING,
    "model",
    "prompt",
    "max_new_tokens",
    "stop",
    "stats",
    "as_json",
    "debug",
    "no_memory",
    "beside",
    "system",
}


def trains_once(values: Mapping[str, Any]) -> bool:
    """Whether a training configuration asks for one."""
    model = values.get("model")
    return isinstance(model, Mapping) and model.get("kind") == KIND


def refuse(**options: object) -> None:
    """Raise ConfigError for an option that was given and means nothing here."""
    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} means nothing to a coincidence learner; leave it out")


def train(values: Mapping[str, Any], out: Path, data: list[str]) -> Answer:
    """One pass over the text."""
    from pragnosia.training.one_pass import train_once

    report = train_once(values, out, data)
    told = asdict(report)
    nothing = math.isnan(report.bits_per_byte)
    held = "nothing was held out" if nothing else f"{report.bits_per_byte:.4f} on held-out text"
    rows = [
        ("model", report.out),
        ("learned", f"{format_bytes(report.bytes)} in one pass"),
        ("bits per byte", held),
        ("", f"{report.bits_per_byte_learned:.4f} on what it learned, each byte before it was learned"),
        ("speed", f"{report.bytes_per_second:.0f} bytes/s, {format_duration(report.seconds)}"),
    ]
    return Answer({**told, "bits_per_byte": None if nothing else report.bits_per_byte}, aligned(rows))


def evaluate(model: Path, data: list[str], max_bytes: int | None, *, learn: bool) -> Answer:
    """Bits per byte of a text; with `learn` the model goes on learning while it reads, in memory only."""
    from pragnosia.data import Joined, resolve
    from pragnosia.learning.coincidence import Bytes, learn_text, score_text

    sources = Joined(tuple(resolve(source) for source in data))
    mind, tokenizer = load(model)
    alphabet, left, nats, scored = Bytes(tokenizer), max_bytes, 0.0, 0
    began = time.perf_counter()
    for text in sources.documents():
        ids = alphabet.encode(text)[:left]
        nats -= float((learn_text(mind, ids)[0] if learn else score_text(mind, ids)).double().sum())
        scored += len(ids)
        left = None if left is None else left - len(ids)
        if left == 0:
            break
    seconds = time.perf_counter() - began
    values = {
        "model": str(model),
        "data": data,
        "learn": learn,
        "bits_per_byte": nats / max(scored, 1) / math.log(2),
        "bytes": scored,
        "seconds": seconds,
        "bytes_per_second": scored / seconds,
    }
    how = "learning as it reads; the model's directory stays as it is" if learn else "all weights still"
    rows = [
        ("bits per byte", f"{values['bits_per_byte']:.4f} ({how})"),
        ("text", format_bytes(scored)),
        ("speed", f"{scored / seconds:.0f} bytes/s, {format_duration(seconds)}"),
    ]
    return Answer(values, aligned(rows))


def speaks_for_itself(command: Callable[P, Answer]) -> Callable[P, Answer]:
    """A verb, or what a one-pass learner or a spiking model does in its place.

    Options of sleep, memory and streams are refused.
    """
    defaults = {name: entry.default for name, entry in inspection.signature(command).parameters.items()}

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> Answer:
        given: Any = kwargs
        if (beside := given.get("beside")) is not None:
            if is_one_pass(given["model"]):
                refuse(beside=beside)
            check_learner(beside)
        fires = spikes.is_spiking(given["model"])
        if not fires and ("prompt" not in given or not is_one_pass(given["model"])):
            return command(*args, **kwargs)
        from pragnosia.inference.sampling import Sampling, check_room, check_text

        others = {name: given[name] != defaults[name] for name in given if name not in _SPEAKING}
        (spikes.refuse if fires else refuse)(**others)
        chosen = {name: given[name] for name in _SAMPLING if given[name] is not None}
        sampling = Sampling(**{**chosen, "stop": tuple(given.get("stop") or ())})
        check_text(given.get("prompt") or given.get("system") or "")
        check_room(given["max_new_tokens"])
        how = given["model"], given.get("prompt"), given["max_new_tokens"], sampling
        if "prompt" not in given:
            return spikes.chat(how[0], how[2], sampling, given["system"], quiet=given["as_json"])
        if fires:
            return spikes.generate(*how, beside, quiet=given["as_json"])
        check(given["model"])
        return generate(given["model"], given["prompt"], given["max_new_tokens"], sampling, quiet=given["as_json"])

    return run


def generate(model: Path, prompt: str, max_new_tokens: int, sampling: Sampling, *, quiet: bool) -> Answer:
    """Continue a text."""
    from pragnosia.learning.coincidence import Bytes

    mind, tokenizer = load(model)
    ids = Bytes(tokenizer).encode(prompt).tolist()
    began = time.perf_counter()
    said, stopped = "", "length"
    new: list[int] = []
    for token in _tokens(mind, ids, sampling, max_new_tokens):
        new.append(token)
        whole = str(tokenizer.decode(new, skip_special_tokens=True))
        ended = next((text for text in sampling.stop if text in whole), None)
        whole = whole if ended is None else whole[: whole.index(ended)]
        if not whole.endswith("\ufffd") and not quiet:  # half a character waits for its other half
            print(whole[len(said) :], end="", file=sys.__stdout__, flush=True)
            said = whole
        if ended is not None:
            stopped = "stop"
            break
    seconds = time.perf_counter() - began
    if not quiet:
        print(file=sys.__stdout__)
    values = {"text": whole if new else "", "stopped": stopped, "tokens": len(new)}
    values |= {"tokens_per_second": len(new) / max(seconds, 1e-9)}
    return Answer(values, aside=f"[{len(new)} bytes, {values['tokens_per_second']:.0f} a second]")


def _tokens(mind: CoincidenceForCausalLM, ids: list[int], sampling: Sampling, count: int) -> Iterator[int]:
    """The bytes said, one by one; without a prompt the first line is begun."""
    import torch

    from pragnosia.inference.sampler import Sampler

    sampler, state, seen = Sampler(sampling, torch.device("cpu")), mind.opening(), list(ids)
    given = torch.tensor(ids, dtype=torch.int64)
    for _ in range(count):
        _, behind, state = mind.read(given, state, rows=1)
        given = sampler(torch.tensor([seen]), behind)[0]
        seen.append(int(given))
        yield seen[-1]


def inspect(model: Path) -> Answer:
    """What there is, and how much of it is in use."""
    mind, _ = load(model)
    own: Any = mind
    tables = {**dict(mind.named_parameters()), **dict(mind.named_buffers())}
    size = sum(table.nbytes for table in tables.values())
    used, buckets = int((own.slots[:, 0] != 0).sum()), len(own.slots)
    tokens, decisions = own.learned.tolist()
    values = {
        "model": str(model),
        "kind": KIND,
        "bytes": size,
        "learned_tokens": tokens,
        "learned_decisions": decisions,
        "buckets": buckets,
        "buckets_used": used,
        "vocabulary": len(own.kinds),
    }
    rows = [
        ("model", str(model)),
        ("kind", "coincidence learner: hashed n-grams and words, mixed by linear neurons"),
        ("learned", f"{format_count(tokens)} bytes of text, {format_count(decisions)} decisions"),
        ("neurons", f"{format_count(used)} of {format_count(buckets)} buckets in use"),
        ("memory", format_bytes(size)),
    ]
    return Answer(values, aligned(rows))
