"""Builds the first message to a hub: sources of its programs, settings and environment."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence

from tools.sandbox.protocol import Limits

STATE_MODULES = ("kernel", "filter", "cell", "state")
"""Modules of `tools.repl` for the processes that run cells, each after those that it imports."""

HUB_MODULES = ("kernel", "usage", "link", "jobs", "patrol")
"""Modules for the hub; its launcher, `hub` and `main` follow."""

PRELOADED = [
    "math",
    "cmath",
    "decimal",
    "fractions",
    "statistics",
    "itertools",
    "functools",
    "collections",
    "re",
    "json",
    "datetime",
    "heapq",
    "bisect",
    "string",
    "copy",
    "tempfile",
    "shutil",
    "subprocess",
    "numpy",
    "numpy.random",
    "sympy",
]
"""Modules that the first process imports if they are installed, so that no cell waits for them."""


def read_sources(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, source) of modules of `tools.repl`."""
    folder = importlib.resources.files("tools") / "repl"
    return [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in names]


def read_boot_code() -> str:
    """Return the program that the interpreter in a sandbox is started with."""
    return read_sources(["boot"])[0][1]


def build_boot_message(
    launcher: str, settings: Mapping[str, object], state: Mapping[str, object], limits: Limits
) -> dict[str, object]:
    """Return the first message to a hub, with what the hub sends on to its first process."""
    limit_values = dataclasses.asdict(limits)
    return {
        "modules": read_sources([*HUB_MODULES, launcher, "hub", "main"]),
        "entry": "main",
        "settings": {
            **settings,
            "launcher": launcher,
            "boot": read_boot_code(),
            "modules": read_sources(STATE_MODULES),
            "limits": limit_values,
            "state": {**state, "limits": limit_values},
        },
    }


def build_environment(folder: str) -> dict[str, str]:
    """Return the environment of processes that run cells; nothing in it is the learner's."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "Agg",
        **{f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR")},
    }
