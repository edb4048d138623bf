"""Make transformers' Auto classes know our models, without importing transformers before its time.

transformers takes seconds to import, and `pragnosia --help` must not wait for it. So each registration runs at once if
its Auto module is loaded already, else right after whoever needs it has loaded it. Then only our names are left there,
and an alias under which transformers finds the classes when it is first asked for: transformers loads its Auto modules
halfway through its own start, when our models could not be made yet, and who wants a configuration wants no model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Register now or as soon as transformers' Auto classes are there."""
    awaited = {}
    for name, register in _NOW.items():
        if name in sys.modules:
            register()
        else:
            awaited[name] = _THEN[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watcher)]
    if awaited:
        sys.meta_path.insert(0, _Watcher(awaited))


def _register_name() -> None:
    auto: Any = sys.modules[_CONFIGS]
    auto.CONFIG_MAPPING_NAMES["pragnosia"] = "PragnosiaConfig"
    auto.CONFIG_MAPPING_NAMES["pragnosia-coincidence"] = "CoincidenceConfig"
    auto.CONFIG_MAPPING_NAMES["neurogen"] = "NeuroGenConfig"
    for module in ("pragnosia", "pragnosia_coincidence", "neurogen"):
        sys.modules.setdefault(f"transformers.models.{module}", sys.modules["pragnosia"])


def _register_model_names() -> None:
    auto: Any = sys.modules[_MODELS]
    auto.MODEL_MAPPING_NAMES["pragnosia"] = "PragnosiaModel"
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["pragnosia"] = "PragnosiaForCausalLM"
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["pragnosia-coincidence"] = "CoincidenceForCausalLM"
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["neurogen"] = "NeuroGenForCausalLM"


def _register_models() -> None:
    """With Auto classes that have read their names already."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from pragnosia.model.coincidence import CoincidenceConfig, CoincidenceForCausalLM
    from pragnosia.model.configuration import PragnosiaConfig
    from pragnosia.model.modeling import PragnosiaForCausalLM, PragnosiaModel
    from pragnosia.spiking.neurogen import NeuroGenForCausalLM
    from pragnosia.spiking.neurogen_configuration import NeuroGenConfig

    AutoConfig.register(PragnosiaConfig.model_type, PragnosiaConfig, exist_ok=True)
    AutoModel.register(PragnosiaConfig, PragnosiaModel, exist_ok=True)
    AutoModelForCausalLM.register(PragnosiaConfig, PragnosiaForCausalLM, exist_ok=True)
    AutoConfig.register(CoincidenceConfig.model_type, CoincidenceConfig, exist_ok=True)
    AutoModelForCausalLM.register(CoincidenceConfig, CoincidenceForCausalLM, exist_ok=True)
    AutoConfig.register(NeuroGenConfig.model_type, NeuroGenConfig, exist_ok=True)
    AutoModelForCausalLM.register(NeuroGenConfig, NeuroGenForCausalLM, exist_ok=True)


_NOW = {_CONFIGS: _register_name, _MODELS: _register_models}
_THEN = {_CONFIGS: _register_name, _MODELS: _register_model_names}


class _Watcher(MetaPathFinder):
    """Sees the Auto modules being imported, and steps aside for each for good."""

    def __init__(self, awaited: dict[str, Callable[[], None]]) -> None:
        self.awaited = awaited

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.awaited:
            return None
        register = self.awaited.pop(fullname)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadAndRegister(spec.loader, register)
        return spec


class _LoadAndRegister(Loader):
    """The module's own loader, and our registration after it."""

    def __init__(self, loader: Loader, register: Callable[[], None]) -> None:
        self.loader, self.register = loader, register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.register()
