"""The program of `python3 -c`: reads a message from descriptor 0, makes its modules, enters one.

The interpreter inside a sandbox therefore needs none of our files, and any python3 will do.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
import sys
import types


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            raise SystemExit(1)
        data += part
    return data


def _boot() -> None:
    body = json.loads(_read_exactly(struct.unpack("!I", _read_exactly(4))[0]))
    tools = sys.modules["tools"] = types.ModuleType("tools")
    package = sys.modules["tools.repl"] = types.ModuleType("tools.repl")
    tools.__dict__["repl"] = package
    for name, source in body["modules"]:
        module = types.ModuleType(f"tools.repl.{name}")
        module.__file__ = f"<repl.{name}>"
        # Each module has its own copy: a cell may replace the builtins that all others share.
        module.__dict__["__builtins__"] = dict(vars(builtins))
        sys.modules[f"tools.repl.{name}"] = module
        setattr(package, name, module)
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    sys.modules["tools.repl." + body["entry"]].main(body["settings"])


_boot()
