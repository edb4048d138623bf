"""Which lessons say a text: the one that does, or those that it was cut into when it was taught."""

from __future__ import annotations

from pragnosia.store.episodes import EpisodicStore


def lessons_of(store: EpisodicStore, text: str) -> list[int]:
    """Ids of the lesson that says just `text`, or of those that say it one after the other; none if one is missing.

    A text longer than a model's context is several lessons (inference/teaching.py), and whoever wants it forgotten has
    the text and not its parts. White space between parts does not count.
    """
    whole = store.find(text)
    if whole is not None:
        return [whole]
    rest, found = text.strip(), list[int]()
    parts = sorted(((part, id_) for id_, part in store.texts() if part in rest), key=lambda one: -len(one[0]))
    while rest:
        part, id_ = next(((part, id_) for part, id_ in parts if rest.startswith(part)), ("", 0))
        if not part:
            return []
        found.append(id_)
        rest = rest[len(part) :].lstrip()
    return list(dict.fromkeys(found))
