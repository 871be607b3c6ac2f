"""What setup.cfg declares is what the tree holds."""

from __future__ import annotations

import configparser
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def declared() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    assert parser.read(ROOT / "setup.cfg")
    return parser


def packages_of_the_tree() -> set[str]:
    """Folders with Python files under forkserve/ and workers/, by the names under which they are imported."""
    found = set()
    for folder, package in (("forkserve", "forkserve"), ("workers", "forkserve.workers")):
        for directory, subdirectories, names in os.walk(ROOT / folder):
            subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
            if any(name.endswith(".py") for name in names):
                found.add(".".join((package, *Path(directory).relative_to(ROOT / folder).parts)))
    return found


def test_every_package_of_the_tree_is_listed() -> None:
    listed = declared()["options"]["packages"].split()
    assert listed == sorted(listed)
    # What is listed beforehand and still empty is not missed by anybody; what is there and not listed would be.
    assert packages_of_the_tree() <= set(listed)
    assert all((ROOT / name.replace(".", "/")).is_dir() for name in listed)


def test_the_link_points_to_the_worker_types() -> None:
    link = ROOT / "forkserve" / "workers"
    assert link.is_symlink()
    assert os.readlink(link) == "../workers"


def test_the_link_is_tracked_as_a_link() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-s", "forkserve/workers"], cwd=ROOT, capture_output=True, check=False, timeout=60
    )
    assert listed.returncode or listed.stdout.startswith(b"120000 ")


def test_the_version_is_the_one_that_the_package_says() -> None:
    import forkserve

    assert declared()["metadata"]["version"] == "attr: forkserve.__version__"
    assert f"## {forkserve.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_make_target_says_what_it_does() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    targets = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert targets == set("help run test check lint types model fuzz bench crowd build clean".split())


def test_continuous_integration_is_a_sound_script() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
