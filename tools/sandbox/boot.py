"""What a sandbox is started with: source of the hub and of what runs inside, environment."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence

from tools.sandbox.protocol import Limits

INSIDE = ("kernel", "filter", "cell", "state")
"""Modules of the processes that run cells."""


HUB = ("kernel", "usage", "link", "jobs", "patrol")
"""Modules of the hub, before its launcher, `hub` and `main`."""


def sources(names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, source) of modules of `tools.repl`."""
    here = importlib.resources.files("tools") / "repl"
    return [(name, (here / f"{name}.py").read_text(encoding="utf-8")) for name in names]


def boot_code() -> str:
    """What the interpreter in the sandbox is started with."""
    return sources(["boot"])[0][1]


def boot_message(
    launcher: str, settings: Mapping[str, object], state: Mapping[str, object], limits: Limits
) -> dict[str, object]:
    """The first message to a hub: its source, and what it hands on to the first process inside."""
    bounds = dataclasses.asdict(limits)
    return {
        "modules": sources([*HUB, launcher, "hub", "main"]),
        "entry": "main",
        "settings": {
            **settings,
            "launcher": launcher,
            "boot": boot_code(),
            "modules": sources(INSIDE),
            "limits": bounds,
            "state": {**state, "limits": bounds},
        },
    }


def environment(folder: str) -> dict[str, str]:
    """Environment of the processes that run cells: nothing of the learner's."""
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


WARM = [
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
"""Modules that the first process imports if they are there, so that no cell waits for them."""
