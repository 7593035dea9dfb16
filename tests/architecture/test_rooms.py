"""Who may import whom, read from the source: run `python tests/architecture/rooms.py` to see the house."""

import ast
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _load_rooms() -> Any:
    spec = importlib.util.spec_from_file_location("rooms", Path(__file__).with_name("rooms.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms = _load_rooms()
PACKAGE, FILES = rooms.PACKAGE, rooms.FILES

SCIENCE = ("data", "pseudo", "pretraining", "segmentation", "evaluation", "updates")
BASE = {"errors", "progress", "config", "store"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "progress": set(),
    "command": {"config", "errors", "progress"},
    "config": {"errors"},
    "store": {"errors"},
    **{room: {"data", "errors", "updates"} for room in SCIENCE},
    "study": {"config", "errors", "store"},
    "plan": {*BASE, "study", "segmentation"},
    "cluster": {*BASE, "plan"},
    "engine": {*BASE, "data", "segmentation", "study", "updates"},
    "stages": {*SCIENCE, "config", "engine", "errors", "progress", "store"},
    "sweep": {*BASE, "command", "cluster", "engine", "plan", "report", "stages", "study"},
    "predict": {*BASE, "command", "cluster", "data", "engine", "segmentation", "study"},
    "upkeep": {*BASE, "command", "cluster", "study"},
    "report": {*BASE, "command", "data", "evaluation", "segmentation", "study"},
}
RAY = {"cluster", "engine", "sweep"}
MOST_LINES, MOST_FLOORS, MOST_FLAT = 400, 7, 4
# ray.init raises Exception itself where a process of Ray does not answer; torch.load and safetensors raise more than
# ten kinds of error for damaged files
MAY_CATCH_EVERYTHING = ["cluster/session.py: _start_here", "pretraining/checkpoints.py: _load"]


def names(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = rooms.room_of(path)
    assert rooms.imported_rooms(path) <= ALLOWED[room], (
        f"{path.name} imports {rooms.imported_rooms(path) - ALLOWED[room]}"
    )


@pytest.mark.parametrize("path", FILES, ids=names)
def test_ray_is_in_three_rooms(path: Path) -> None:
    uses_ray = any(module.split(".")[0] == "ray" for module in rooms.imported_modules(path))
    assert not uses_ray or rooms.room_of(path) in RAY


def test_every_room_has_a_rule() -> None:
    assert {rooms.room_of(path) for path in FILES} == set(ALLOWED)


def test_no_room_imports_itself_by_way_of_another() -> None:
    assert rooms.circles() == []


def test_the_house_has_at_most_seven_floors_the_jobs_on_top() -> None:
    assert max(rooms.floors().values()) + 1 <= MOST_FLOORS


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_file_is_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_at_most_four_modules_lie_flat_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FLAT


def test_jobs_are_at_most_30_lines() -> None:
    for job in sorted((PACKAGE.parent / "jobs").glob("*.py")):
        assert len(job.read_text(encoding="utf-8").splitlines()) <= 30, job.name


def broad_excepts(path: Path) -> list[str]:
    """The functions with a handler that catches everything: bare, or of Exception, alone or in a tuple."""
    found = []
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            continue
        for node in _own_nodes(function):
            if isinstance(node, ast.ExceptHandler):
                caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else None
                if caught is None or caught & {"Exception", "BaseException"}:
                    found.append(f"{names(path)}: {getattr(function, 'name', 'the module')}")
    return found


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function or module without those of the functions in it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _own_nodes(node)


def test_nothing_catches_every_error_except_at_the_listed_places() -> None:
    assert [place for path in FILES for place in broad_excepts(path)] == MAY_CATCH_EVERYTHING


def test_nothing_imports_pickle() -> None:
    for path in FILES:
        modules = {module.split(".")[0] for module in rooms.imported_modules(path)}
        assert not modules & {"pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}, path


def test_every_room_travels_with_the_installed_package() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"]) - {"chexseg_ray.configs"}
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")}
    assert listed == {".".join(folder.parts) for folder in folders}
