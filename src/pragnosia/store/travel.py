"""Travel: a store as files that anything can read, and back. JSON lines for the lessons, safetensors for their keys.

OUT/episodes.jsonl        a lesson a line: id, text, source, taught, repetitions, tokens, starts, surprises,
                          and `consolidated` where it is
OUT/keys.safetensors      keys (N, D) in 16 bits, lesson after lesson; what made them in its header
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pragnosia.errors import StoreError
from pragnosia.store.episode import KEY, TOKEN, Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import FORM, Header

LESSONS, KEYS = "episodes.jsonl", "keys.safetensors"
_LISTS = ("tokens", "starts", "surprises")


def export(store: EpisodicStore, out: str | Path) -> int:
    """Write every lesson to a new folder, whole or not at all; how many. Raises StoreError."""
    place = Path(out)
    if place.exists():
        raise StoreError(f"{place} exists; name a folder that does not")
    part = place.with_name(f".{place.name}.{os.getpid()}")
    count, keys = 0, []
    try:
        part.mkdir(parents=True)
        with (part / LESSONS).open("w", encoding="utf-8") as lines:
            known = store.consolidated
            for episode in store.after():
                keys.append(episode.keys)
                count += 1
                line = _line(episode) | ({"consolidated": True} if episode.id in known else {})
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        whole = np.concatenate(keys) if keys else np.zeros((0, store.header.width), KEY)
        made = {name: str(value) for name, value in {"form": FORM, **store.header.__dict__}.items()}
        save_file({"keys": np.ascontiguousarray(whole)}, part / KEYS, metadata=made)
        part.rename(place)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


def made_by(folder: str | Path) -> Header:
    """What made an export. Raises StoreError for what is none, or a newer one's."""
    path = Path(folder) / KEYS
    try:
        with safe_open(path, "np") as held:
            values = dict(held.metadata() or {})
        if int(values["form"]) > FORM:
            raise StoreError(f"{folder} has form {values['form']}, written by a newer Pragnosia; update this one")
        width, limit = int(values["width"]), int(values["limit"])
        return Header(model=values["model"], tokenizer=values["tokenizer"], width=width, limit=limit)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{folder} is no exported store: {path.name} is missing or damaged; export it again"
        ) from error


def lessons(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of an export. Raises StoreError."""
    path = Path(folder) / LESSONS
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                values = json.loads(line)
                if not isinstance(values, dict) or not isinstance(values.get("text"), str):
                    raise StoreError(f"{path}, line {number}: expected an object with a text; export it again")
                yield values
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not JSON lines ({error}); export it again") from error


def episodes(folder: str | Path) -> Iterator[Episode]:
    """What was exported. Raises StoreError where lessons and keys do not fit together."""
    made_by(folder)
    path, start = Path(folder) / KEYS, 0
    with safe_open(path, "np") as held:
        keys = held.get_slice("keys")
        total = int(keys.get_shape()[0])
        for values in lessons(folder):
            try:
                tokens, starts = (np.array(values[name], TOKEN) for name in _LISTS[:2])
                surprises = np.array(values["surprises"], KEY)
                end = start + len(surprises)
                if not (len(tokens) == len(starts) == len(surprises) + 1 >= 2 and end <= total):
                    raise ValueError("lengths differ")
                yield Episode(
                    text=values["text"],
                    source=str(values.get("source", "")),
                    taught=float(values["taught"]),
                    repetitions=int(values["repetitions"]),
                    consolidated=bool(values.get("consolidated", False)),
                    tokens=tokens,
                    starts=starts,
                    surprises=surprises,
                    keys=np.asarray(keys[start:end], KEY),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise StoreError(
                    f"{folder}: the lesson {values['text'][:40]!r} does not fit its keys ({error}); export it again"
                ) from error
            start = end
    if start != total:
        raise StoreError(f"{folder}: {total - start} keys belong to no lesson; export it again")


def _line(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.id,
        "text": episode.text,
        "source": episode.source,
        "taught": episode.taught,
        "repetitions": episode.repetitions,
        **{name: getattr(episode, name).tolist() for name in _LISTS},
    }
