"""Documents from Hugging Face `datasets`, streamed: from the hub, or from files and folders on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pragnosia.data.rows import PLAIN, Rows
from pragnosia.errors import DataError

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_REACH_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """One split of a dataset, never downloaded whole."""

    path: str
    config: str | None = None
    split: str = "train"
    rows: Rows = PLAIN
    # What to type instead when there is no network.
    offline: str = "download it elsewhere and pass its folder"

    @property
    def name(self) -> str:
        return ":".join(["hf", self.path, *([self.config] if self.config else [])])

    def documents(self) -> Iterator[str]:
        yield from self.rows.documents((f"{self.name}, row {i}", row) for i, row in enumerate(self._stream()))

    def identity(self) -> dict[str, object]:
        local = Path(self.path)
        changed = [local.stat().st_size, local.stat().st_mtime_ns] if local.exists() else None
        dataset = [self.path, self.config, self.split, changed]
        return {"dataset": dataset, "rows": self.rows.identity()}

    def _stream(self) -> Iterator[Mapping[str, object]]:
        datasets = _datasets()
        local = Path(self.path).exists()
        if not local:
            self._reach()
        try:
            yield from datasets.load_dataset(**self._arguments(), split=self.split, streaming=True)
        except Exception as error:  # whatever its readers and the HTTP library of the day raise
            advice = "check the path" if local else self.offline
            raise DataError(f"cannot read {self.name}: {_first_line(error)}; {advice}") from error

    def _arguments(self) -> dict[str, object]:
        local = Path(self.path)
        if not local.is_file():
            return {"path": self.path, "name": self.config}
        kind = next((suffix for suffix in local.suffixes if suffix in _BUILDERS), None)
        if kind is None:
            raise DataError(f"{local}: datasets has no reader for it here; expected {', '.join(_BUILDERS)}")
        whole = {"sample_by": "document"} if kind == ".txt" else {}
        return {"path": _BUILDERS[kind], "data_files": str(local), **whole}

    def _reach(self) -> None:
        """Ask the hub once: without a network `load_dataset` tries for half a minute before it says so."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            HfApi().dataset_info(self.path, timeout=_REACH_SECONDS)
        except RepositoryNotFoundError:
            raise DataError(f"the hub has no dataset {self.path!r}, or not for you; check the name or log in") from None
        except Exception as error:  # whatever the HTTP library of the day raises
            raise DataError(f"cannot reach {self.path} on the hub ({_first_line(error)}); {self.offline}") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("hub datasets need the library `datasets`; pip install 'pragnosia[data]'") from error
    return datasets


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
