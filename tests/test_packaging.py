"""What a wheel holds: the four packages, whole, and nothing beside them."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import ROOT

PACKAGES = {"envs", "learners", "tools", "benchmarks"}


def test_the_four_packages_are_those_of_one_parent_directory():
    parents = {Path(importlib.util.find_spec(name).origin).parent.parent for name in PACKAGES}
    assert parents == {ROOT}


def test_the_project_names_its_packages_instead_of_having_them_found():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES
    assert project["project"]["name"] == "appo-gym"
    assert "entry-points" not in project["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel built from this tree, without reaching any network."""
    needs.packages("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (made,) = folder.glob("appo_gym-*.whl")
    with zipfile.ZipFile(made) as archive:
        return archive.namelist()


def test_a_wheel_holds_the_four_packages_and_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_a_wheel_holds_every_file_that_the_packages_need(wheel):
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(wheel)


def test_a_wheel_holds_no_test_and_no_run(wheel):
    assert not [name for name in wheel if name.partition("/")[0] in ("tests", "runs")]
