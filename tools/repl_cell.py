"""Running a cell as a Python prompt would: the last value echoed, tracebacks with the cell's lines.

Runs in any python3 with the standard library alone. Output goes to the file descriptors 1 and 2.
"""

from __future__ import annotations

import ast
import builtins
import errno
import io
import linecache
import os
import sys
import traceback
import types

OK, ERROR = "ok", "error"


class Prompt:
    """The names that cells define, and how a cell runs among them; replaces `__main__`."""

    def __init__(self, limits: dict[str, int]) -> None:
        """`limits` by name: of bytes `memory` and `file_size`, and `open_files`, are told."""
        self.limits = limits
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.count = 0

    def install(self) -> None:
        """Make this the program: `__main__`, standard streams, `input`."""
        sys.modules["__main__"] = self.module
        sys.argv = [""]
        builtins.input = _no_input
        sys.stdin = open(os.devnull)  # noqa: SIM115 - stands for the process's standard input until it ends
        renew_streams()

    def run(self, source: str) -> str:
        """Run `source`; OK or ERROR. Whatever it raises is printed, never raised."""
        self.count += 1
        name = f"<cell {self.count}>"
        if sys.stdout is None or getattr(sys.stdout, "closed", False):
            renew_streams()
        status = ERROR
        try:
            body, last = self._compile(source, name)
            if body is not None:
                exec(body, self.module.__dict__)
            if last is not None:
                self._echo(eval(last, self.module.__dict__))
            status = OK
        except SystemExit as end:
            status = _tell_exit(end)
        except BaseException as error:
            _tell_error(error)
            _tell_limit(error, self.limits)
        _flush()
        return status

    def _compile(
        self, source: str, name: str
    ) -> tuple[types.CodeType | None, types.CodeType | None]:
        tree = ast.parse(source, name)
        linecache.cache[name] = (len(source), None, f"{source}\n".splitlines(keepends=True), name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            expression = tree.body[-1]
            if not _ends_quietly(source, expression):
                tree.body.pop()
                # What this file imports from the future is no business of a cell.
                last = compile(ast.Expression(expression.value), name, "eval", dont_inherit=True)
        return (compile(tree, name, "exec", dont_inherit=True) if tree.body else None), last

    def _echo(self, value: object) -> None:
        if value is not None:
            sys.stdout.write(repr(value) + "\n")
            self.module.__dict__["_"] = value


def renew_streams() -> None:
    """One stream for output and errors, so that they interleave as written."""
    raw = io.FileIO(1, "w", closefd=False)
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = stream  # type: ignore[misc]


def _ends_quietly(source: str, last: ast.Expr) -> bool:
    """A semicolon after the last expression asks for no echo."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    line = lines[(last.end_lineno or 1) - 1].encode("utf-8", "surrogatepass")
    return line[last.end_col_offset or 0 :].lstrip().startswith(b";")


def _no_input(_prompt: object = "", /) -> str:
    raise EOFError(
        "input() cannot be answered here: nobody is at the keyboard; write values into the code"
    )


def note(text: str) -> None:
    """Add a line of ours to the output, whatever the cell has made of the streams."""
    os.write(1, f"[{text}]\n".encode("utf-8", "backslashreplace"))


def _tell_exit(end: SystemExit) -> str:
    code = end.code
    _flush()
    if isinstance(code, str):
        os.write(1, f"{code}\n".encode("utf-8", "backslashreplace"))
    shown = "" if code is None else repr(code) if isinstance(code, int) else "..."
    note(f"the cell ended by exit({shown}); its variables are kept")
    return OK if code is None or code == 0 else ERROR


def _tell_error(error: BaseException) -> None:
    """Print the traceback from the cell's first frame on; survive what cannot be printed."""
    try:
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
            trace = trace.tb_next
        inner = trace
        while inner is not None:
            if inner.tb_next and inner.tb_next.tb_frame.f_code.co_filename == __file__:
                inner.tb_next = None
            inner = inner.tb_next
        sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))
    except BaseException:
        note(f"{type(error).__name__}, whose traceback could not be printed")


def _tell_limit(error: BaseException, limits: dict[str, int]) -> None:
    """Which limit it was, where Python reports one as an error that the cell might have caught."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        note(f"a cell may use {limits['memory'] >> 20} MiB of memory")
    elif number == errno.EFBIG:
        note(f"a file may have {limits['file_size'] >> 20} MiB")
    elif number == errno.EMFILE:
        note(f"a process may have {limits['open_files']} files open")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            renew_streams()
