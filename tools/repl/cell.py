"""Runs cells as an interactive interpreter would, and copies a state's files for its children.

The last value is echoed; tracebacks show the cell's lines. Output goes to descriptors 1 and 2. Runs
in any python3 with the standard library alone.
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


class Interpreter:
    """Runs cells in one namespace, which replaces `__main__`. Mutated by every cell."""

    def __init__(self, limits: dict[str, int]) -> None:
        """Start with no names.

        Args:
            limits: by name; `memory` and `file_size` (bytes) and `open_files` appear in messages.
        """
        self.limits = limits
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.count = 0

    def install(self) -> None:
        """Make this the program: set `__main__`, the standard streams and `input`."""
        sys.modules["__main__"] = self.module
        sys.argv = [""]
        builtins.input = _refuse_input
        sys.stdin = open(os.devnull)  # noqa: SIM115 - open as long as the process
        reset_streams()

    def run(self, source: str) -> str:
        """Run `source` and return OK or ERROR. An exception is printed, never raised."""
        self.count += 1
        name = f"<cell {self.count}>"
        if sys.stdout is None or getattr(sys.stdout, "closed", False):
            reset_streams()
        status = ERROR
        try:
            body, last = self._compile(source, name)
            if body is not None:
                exec(body, self.module.__dict__)
            if last is not None:
                self._echo(eval(last, self.module.__dict__))
            status = OK
        except SystemExit as end:
            status = _report_exit(end)
        except BaseException as error:
            _print_traceback(error)
            _explain_limit(error, self.limits)
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
            if not _is_silenced(source, expression):
                tree.body.pop()
                # The cell must not inherit this file's `from __future__` imports.
                last = compile(ast.Expression(expression.value), name, "eval", dont_inherit=True)
        return (compile(tree, name, "exec", dont_inherit=True) if tree.body else None), last

    def _echo(self, value: object) -> None:
        if value is not None:
            sys.stdout.write(repr(value) + "\n")
            self.module.__dict__["_"] = value


def reset_streams() -> None:
    """Use one stream for output and errors, so that they interleave as written."""
    raw = io.FileIO(1, "w", closefd=False)
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = stream  # type: ignore[misc]


def _is_silenced(source: str, last: ast.Expr) -> bool:
    """Return True if a semicolon after the last expression suppresses its echo."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    line = lines[(last.end_lineno or 1) - 1].encode("utf-8", "surrogatepass")
    return line[last.end_col_offset or 0 :].lstrip().startswith(b";")


def _refuse_input(_prompt: object = "", /) -> str:
    raise EOFError(
        "input() cannot be answered here: nobody is at the keyboard; write values into the code"
    )


def write_note(text: str) -> None:
    """Add a line of the sandbox's to the output, even if the cell has replaced the streams."""
    os.write(1, f"[{text}]\n".encode("utf-8", "backslashreplace"))


def _report_exit(end: SystemExit) -> str:
    code = end.code
    _flush()
    if isinstance(code, str):
        os.write(1, f"{code}\n".encode("utf-8", "backslashreplace"))
    shown = "" if code is None else repr(code) if isinstance(code, int) else "..."
    write_note(f"the cell ended by exit({shown}); its variables are kept")
    return OK if code is None or code == 0 else ERROR


def _print_traceback(error: BaseException) -> None:
    """Print the traceback from the cell's first frame on, or note that it cannot be printed."""
    try:
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
            trace = trace.tb_next
        # Cut off our own frames below the cell's, such as that of `input`.
        inner = trace
        while inner is not None:
            if inner.tb_next and inner.tb_next.tb_frame.f_code.co_filename == __file__:
                inner.tb_next = None
            inner = inner.tb_next
        sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))
    except BaseException:
        write_note(f"{type(error).__name__}, whose traceback could not be printed")


def _explain_limit(error: BaseException, limits: dict[str, int]) -> None:
    """Note which limit was reached if it is one that Python reports as an error."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        write_note(f"a cell may use {limits['memory'] >> 20} MiB of memory")
    elif number == errno.EFBIG:
        write_note(f"a file may have {limits['file_size'] >> 20} MiB")
    elif number == errno.EMFILE:
        write_note(f"a process may have {limits['open_files']} files open")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            reset_streams()


def copy_folder(source: str, target: str) -> int:
    """Copy a folder without the folders of other states; return how many entries failed."""
    missing = 0
    try:
        entries = list(os.scandir(source))
    except OSError:
        return 1
    # A folder in memory lists its newest entry first: copied in reverse, both list alike.
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
                with open(entry.path, "rb") as old, create_file(new, mode) as copy:
                    shutil.copyfileobj(old, copy)
        except (OSError, RecursionError):
            missing += 1
    return missing


def create_file(path: str, mode: int) -> BinaryIO:
    """Create a file with its final mode: no process in the sandbox can change it later."""
    return open(path, "xb", opener=lambda path, flags: os.open(path, flags, mode))


class Descriptors:
    """The descriptors from 3 to `limit`, polled by one call instead of listed one by one."""

    def __init__(self, limit: int) -> None:
        self.numbers = frozenset(range(3, limit))
        self.poller = select.poll()
        for fd in self.numbers:
            self.poller.register(fd, 0)

    def list_regular_files(self) -> list[int]:
        """Return those that are open on regular files; O_PATH only names a file."""
        closed = [fd for fd, event in self.poller.poll(0) if event & select.POLLNVAL]
        opened = sorted(self.numbers.difference(closed))
        regular = [fd for fd in opened if stat.S_ISREG(os.fstat(fd).st_mode)]
        return [fd for fd in regular if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH]


def reopen_files(fds: list[int], old: str, new: str) -> int:
    """Point open files at this state's own copies, with positions that siblings do not share.

    Returns:
        The number of files whose content is lost: deleted ones that cannot be read.
    """
    lost = 0
    for fd in fds:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            fresh = _open_by_name(fd, old, new)
        except OSError:
            copy = _copy_content(fd, new)
            lost += copy is None
            fresh = os.open(os.devnull, os.O_RDWR) if copy is None else copy
        os.lseek(fresh, position, os.SEEK_SET)
        os.dup2(fresh, fd, inheritable=False)
        os.close(fresh)
    return lost


def _open_by_name(fd: int, old: str, new: str) -> int:
    """Open the file of that name in this state's folder; OSError if it was deleted meanwhile."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    if not os.path.samestat(os.stat(path), os.fstat(fd)):
        raise FileNotFoundError(path)
    if path.startswith(old + "/"):
        path = new + path[len(old) :]
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_TRUNC | os.O_EXCL)
    return os.open(path, flags | os.O_CLOEXEC)


def _copy_content(fd: int, folder: str) -> int | None:
    """Copy the content to a file without a name; None if it cannot be read or written."""
    path = os.path.join(folder, f".{os.urandom(8).hex()}")
    try:
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    os.unlink(path)
    offset = 0
    try:
        while part := os.pread(fd, 1 << 20, offset):
            offset += os.pwrite(copy, part, offset)
    except OSError:
        os.close(copy)
        return None
    return copy
