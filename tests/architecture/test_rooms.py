"""Who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "chexseg_ray"
SCIENCE = {"data", "pseudo", "pretraining", "segmentation", "evaluation"}
ALLOWED = {room: {"data", "errors", room} for room in SCIENCE} | {
    "errors": set(),
    "progress": set(),
    "config": {"errors"},
    "artifacts": {"errors"},
    "pipeline": {"config", "artifacts"},
    "choice": {"artifacts", "pipeline"},
    "cost": {"artifacts", "errors", "segmentation"},
    "plan": {"artifacts", "build", "config", "cost", "pipeline", "progress"},
    "stages": {*SCIENCE, "artifacts", "errors", "progress", "stages"},
    "report": {"artifacts", "choice", "config", "data", "evaluation", "pipeline", "progress", "report", "segmentation"},
    "build": {"artifacts", "config", "errors", "pipeline", "progress", "stages"},
    "trials": {"artifacts", "build", "config", "cost", "demand", "errors", "pipeline", "progress", "stages"},
    "demand": {"build", "config", "errors", "pipeline"},
    "cluster": {"artifacts", "config", "demand", "errors", "progress"},
    "schedule": {"build", "config", "pipeline", "plan"},
    "waiting": {"demand", "errors", "progress"},
    "sweep": {
        "artifacts",
        "build",
        "choice",
        "cluster",
        "config",
        "demand",
        "errors",
        "pipeline",
        "plan",
        "progress",
        "report",
        "schedule",
        "segmentation",
        "stages",
        "trials",
        "waiting",
    },
    "command": {"config", "errors", "progress"},
    "output": {"artifacts", "errors"},
    "models": {"artifacts", "build", "choice", "config", "errors", "progress", "stages"},
    "xrays": {"artifacts", "data", "errors", "progress"},
    "predict": {"artifacts", "cluster", "errors", "models", "output", "progress", "stages", "xrays"},
    "export": {"artifacts", "errors", "models", "output", "progress", "stages"},
}
RAY = {"cluster", "stages", "sweep", "trials"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    own = {m.split(".")[1] for m in imports(path) if m.startswith("chexseg_ray.")}
    assert own <= ALLOWED[room_of(path)], f"{path.name} imports {own - ALLOWED[room_of(path)]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_ray_is_in_one_room(path: Path) -> None:
    uses_ray = any(m.split(".")[0] == "ray" for m in imports(path))
    assert not uses_ray or room_of(path) in RAY


def test_every_package_has_a_room() -> None:
    assert {room_of(p) for p in FILES} == set(ALLOWED)


def test_jobs_are_at_most_30_lines() -> None:
    for job in sorted((PACKAGE.parent / "jobs").glob("*.py")):
        assert len(job.read_text(encoding="utf-8").splitlines()) <= 30, job.name


def test_no_broad_except_and_no_pickle() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path
                assert not (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")), path
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                assert [alias.name for alias in node.names] == ["UnpicklingError"], f"{path}: torch.load's error alone"
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "dill", "cloudpickle"}, path
