"""Wheel and source distribution are built from a copy of the tracked files, looked into, and installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import forkserve

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".venv*", ".git", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis", "node_modules"
)

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=environ,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, out: Path) -> dict[str, Path]:
    run(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    return {path.suffix: path for path in out.iterdir()}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``{".whl": …, ".gz": …}``: the sdist of the tree and, as `build` does it, the wheel made from that sdist."""
    pytest.importorskip("build", reason="the package `build` makes the artifacts")
    source = tmp_path_factory.mktemp("source") / "forkserve"
    shutil.copytree(ROOT, source, symlinks=True, ignore=LEFT_OUT)
    return build(source, tmp_path_factory.mktemp("dist"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_and_nothing_else_at_the_top(artifacts: dict[str, Path]) -> None:
    names = set(contents(artifacts[".whl"]))
    assert {name.split("/")[0] for name in names} == {"forkserve"}
    assert "forkserve/py.typed" in names
    expected = {
        f"{package}/{(Path(directory) / name).relative_to(ROOT / folder)}"
        for folder, package in (("forkserve", "forkserve"), ("workers", "forkserve/workers"))
        for directory, _subdirectories, files in os.walk(ROOT / folder)
        for name in files
        if name.endswith((".py", ".typed"))
    }
    assert names == expected


def test_the_wheel_is_the_same_from_the_tree_and_from_the_source_distribution(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=LEFT_OUT)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert contents(wheel) == contents(artifacts[".whl"])


def test_the_source_distribution_holds_what_its_tests_need(artifacts: dict[str, Path]) -> None:
    with tarfile.open(artifacts[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "setup.cfg", "pyproject.toml"} <= names
    assert {"tests/packaging/test_artifacts.py", "docs/examples/demo.py"} <= names
    assert not any("__pycache__" in name for name in names)


def test_an_installed_wheel_answers_to_its_command(artifacts: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", artifacts[".whl"], cwd=tmp_path)
    assert forkserve.__version__ in run(tmp_path / "venv" / "bin" / "forkserve", "--version", cwd=tmp_path)
    assert forkserve.__version__ in run(python, "-m", "forkserve", "--version", cwd=tmp_path)
    code = "import sys, forkserve.workers; print('workers' in sys.modules)"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "False"
