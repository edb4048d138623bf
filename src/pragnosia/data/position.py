"""A position in an endless order of rows, as part of a checkpoint: plain JSON, and refused in any other order."""

from __future__ import annotations

from collections.abc import Mapping

from pragnosia.errors import DataError


def written(row: int, identity: Mapping[str, object]) -> dict[str, object]:
    """The next row, and what it is a row of."""
    return {"row": row, **identity}


def taken_up(state: Mapping[str, object], identity: Mapping[str, object]) -> int:
    """The row to go on with. Raises DataError where `state` was taken in other data, or in another order."""
    for key, here in identity.items():
        if state.get(key) != here:
            raise DataError(
                f"cannot resume: {key.replace('_', ' ')} was {state.get(key)!r}, is {here!r}; "
                "resume with the data and settings the run was started with"
            )
    row = state.get("row")
    if not isinstance(row, int) or row < 0:
        raise DataError(f"cannot resume: the position in the data is {row!r}, expected a row number")
    return row
