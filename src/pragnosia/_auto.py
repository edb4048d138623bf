"""Make transformers' Auto classes know our models, without importing transformers before its time.

transformers takes seconds to import, and `pragnosia --help` must not wait for it. So registration runs at once if
the Auto module is loaded already, else right after whoever needs it has loaded it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_AUTO = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Register now or as soon as transformers' Auto classes are there."""
    if _AUTO in sys.modules:
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from pragnosia.model.configuration import PragnosiaConfig
    from pragnosia.model.modeling import PragnosiaForCausalLM, PragnosiaModel

    AutoConfig.register(PragnosiaConfig.model_type, PragnosiaConfig, exist_ok=True)
    AutoModel.register(PragnosiaConfig, PragnosiaModel, exist_ok=True)
    AutoModelForCausalLM.register(PragnosiaConfig, PragnosiaForCausalLM, exist_ok=True)


class _Watcher(MetaPathFinder):
    """Sees the Auto module being imported, and steps aside for good."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


class _RegisterAfter(Loader):
    """The module's own loader, and our registration after it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()
