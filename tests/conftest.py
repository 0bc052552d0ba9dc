"""What all tests share: where the rows are, and how properties are searched."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from envs import ToolEnv
from tools import ToolContext, ToolUnavailable

ROOT = Path(__file__).resolve().parent.parent

# A loaded machine is slow now and then; no property is about time.
settings.register_profile("appo", deadline=None, print_blob=True)
settings.load_profile("appo")


@pytest.fixture(scope="session")
def data_dir():
    """The folder of benchmark rows: APPO_DATA, or beside the repository; skips without one."""
    folder = Path(os.environ.get("APPO_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "benchmarks").is_dir():
        pytest.skip(f"no rows of the benchmarks under {folder}; set APPO_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def python_env():
    """SyntheticQA with Python in the local sandbox; skips where the kernel has none."""
    env = ToolEnv("SyntheticQA", sandbox="local")
    tool = env.tools[env.benchmark.tools.index("python")]
    try:
        tool.run(tool.initial_state(ToolContext()), "1")
    except ToolUnavailable as error:
        env.close()
        pytest.skip(f"no local sandbox: {error}")
    yield env
    env.close()
