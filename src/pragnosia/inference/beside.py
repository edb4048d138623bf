"""Files beside a model: what was measured of it, as JSON, written whole or not at all and checked when read.

torch is not loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pragnosia.errors import CheckpointError

T = TypeVar("T")


def write_beside(path: Path, values: Mapping[str, Any]) -> None:
    """Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_beside(path: Path, made: Callable[[Any], T]) -> T | None:
    """What `made` makes of it, None where there is none. Raises CheckpointError for what it makes nothing of."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({_first(error)}); remove it, or calibrate again") from error
    try:
        return made(values)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no calibration ({_first(error)}); remove it, or calibrate again") from error


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
