"""What all tests share: where the rows are, and how properties are searched."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from envs import ToolEnv
from tests import needs
from tools import PythonTool, ToolContext, ToolUnavailable
from tools.sandbox import docker_engine

ROOT = Path(__file__).resolve().parent.parent

# A loaded machine is slow now and then; no property is about time.
settings.register_profile("appo", deadline=None, print_blob=True)
settings.load_profile("appo")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What needs a Docker engine skips where none answers."""
    if item.get_closest_marker("docker"):
        try:
            docker_engine._connect().close()
        except ToolUnavailable as error:
            needs.lacking("Docker Engine", str(error), "in CI")


@pytest.fixture(scope="session")
def data_dir():
    """The folder of benchmark rows: APPO_DATA, or beside the repository; skips without one."""
    folder = Path(os.environ.get("APPO_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "benchmarks").is_dir():
        needs.lacking(*needs.ROWS)
    return folder


@pytest.fixture(scope="session")
def sandboxed_python():
    """One Python tool in the local sandbox for all tests; None where the kernel has none."""
    tool = PythonTool("local")
    try:
        tool.run(tool.initial_state(ToolContext()), "1")
    except ToolUnavailable:
        yield None
    else:
        yield tool
    tool.close()


@pytest.fixture
def python_env(sandboxed_python):
    """SyntheticQA with Python in the local sandbox; skips where the kernel has none."""
    if sandboxed_python is None:
        needs.lacking(*needs.SANDBOX)
    return ToolEnv("SyntheticQA", tools=("search", sandboxed_python))


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Folder of a tiny model that writes well-formed turns most of the time."""
    import torch

    from tests.learner_fakes import teach

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("taught")
    teach(folder)
    return folder
