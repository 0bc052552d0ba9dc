"""Bytes from the web to main text and links, read in another process with a time limit.

What parses pages is large, written in C in part, and fed by strangers: it stays out of the process
that trains, which can neither be stopped by a page nor grow with it.
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
from tools.web.rate_limits import Fault
from tools.web.retries import within

_CHILD = Path(__file__).with_name("reader_child.py")


_AT_ONCE = 2


_HTML = ("text/html", "application/xhtml+xml")


_TEXT = ("application/json", "application/xml", "application/ld+json")


class Page(NamedTuple):
    """What is worth reading of a page."""

    title: str
    text: str
    links: tuple[tuple[str, str], ...]
    """Text and absolute URL, in the page's order."""


class _Answer(TypedDict, total=False):
    title: str
    text: str
    links: list[tuple[str, str]]
    error: str  # what the page did wrong
    broken: str  # what is wrong with the reader


class PageReader:
    """Reads pages in processes of its own. Thread-safe. Mutated by its pool of processes."""

    def __init__(self, seconds: float = 20.0, program: Path = _CHILD) -> None:
        """A reader; nothing is started yet.

        Args:
            seconds: for one page.
            program: that reads; tests have their own.
        """
        self._seconds = seconds
        self._pool = PerProcess(partial(_Pool, program))

    def read(self, body: bytes, content_type: str, url: str) -> Page:
        """The page in a response's body.

        Raises:
            Refused: the type is none of HTML, PDF and text, or the page cannot be read.
            ToolUnavailable: the reading process cannot be started, or lacks a library.
        """
        kind, charset = _kind(body, content_type)
        asked = {"kind": kind, "charset": charset, "url": url, "bytes": len(body)}
        request = json.dumps(asked).encode() + b"\n" + body
        answer = self._answer(request) or self._answer(request)  # the first may have been killed
        if answer is None:
            raise Refused("The page breaks its reader.")
        if "broken" in answer:
            raise ToolUnavailable(f"the page reader cannot work: {answer['broken']}")
        if "error" in answer:
            raise Refused(f"The page cannot be read: {answer['error']}")
        links = tuple((str(text), str(target)) for text, target in answer["links"])
        return Page(answer["title"], answer["text"], links)

    def close(self) -> None:
        """End this process's reading processes."""
        pool = self._pool.pop()
        while pool is not None and pool.free:
            pool.free.pop().kill()

    def _answer(self, request: bytes) -> _Answer | None:
        """None: the process that read it is gone."""
        pool = self._pool.get()
        with pool.places:
            child = pool.take()
            try:
                line = within(self._seconds, partial(child.ask, request), child.kill)
                answer: _Answer = json.loads(line)
            except Fault as fault:
                raise Refused("The page takes too long to read.") from fault
            except (OSError, ValueError):
                child.kill()
                return None
            pool.free.append(child)
            return answer


class _Pool:
    """Reading processes that are idle. Mutated by `take` and by whoever gives back."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self.free: list[_Child] = []
        self.places = threading.BoundedSemaphore(_AT_ONCE)

    def take(self) -> _Child:
        try:
            return self.free.pop()
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
                    continue  # what was not written yet has no reader any more


def _kind(body: bytes, content_type: str) -> tuple[str, str]:
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    charset = ""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = _codec(value.strip().strip("\"'"))
    start = body[:1024].lstrip()
    if media == "application/pdf" or start.startswith(b"%PDF-"):
        return "pdf", ""
    if media in _HTML or (not media and start.startswith(b"<")):
        return "html", charset
    if media.startswith("text/") or media in _TEXT or media.endswith(("+json", "+xml")):
        return "text", charset
    raise Refused(f"Pages of type {media[:80] or 'unknown'!r} cannot be read.")


def _codec(name: str) -> str:
    try:
        b"".decode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
