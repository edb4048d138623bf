"""`generate` and `chat`: a model speaks, and says what it cost."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import AbstractContextManager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps import one_pass
from pragnosia.apps.answer import Answer, AsJson, Debug, answering, one_line
from pragnosia.apps.budgeting import (
    Adapter,
    Context,
    Counting,
    Exact,
    Memory,
    Stats,
    Vram,
    bar,
    bytes_from_disk,
    check_context,
    check_memory,
    open_speaker,
    streamed,
    streamed_line,
)
from pragnosia.apps.dialling import (
    Awake,
    Energy,
    EnergyBudget,
    as_wish,
    check_budget,
    check_wishes,
    open_purse,
    purse_line,
    set_to,
    setting_values,
    tell,
)
from pragnosia.apps.leaving import ExitConfidence, ExitMemory, Speculate, early_line, early_values, tell_stuck
from pragnosia.apps.remembering import Beside, Cache, NoMemory, Store, chosen_store, teach_in_talk
from pragnosia.errors import CheckpointError, ConfigError, PromptError
from pragnosia.units import format_bytes, format_count, format_duration, format_joules, plural

if TYPE_CHECKING:
    from pragnosia.inference.chat import Conversation
    from pragnosia.inference.decode import Decoder, Trace
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.accounting import Account

Model = Annotated[Path, typer.Argument(help="A model directory or a GGUF file.", metavar="MODEL")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to say.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is bolder.")]
TopK = Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest tokens that hold P of the chance.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens less likely than P times the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes tokens already said less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed says the same.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.")]


@answering
@one_pass.speaks_for_itself
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: MaxNewTokens = 100,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    energy: Energy = "1",
    awake: Awake = None,
    energy_budget: EnergyBudget = None,
    memory: Memory = None,
    context: Context = None,
    adapter: Adapter = None,
    exact: Exact = False,
    vram: Vram = None,
    speculate: Speculate = None,
    exit_confidence: ExitConfidence = None,
    exit_memory: ExitMemory = "exact",
    store: Store = None,
    no_memory: NoMemory = False,
    cache: Cache = False,
    beside: Beside = None,
    stats: Stats = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Continue a text.

    With --json, `stopped` says why it ended: `length` (--max-new-tokens), `context` (the model's is full), `stop` (a
    stop text, or the model's own end) or `energy` (the budget is spent).
    """
    from pragnosia.inference.directory import check_speaker
    from pragnosia.inference.sampling import Sampling, check_room, check_text

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    check_text(prompt)
    check_room(max_new_tokens)
    check_memory(memory)
    check_context(context, memory)
    joules = check_budget(energy_budget, speculate, exit_confidence)
    as_wish(energy)
    check_speaker(model)
    wishes = check_wishes(model, energy, awake, speculate, exit_confidence, exit_memory)

    from pragnosia.inference.decode import Trace
    from pragnosia.inference.ending import Spoken
    from pragnosia.measure.meter import EnergyMeter

    kept = chosen_store(store, no_memory)
    speaker = open_speaker(
        model, memory, context, adapter, quiet=as_json, exact=exact, vram=vram, store=kept, **wishes.early
    )
    tell_stuck(speaker, wishes.early)
    if beside is not None:
        speaker.accompany(beside)
    trace = Trace()
    ids = speaker.encode(prompt)
    decoder = speaker.decoder(len(ids) + max_new_tokens, set_to(speaker, wishes), trace, cache=cache)
    started = time.perf_counter()
    with EnergyMeter() as meter, _reading(speaker, quiet=as_json) as decoder.progress:
        purse = open_purse(joules, speaker, decoder, meter)
        if purse is None:
            decoder.read(ids)
        else:
            purse.read(ids, max_new_tokens)
        spoken = Spoken(decoder, max_new_tokens, sampling, speaker.stop_tokens, purse.ran_out if purse else None)
        pieces = [_shown(piece, quiet=as_json) for piece in speaker.pieces(iter(spoken), sampling.stop, after=ids)]
    ended = time.perf_counter()
    seconds, first = ended - started, (spoken.began or ended) - started
    if not as_json:
        print(file=sys.__stdout__)
    tokens = len(decoder.ids) - len(ids)
    cost = spent(speaker, trace, meter.measured, decoder.tally.tokens)
    values = {
        "text": "".join(pieces),
        "stopped": spoken.stopped,
        "tokens": tokens,
        # of decoding, as plans foretell it; the first token is that of the prompt
        "tokens_per_second": (tokens - 1) / max(seconds - first, 1e-9) if tokens > 1 else tokens / max(seconds, 1e-9),
        "seconds_to_first_token": first,
        "decoding": decoder.decoding,
        **setting_values(speaker, decoder.setting),
        **cost,
        **streamed(speaker, len(decoder.ids), seconds),
        **early_values(decoder),
    }
    aside = [full_line(decoder)] if spoken.stopped == "context" else []
    if purse is not None:
        aside.append(purse_line(purse))
    aside.append(cost_line(values))
    if stats and "bytes_read_per_token" in values:
        aside.append(streamed_line(values))
    if stats:
        aside.append(f"[decoding: {decoder.decoding}; the first token came after {format_duration(first)}]")
    if stats and decoder.tally.tokens:
        aside.append(early_line(values, speaker.model.config.num_hidden_layers))
    return Answer(values, aside="\n".join(aside))


@answering
@one_pass.speaks_for_itself
def chat(
    model: Model,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.1,
    seed: Seed = None,
    energy: Energy = "1",
    awake: Awake = None,
    energy_budget: EnergyBudget = None,
    memory: Memory = None,
    context: Context = None,
    adapter: Adapter = None,
    vram: Vram = None,
    speculate: Speculate = None,
    exit_confidence: ExitConfidence = None,
    exit_memory: ExitMemory = "exact",
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn.")] = None,
    store: Store = None,
    no_memory: NoMemory = False,
    stats: Stats = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Talk with a model, turn by turn. Ctrl-C stops the sentence, Ctrl-D (or /exit) leaves.

    `/energy 0.3` (or draft, answer, think) turns the dial for the answers to come; `/teach TEXT` keeps a text in the
    store. With --json the turns are read from standard input, a line each, and the answer is the whole conversation. A
    turn that the model cannot take, or whose units cannot be read from disk, is told of on stderr; the talk goes on,
    and where its turns come from a pipe it ends with exit code 1.
    """
    from pragnosia.inference.directory import check_speaker
    from pragnosia.inference.sampling import Sampling, check_room, check_text

    among: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = Sampling(temperature=temperature, repetition_penalty=repetition_penalty, seed=seed, **among)
    check_text(system or "")
    check_room(max_new_tokens)
    check_memory(memory)
    check_context(context, memory)
    joules = check_budget(energy_budget, speculate, exit_confidence)
    as_wish(energy)
    check_speaker(model)
    wishes = check_wishes(model, energy, awake, speculate, exit_confidence, exit_memory)

    from pragnosia.inference.chat import Conversation
    from pragnosia.measure.meter import EnergyMeter

    kept = chosen_store(store, no_memory)
    speaker = open_speaker(model, memory, context, adapter, quiet=as_json, vram=vram, store=kept, **wishes.early)
    tell_stuck(speaker, wishes.early)
    conversation = Conversation(
        speaker, sampling=sampling, max_new_tokens=max_new_tokens, system=system, setting=set_to(speaker, wishes)
    )
    turns: list[dict[str, str]] = []
    with EnergyMeter() as meter:
        conversation.purse = purse = open_purse(joules, speaker, conversation.decoder, meter)
        seconds, failed = _talk(conversation, turns, as_json)
    values: dict[str, Any] = {"messages": turns, **streamed(speaker, conversation.passed, seconds)}
    aside = []
    if stats and "bytes_read_per_token" in values:
        aside.append(streamed_line(values))
    if stats:
        aside.append(f"[{conversation.passed} tokens in {format_duration(seconds)}, {conversation.decoder.decoding}]")
    if purse is not None:
        values |= {"joules": purse.spent, **setting_values(speaker, conversation.decoder.setting)}
        aside.append(purse_line(purse))
    return Answer(values, aside="\n".join(aside), code=1 if failed and not sys.stdin.isatty() else 0)


def _talk(conversation: Conversation, turns: list[dict[str, str]], as_json: bool) -> tuple[float, int]:
    """Turn by turn, until there is nothing to say or to spend: the model's seconds, and how many turns failed."""
    seconds, failed = 0.0, 0
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is told of, line by line
    interactive = sys.stdin.isatty() and not as_json
    if interactive:
        print("Ctrl-C stops the sentence, Ctrl-D or /exit leaves.", file=sys.stderr)
    while (line := _next_turn(interactive)) is not None:
        if line.strip() in ("/exit", "/quit"):
            break
        if not line.strip() or _command(conversation, line):
            continue
        started = time.perf_counter()
        try:
            with _reading(conversation.speaker, quiet=as_json) as conversation.decoder.progress:
                answer = _reply(conversation, line, as_json)
        except (PromptError, CheckpointError) as error:  # one turn that cannot be is not the end of a talk
            print(f"pragnosia: {one_line(error)}", file=sys.stderr)
            failed += 1
            if conversation.purse is not None and conversation.purse.empty:
                break
            continue
        finally:
            seconds += time.perf_counter() - started
        turns += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]
        if conversation.stopped == "energy":
            break
    return seconds, failed


def _command(conversation: Conversation, line: str) -> bool:
    """Whether a line was for us and not for the model: `/teach` or `/energy`, which is done then."""
    word, *rest = line.split()
    if word == "/teach":
        teach_in_talk(conversation, line.partition("/teach")[2])
    elif word == "/energy":
        _turn(conversation, rest)
    return word in ("/teach", "/energy")


def _turn(conversation: Conversation, words: list[str]) -> None:
    """`/energy 0.3`, `/energy draft`: the dial, for the answers to come; `/energy` alone says where it is."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            setting = conversation.turn(as_wish(" ".join(words))) if words else conversation.decoder.setting
    except (ConfigError, CheckpointError) as error:
        print(f"pragnosia: {one_line(error)}", file=sys.stderr)
        return
    tell(told)
    print(f"[the dial is at: {setting}]", file=sys.stderr)


def _next_turn(interactive: bool) -> str | None:
    """The user's next line, None at the end."""
    try:
        if not interactive:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        print("> ", end="", file=sys.__stdout__, flush=True)
        return input()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print(file=sys.__stdout__)
        return ""


def _reply(conversation: Any, line: str, quiet: bool) -> str:
    """Print the answer as it comes; Ctrl-C ends it, not the conversation."""
    said, answer = list[str](), conversation.say(line)
    try:
        said.extend(_shown(piece, quiet=quiet) for piece in answer)
    except KeyboardInterrupt:
        answer.close()
    if not quiet:
        print(file=sys.__stdout__)
        if conversation.stopped == "context":
            print(full_line(conversation.decoder), file=sys.stderr)
    return "".join(said)


def _reading(speaker: Pragnosia, *, quiet: bool) -> AbstractContextManager[Counting | None]:
    """The bar over a prompt."""
    return bar("reading", quiet=quiet, counts=True, disk=bytes_from_disk(speaker))


def _shown(piece: str, *, quiet: bool) -> str:
    if not quiet:
        print(piece, end="", file=sys.__stdout__, flush=True)
    return piece


def counted(speaker: Pragnosia) -> Account:
    """What the model costs per token."""
    from pragnosia.measure.accounting import account, stored

    model = speaker.model
    config: Any = model.config
    # a model whose units lie on disk holds only a part of what it has
    return account(model if speaker.plan is None else config, precision=stored(model))


def spent(speaker: Pragnosia, trace: Trace, measured: Any, climbed: int = 0) -> dict[str, Any]:
    """Operations, bytes and joules of what actually woke, prompt included; `climbed` tokens of it by climbs."""
    from pragnosia.measure.activity import ActivityMeter
    from pragnosia.measure.energy import energy_model

    model = speaker.model
    meter, past = ActivityMeter(counted(speaker)), 0
    for routings, tokens in trace.steps():
        meter.add(routings, tokens=tokens, past=past, logits=1)
        past += tokens
    for climb in trace.climbs:
        meter.climbed(climb)
    for effort in trace.recalls:
        meter.recalled(effort)
    meter.said(climbed)
    activity = meter.activity()
    joules = activity.energy(energy_model(device=model.device.type), measured)
    return {
        "operations_per_token": activity.operations_per_token,
        "bytes_per_token": activity.bytes_per_token,
        "joules": joules.joules,
        "joules_source": joules.source,
    }


def full_line(decoder: Decoder) -> str:
    """That an answer had to end, for people."""
    if decoder.limit < decoder.model.config.max_position_embeddings:
        return f"[ended: the {decoder.limit} tokens that the plan has room for are full; see --context]"
    return f"[ended: the model's context of {decoder.limit} tokens is full]"


def cost_line(values: dict[str, Any]) -> str:
    """What an answer cost, for people; two digits of speed where there are fewer before the point."""
    rate = values["tokens_per_second"]
    return (
        f"[{plural(values['tokens'], 'token')}, {f'{rate:.2g}' if rate < 100 else f'{rate:.0f}'} tokens/s, "
        f"{format_count(values['operations_per_token'])} operations and {format_bytes(values['bytes_per_token'])} "
        f"per token, {format_joules(values['joules'])} by {values['joules_source']}]"
    )
