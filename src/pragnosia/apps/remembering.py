"""`teach`, `recall`, `forget` and `memory`: what a model was told, kept in one shot and taken back for good."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering, one_line
from pragnosia.apps.budgeting import bar, size_of
from pragnosia.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from pragnosia.inference.chat import Conversation
    from pragnosia.inference.remembering import Recalled
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.store.episodes import EpisodicStore

Model = Annotated[Path, typer.Argument(help="A model directory or a GGUF file.", metavar="MODEL")]
Store = Annotated[Path | None, typer.Option(help="A folder with what was taught; default MODEL/episodes.")]
NoMemory = Annotated[bool, typer.Option("--no-memory", help="Leave out what was taught.")]
Cache = Annotated[bool, typer.Option("--cache", help="Also recall what was read or said earlier in this text.")]
Beside = Annotated[
    Path | None, typer.Option(help="A coincidence learner (configs/coincidence.yaml) that shares in every token.")
]
_SHOWN = 60  # characters of a lesson


def chosen_store(store: Path | None, no_memory: bool) -> Path | bool:
    """What `Pragnosia.from_pretrained` takes as `store`. Raises ConfigError for both options."""
    if store is not None and no_memory:
        from pragnosia.errors import ConfigError

        raise ConfigError("--store and --no-memory exclude each other; give one of them")
    return store if store is not None else not no_memory


@answering
def teach(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="What to keep.")] = None,
    file: Annotated[
        str | None, typer.Option(help="Text to keep, paragraph by paragraph: a file, a folder, or as for --data.")
    ] = None,
    store: Store = None,
    limit: Annotated[
        str | None,
        typer.Option(help="Bytes the store may have, as in 256MiB; default 1GiB. Then the least worth goes."),
    ] = None,
    source: Annotated[str, typer.Option(help="Where it comes from; default the file's name.")] = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Keep a text in one shot: the model reads it once, and none of its weights change.

    A lesson longer than the model's context is cut at ends of sentences, and that is said.
    """
    bound = None if limit is None else size_of("--limit", limit)
    texts = _given(text, file)
    speaker = _speaker(model, store, quiet=as_json)
    started = time.perf_counter()
    with bar("teaching", quiet=as_json, counts=True) as told:
        taught = speaker.remembering.teach(texts, source or file or "", limit=bound, told=told)
    seconds = time.perf_counter() - started
    folder = speaker.remembering.folder
    values: dict[str, Any] = {
        "store": str(folder),
        "ids": list(taught.ids),
        "lessons": len(taught.ids),
        "tokens": taught.tokens,
        "cut": taught.cut,
        "repeated": taught.repeated,
        "evicted": list(taught.evicted),
        "passed_over": taught.passed_over,
        "seconds": seconds,
    }
    said = f"kept {_lessons(len(taught.ids))} of {format_count(taught.tokens)} tokens in {folder}"
    lines = [f"{said}, {format_duration(seconds)}"]
    if taught.repeated:
        lines.append(f"{taught.repeated} of them known before: they count once more")
    if taught.cut:
        lines.append(f"{taught.cut} longer than the context of {speaker.remembering.context} tokens: cut into several")
    if taught.passed_over:
        lines.append(f"{taught.passed_over} of a single token passed over: nothing in them could recall anything")
    if taught.evicted:
        lines.append(f"{_lessons(len(taught.evicted))} forgotten for room (--limit): those least worth keeping")
    return Answer(values, lines)


@answering
def recall(
    model: Model,
    text: Annotated[str, typer.Argument(help="What is said; what does it bring to mind?")],
    top: Annotated[int, typer.Option(min=1, help="Lessons to show.")] = 5,
    store: Store = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Show what would come to mind behind a text, and why: shared words, likeness of states, weight it would get."""
    from dataclasses import asdict

    found = _speaker(model, store, quiet=as_json).recall(text, top)
    lines = [_shown(one) for one in found] or ["nothing comes to mind"]
    return Answer({"text": text, "recalled": [asdict(one) for one in found]}, lines)


@answering
def forget(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="The whole text of a lesson.")] = None,
    id: Annotated[int | None, typer.Option(help="Its number, as `recall` shows it.")] = None,  # noqa: A002
    store: Store = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Remove a lesson from every page of the store; nothing of it stays on disk.

    The text of one that was cut when it was taught takes all its parts.
    """
    from pragnosia.errors import ConfigError, StoreError
    from pragnosia.store.said import lessons_of

    if (text is None) == (id is None):
        raise ConfigError("forget takes the text of a lesson or --id N, one of them")
    with _opened(model, store, readonly=False) as held:
        gone = held.forget([id] if id is not None else lessons_of(held, text or ""))
    if not gone:
        what = f"lesson {id}" if id is not None else f"lesson that says {text!r}"
        raise StoreError(f"the store {held.folder} holds no {what}; see what it holds: pragnosia recall, memory export")
    return Answer({"store": str(held.folder), "forgotten": gone}, [f"forgotten: {_named(gone)} of {held.folder}"])


@answering
def stats(model: Model, store: Store = None, as_json: AsJson = False, debug: Debug = False) -> Answer:
    """What a store holds, and what it takes."""
    with _opened(model, store) as held:
        values = held.stats()
    day = [time.strftime("%Y-%m-%d", time.localtime(values[name])) for name in ("oldest", "newest")]
    rows = [
        ("store", values["store"]),
        ("lessons", f"{format_count(values['episodes'])}, taught {format_count(values['lessons_taught'])} time(s)"),
        ("entries", f"{format_count(values['entries'])} of {format_bytes(values['bytes_per_entry'])} each"),
        ("size", f"{format_bytes(values['bytes'])} of {format_bytes(values['limit'])}"),
        ("surprise", f"{values['mean_surprise']:.2f} nats per token, mean"),
        *((("taught", f"{day[0]} to {day[1]}"),) if values["episodes"] else ()),
        *((("consolidated", _of_lessons(values)),) if values["consolidated"] else ()),
    ]
    return Answer(values, aligned(rows))


@answering
def export_store(
    model: Model,
    out: Annotated[Path, typer.Argument(help="A folder to make.")],
    store: Store = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Write a store as JSON lines and safetensors."""
    from pragnosia.store.travel import export

    with _opened(model, store) as held:
        count = export(held, out)
    return Answer({"out": str(out), "lessons": count}, [f"exported {_lessons(count)} to {out}"])


@answering
def import_store(
    model: Model,
    source: Annotated[Path, typer.Argument(help="A folder that `memory export` made.")],
    anew: Annotated[
        bool, typer.Option("--anew", help="Let this model read the texts: they were another model's.")
    ] = False,
    store: Store = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Add what another store held; lessons that are known count once more."""
    from pragnosia.store.opening import check_header
    from pragnosia.store.travel import episodes, lessons, made_by

    made = made_by(source)
    if anew:
        speaker = _speaker(model, store, quiet=as_json)
        taught = speaker.remembering.teach([line["text"] for line in lessons(source)], str(source))
        known, count, folder = taught.repeated, len(taught.ids), speaker.remembering.folder
    else:
        from pragnosia.inference.loading import load_config
        from pragnosia.inference.remembering import header_of
        from pragnosia.store.episodes import EpisodicStore

        wanted, folder = header_of(model, load_config(model)), _folder(model, store)
        check_header(made, wanted, source)
        known = count = 0
        with EpisodicStore.open(folder, wanted) as held:
            for episode in episodes(source):
                known += len(held.write([episode]).repeated)
                count += 1
    values = {"store": str(folder), "lessons": count, "repeated": known}
    return Answer(values, [f"imported {_lessons(count)} into {folder}, {known} of them known before"])


@answering
def compact(model: Model, store: Store = None, as_json: AsJson = False, debug: Debug = False) -> Answer:
    """Give back the room of what was forgotten."""
    with _opened(model, store, readonly=False) as held:
        before, after = held.compact()
    values = {"store": str(held.folder), "bytes_before": before, "bytes": after}
    return Answer(values, [f"{held.folder}: {format_bytes(before)} before, {format_bytes(after)} now"])


def teach_in_talk(conversation: Conversation, text: str) -> None:
    """`/teach TEXT`: kept in the store, for this talk and those to come."""
    import sys

    from pragnosia.errors import PragnosiaError

    speaker = conversation.speaker
    try:
        taught = speaker.teach(text, "chat")
    except PragnosiaError as error:  # a lesson that cannot be kept is not the end of a talk
        print(f"pragnosia: {one_line(error)}", file=sys.stderr)
        return
    conversation.decoder.mixing = speaker.remembering.mixing()
    print(f"[kept {_lessons(len(taught.ids))} in {speaker.remembering.folder}]", file=sys.stderr)


def _given(text: str | None, file: str | None) -> list[str]:
    """The texts to keep. Raises ConfigError, DataError, StoreError, before a model is loaded."""
    from pragnosia.errors import ConfigError, StoreError
    from pragnosia.inference.sampling import check_text

    if (text is None) == (file is None):
        raise ConfigError("teach takes a text or --file, one of them")
    if text is not None:
        check_text(text)
        texts = [text]
    else:
        from pragnosia.data import documents
        from pragnosia.store.words import paragraphs

        texts = [part for document in documents(str(file)) for part in paragraphs(document)]
    if not any(one.strip() for one in texts):
        raise StoreError("the lesson is empty; give some text")
    return texts


def _speaker(model: Path, store: Path | None, *, quiet: bool) -> Pragnosia:
    """The model with its store."""
    from pragnosia.apps.budgeting import open_speaker
    from pragnosia.inference.directory import check_speaker

    check_speaker(model)
    return open_speaker(model, None, None, quiet=quiet, speculate=False, store=chosen_store(store, False))


def _opened(model: Path, store: Path | None, *, readonly: bool = True) -> EpisodicStore:
    """The store by itself: no model is loaded."""
    from pragnosia.store.episodes import EpisodicStore

    return EpisodicStore.peek(_folder(model, store), readonly=readonly)


def _folder(model: Path, store: Path | None) -> Path:
    from pragnosia.store.opening import beside

    return store if store is not None else beside(model)


def _lessons(count: int) -> str:
    return f"{count} lesson" if count == 1 else f"{count} lessons"


def _named(ids: list[int]) -> str:
    return f"lesson{'' if len(ids) == 1 else 's'} {', '.join(map(str, ids))}"


def _of_lessons(values: dict[str, Any]) -> str:
    return f"{format_count(values['consolidated'])} of them, which the model knows by itself; they go first for room"


def _shown(one: Recalled) -> str:
    text = one.text if len(one.text) <= _SHOWN else one.text[: _SHOWN - 1] + "…"
    words = ", ".join(one.words) or "no word"
    why = f"weight {one.weight:.3f}  similarity {one.similarity:.2f}  brings {one.brings[:_SHOWN]!r}"
    return f"{one.id:>6}  {why}\n        {text!r} shares {words}"
