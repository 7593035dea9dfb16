"""Installed from a wheel, without the repository: console scripts, configs by name, the jobs' own command lines."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from studies import REPOSITORY

SCRIPTS = ("chexseg-sweep", "chexseg-report", "chexseg-explain", "chexseg-predict", "chexseg-export", "chexseg-store")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the console scripts in an environment that has the wheel and this environment's other packages.

    Making it needs no network.
    """
    folder = tmp_path_factory.mktemp("install")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # pip would find the repository
    source = folder / "source"  # a copy, as a build leaves files beside its sources
    source.mkdir()
    for name in ("chexseg_ray", "configs", "pyproject.toml", "README.md", "LICENSE"):
        path = REPOSITORY / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(wheel, check=True, timeout=300, capture_output=True, cwd=folder, env=env)
    venv.create(folder / "env", with_pip=True)
    bin_folder = folder / "env" / "bin"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env"), "platbase": str(folder / "env")}))
    packages = folder / "packages"  # this environment's, without the editable install of the package itself
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "chexseg_ray" not in path.name and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    (site / "others.pth").write_text(f"{packages}\n")
    (file,) = folder.glob("chexseg_ray-*.whl")
    install = [str(bin_folder / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(file)]
    subprocess.run(install, check=True, timeout=300, capture_output=True, cwd=folder, env=env)
    return bin_folder


def run(scripts: Path, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command, env = [str(scripts / name), *arguments], {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.ray
def test_the_installed_scripts_plan_the_shipped_configs_from_any_folder(scripts: Path, tmp_path: Path) -> None:
    found = run(scripts, "python", "-c", "import chexseg_ray; print(chexseg_ray.__file__)", cwd=tmp_path)
    assert str(scripts.parent) in found.stdout, "the wheel, and not the repository"
    for arguments, last in (
        (["--plan"], "0 steps are built, 78 are missing"),
        (["--plan", "paper"], "0 steps are built, 260 are missing"),
    ):
        done = run(scripts, "chexseg-sweep", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert last in done.stdout
    for name in SCRIPTS:
        done = run(scripts, name, "--version", cwd=tmp_path)
        assert done.stdout.startswith("chexseg_ray 0."), done.stderr


def test_every_package_is_listed_for_the_wheel() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (REPOSITORY / "chexseg_ray").rglob("__init__.py")}
    names = {".".join(folder.relative_to(REPOSITORY).parts) for folder in folders}
    assert set(listed) == names | {"chexseg_ray.configs"}
