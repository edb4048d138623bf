"""The house itself: names, sizes, floors, dependencies, and nothing that would run a stranger's bytes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pragnosia"
FOLDERS = ("src", "tests", "benchmarks", "examples")

DRAWERS = {"util", "utils", "common", "helper", "helpers", "misc", "manager", "managers"}
MAX_LINES = 400
LEAN_ROOMS = {"model", "spiking", "learning", "plasticity", "store"}
APPLICATION_LIBRARIES = {"accelerate", "peft", "fastapi", "typer", "datasets"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# The front door and what needs no floor: the package itself is checked as whatever imports it.
NOT_ROOMS = {"__init__", "py.typed", "__pycache__"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def syntax(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))


def imported(nodes: list[ast.AST]) -> set[str]:
    """First names of what is imported, absolute imports only."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def contracts(project: dict[str, Any]) -> dict[str, Any]:
    return {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}


@pytest.fixture(scope="module")
def floors(contracts: dict[str, Any]) -> list[list[str]]:
    """Rooms of each floor as they are written, planned ones in parentheses; top floor first."""
    return [[room.strip() for room in layer.split("|")] for layer in contracts["floors"]["layers"]]


@pytest.fixture(scope="module")
def rooms() -> set[str]:
    """What stands in the package: folders that hold Python, and files beside them."""
    stand = {path.stem for path in PACKAGE.glob("*.py")}
    stand |= {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    return stand - NOT_ROOMS


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = [place(path) for path in sources(*FOLDERS) if DRAWERS & {path.stem, *path.relative_to(ROOT).parts[:-1]}]
    assert drawers == [], "name each file after its one idea"


def test_files_fit_in_one_head() -> None:
    long = {}
    for path in sources(*FOLDERS):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            long[place(path)] = lines
    assert long == {}, f"past {MAX_LINES} lines: two reasons to change?"


def test_every_room_declares_its_floor(rooms: set[str], floors: list[list[str]]) -> None:
    declared = {room.strip("()") for floor in floors for room in floor}
    assert rooms - declared == set(), "say in pyproject.toml which floor it stands on"


def test_rooms_without_parentheses_stand(rooms: set[str], floors: list[list[str]]) -> None:
    promised = {room for floor in floors for room in floor if not room.startswith("(")}
    assert promised - rooms == set()


def test_floors_contract_is_exhaustive(contracts: dict[str, Any]) -> None:
    floors = contracts["floors"]
    assert floors["containers"] == ["pragnosia"]
    assert floors["exhaustive"] is True
    assert "exhaustive_ignores" not in floors
    assert "ignore_imports" not in floors


def test_lean_rooms_are_kept_lean(rooms: set[str], contracts: dict[str, Any]) -> None:
    contract = contracts["minds-stay-lean"]
    assert {f"pragnosia.{room}" for room in LEAN_ROOMS & rooms} == set(contract["source_modules"])
    assert set(contract["forbidden_modules"]) >= APPLICATION_LIBRARIES


def test_tests_mirror_the_rooms(rooms: set[str]) -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders - rooms == {"shared"}, "tests/<room>/test_<file>.py, and what several of them import"


def test_nothing_unpickles() -> None:
    guilty = {
        place(path): sorted(found)
        for path in sources("src", "benchmarks", "examples")
        if (found := imported(syntax(path)) & UNPICKLERS)
    }
    assert guilty == {}, "a pickle runs code: use safetensors and JSON"


def _unsafe_load(node: ast.AST) -> bool:
    """`torch.load(…)` without weights_only=True, or any `load(…, allow_pickle=True)`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"):
        return False
    said = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
    is_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
    return (is_torch and said.get("weights_only") is not True) or bool(said.get("allow_pickle"))


@pytest.mark.parametrize(
    ("line", "unsafe"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=flag)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("json.load(file)", False),
    ],
)
def test_unsafe_loads_are_seen(line: str, unsafe: bool) -> None:
    assert _unsafe_load(ast.parse(line, mode="eval").body) is unsafe


def test_nothing_loads_unsafely() -> None:
    guilty = [
        f"{place(path)}:{getattr(node, 'lineno', 0)}"
        for path in sources(*FOLDERS)
        for node in syntax(path)
        if _unsafe_load(node)
    ]
    assert guilty == [], "torch.load only with weights_only=True, never allow_pickle"


def _declared(project: dict[str, Any]) -> list[Requirement]:
    extras = project["project"]["optional-dependencies"]
    lines = project["project"]["dependencies"] + [line for extra in extras.values() for line in extra]
    return [requirement for line in lines if (requirement := Requirement(line)).name != project["project"]["name"]]


def test_what_is_imported_is_declared(project: dict[str, Any]) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in _declared(project)}
    owners = packages_distributions()
    undeclared = {}
    for path in sources("src"):
        for name in imported(syntax(path)) - set(sys.stdlib_module_names) - {"pragnosia"}:
            if not {canonicalize_name(owner) for owner in owners.get(name, [name])} & declared:
                undeclared[name] = place(path)
    assert undeclared == {}, "name the library in pyproject.toml, core or extra"


def _pins() -> dict[str, list[Requirement]]:
    """The lock file: a library's pins, one for each range of Python versions."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def test_the_lock_pins_exactly() -> None:
    loose = [
        str(pin)
        for pins in _pins().values()
        for pin in pins
        if pin.url or [part.operator for part in pin.specifier] != ["=="] or "*" in str(pin.specifier)
    ]
    assert loose == []


def test_the_lock_holds_what_is_declared(project: dict[str, Any]) -> None:
    pins = _pins()
    gpu = {Requirement(line).name for line in project["project"]["optional-dependencies"]["gpu"]}
    for requirement in _declared(project):
        if requirement.name in gpu:
            continue
        assert canonicalize_name(requirement.name) in pins, f"pin {requirement} in requirements.lock"
        for pin in pins[canonicalize_name(requirement.name)]:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_the_lock_fits_a_machine_without_a_gpu() -> None:
    pins = _pins()
    assert "+" not in str(pins["torch"][0]), "no build suffix: the index decides which build"
    unwelcome = {"torchvision", "torchaudio", "triton"} | {name for name in pins if name.startswith("nvidia-cu")}
    assert unwelcome & set(pins) == set()


def test_the_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    import pragnosia

    assert pragnosia.__version__ == project["project"]["version"]
