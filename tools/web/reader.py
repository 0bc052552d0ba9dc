"""Extracts main text and links from the bytes of a page, in a child process with a time limit.

The libraries that parse pages are large, partly written in C, and fed by strangers. They stay out
of the training process, so that no page can stop it or use up its memory.
"""

from __future__ import annotations

import codecs
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

from tools.per_process import PerProcess
from tools.tool import ToolUnavailable
from tools.web.addresses import Refused
from tools.web.rate_limits import AttemptFailed
from tools.web.retries import call_with_timeout

_CHILD_PROGRAM = Path(__file__).with_name("reader_child.py")
_MAX_CHILDREN = 2
"""Pages read concurrently."""
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TEXT_TYPES = ("application/json", "application/xml", "application/ld+json")


class Page(NamedTuple):
    """The readable content of a page."""

    title: str
    text: str
    links: tuple[tuple[str, str], ...]
    """Text and absolute URL, in the page's order."""


class PageReader:
    """Reads pages in child processes. Thread-safe. Mutated by its pool of processes."""

    def __init__(self, seconds: float = 20.0, program: Path = _CHILD_PROGRAM) -> None:
        """Prepare a reader; nothing is started yet.

        Args:
            seconds: for one page.
            program: run by the child process; a test passes its own.
        """
        self._seconds = seconds
        self._pool = PerProcess(partial(_Pool, program))

    def read(self, body: bytes, content_type: str, url: str) -> Page:
        """Extract the page in a response's body.

        Raises:
            Refused: the type is none of HTML, PDF and text, or the page cannot be read.
            ToolUnavailable: the child process cannot be started, or lacks a library.
        """
        kind, charset = _detect_kind(body, content_type)
        header = {"kind": kind, "charset": charset, "url": url, "bytes": len(body)}
        request = json.dumps(header).encode() + b"\n" + body
        # Asked twice, because an idle child may have been killed from outside.
        reply = self._ask_child(request) or self._ask_child(request)
        if reply is None:
            raise Refused("The page breaks its reader.")
        if "broken" in reply:
            raise ToolUnavailable(f"the page reader cannot work: {reply['broken']}")
        if "error" in reply:
            raise Refused(f"The page cannot be read: {reply['error']}")
        links = tuple((str(text), str(target)) for text, target in reply["links"])
        return Page(reply["title"], reply["text"], links)

    def close(self) -> None:
        """End this process's children."""
        pool = self._pool.pop()
        while pool is not None and pool.idle:
            pool.idle.pop().kill()

    def _ask_child(self, request: bytes) -> _Reply | None:
        """Return a child's reply; None if it died."""
        pool = self._pool.get()
        with pool.slots:
            child = pool.take()
            try:
                line = call_with_timeout(self._seconds, partial(child.ask, request), child.kill)
                reply: _Reply = json.loads(line)
            except AttemptFailed as timeout:
                raise Refused("The page takes too long to read.") from timeout
            except (OSError, ValueError):
                child.kill()
                return None
            pool.idle.append(child)
            return reply


class _Reply(TypedDict, total=False):
    title: str
    text: str
    links: list[tuple[str, str]]
    error: str  # what is wrong with the page
    broken: str  # what is wrong with the reader


class _Pool:
    """Idle children. Mutated by `take` and by its user, which appends a child when it is done."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self.idle: list[_Child] = []
        self.slots = threading.BoundedSemaphore(_MAX_CHILDREN)

    def take(self) -> _Child:
        try:
            return self.idle.pop()
        except IndexError:
            return _Child(self._program)


class _Child:
    """One reading process."""

    def __init__(self, program: Path) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
        except OSError as error:
            raise ToolUnavailable(f"cannot start the page reader: {error}") from error

    def ask(self, request: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # it flushes what was buffered, and the reading end is gone


def _detect_kind(body: bytes, content_type: str) -> tuple[str, str]:
    """Return html, pdf or text, and the charset; empty if it is not declared."""
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    charset = ""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = _normalize_charset(value.strip().strip("\"'"))
    start = body[:1024].lstrip()
    if media == "application/pdf" or start.startswith(b"%PDF-"):
        return "pdf", ""
    if media in _HTML_TYPES or (not media and start.startswith(b"<")):
        return "html", charset
    if media.startswith("text/") or media in _TEXT_TYPES or media.endswith(("+json", "+xml")):
        return "text", charset
    raise Refused(f"Pages of type {media[:80] or 'unknown'!r} cannot be read.")


def _normalize_charset(name: str) -> str:
    """Return Python's name of a text encoding; empty if it has none."""
    try:
        b"".decode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
