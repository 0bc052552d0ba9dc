"""Running a cell as a Python prompt would: the last value echoed, tracebacks with the cell's lines.

Runs in any python3 with the standard library alone. Output goes to the file descriptors 1 and 2.
"""

from __future__ import annotations

import ast
import builtins
import errno
import fcntl
import io
import linecache
import os
import select
import shutil
import stat
import sys
import traceback
import types
from typing import BinaryIO

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


def copy_folder(source: str, target: str) -> int:
    """Copy a folder without the folders of other states; how many entries could not be."""
    missing = 0
    try:
        entries = list(os.scandir(source))
    except OSError:
        return 1
    # A folder in memory lists its newest entry first: so the copy is listed like the original.
    for entry in reversed(entries):
        if entry.name.startswith(".~"):
            continue
        new = os.path.join(target, entry.name)
        try:
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), new)
            elif entry.is_dir():
                os.mkdir(new)
                missing += copy_folder(entry.path, new)
            elif entry.is_file():
                mode = stat.S_IMODE(entry.stat().st_mode)
                with open(entry.path, "rb") as old, create(new, mode) as copy:
                    shutil.copyfileobj(old, copy)
        except (OSError, RecursionError):
            missing += 1
    return missing


def create(path: str, mode: int) -> BinaryIO:
    """A new file; no process in here can change its mode later."""
    return open(path, "xb", opener=lambda path, flags: os.open(path, flags, mode))


class Descriptors:
    """Those above the standard three and below `most`; who asks need not list them again."""

    def __init__(self, most: int) -> None:
        self.numbers = frozenset(range(3, most))
        self.poller = select.poll()
        for fd in self.numbers:
            self.poller.register(fd, 0)

    def regular_files(self) -> list[int]:
        """Those that are open on ordinary files, not just name one."""
        closed = [fd for fd, event in self.poller.poll(0) if event & select.POLLNVAL]
        there = sorted(self.numbers.difference(closed))
        regular = [fd for fd in there if stat.S_ISREG(os.fstat(fd).st_mode)]
        return [fd for fd in regular if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH]


def reopen(fds: list[int], old: str, new: str) -> int:
    """Point open files at this state's own copies, with positions that siblings do not share.

    Returns:
        How many have lost what was in them: deleted ones that cannot be read.
    """
    lost = 0
    for fd in fds:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            fresh = _by_name(fd, old, new)
        except OSError:
            copy = _by_content(fd, new)
            lost += copy is None
            fresh = os.open(os.devnull, os.O_RDWR) if copy is None else copy
        os.lseek(fresh, position, os.SEEK_SET)
        os.dup2(fresh, fd, inheritable=False)
        os.close(fresh)
    return lost


def _by_name(fd: int, old: str, new: str) -> int:
    """The file of that name in this state's folder; OSError if the open one was deleted."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    if not os.path.samestat(os.stat(path), os.fstat(fd)):
        raise FileNotFoundError(path)
    if path.startswith(old + "/"):
        path = new + path[len(old) :]
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_TRUNC | os.O_EXCL)
    return os.open(path, flags | os.O_CLOEXEC)


def _by_content(fd: int, folder: str) -> int | None:
    """A file without a name that holds the same; None if that cannot be read or written."""
    path = os.path.join(folder, f".{os.urandom(8).hex()}")
    try:
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    os.unlink(path)
    at = 0
    try:
        while part := os.pread(fd, 1 << 20, at):
            at += os.pwrite(copy, part, at)
    except OSError:
        os.close(copy)
        return None
    return copy
