"""Where a brain is wired: the file that a path stands for. Needs no torch, so that a command may ask at once."""

from __future__ import annotations

from pathlib import Path

import yaml

FILE = "brain.yaml"


def brain_file(path: Path) -> Path | None:
    """The file of the brain that a path stands for: a file of populations, or a folder with one; None for neither."""
    if path.is_dir():
        return path / FILE if (path / FILE).is_file() else None
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return path if isinstance(values, dict) and "populations" in values else None
